//! Clients that read streams as bytes: an event is counted and stamped, and nothing is parsed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::shard::FIRST_TEXT_TOKEN;

const PROMPT_LEN: u32 = 128;

/// One answer that was read to its end.
pub struct Answer {
    pub stream_idx: u32,
    pub sent_at: Instant,
    /// Of each token's event.
    pub event_at: Vec<Instant>,
}

/// Streams that run at the same time. Dropping it hangs up.
pub struct Load {
    streams: u32,
    begun: Arc<Begun>,
    tasks: JoinSet<anyhow::Result<Answer>>,
}

#[derive(Default)]
struct Begun {
    count: AtomicU32,
    changed: Notify,
}

impl Load {
    pub fn start(address: SocketAddr, streams: u32, tokens: u32) -> Self {
        let begun = Arc::new(Begun::default());
        let mut tasks = JoinSet::new();
        for stream_idx in 0..streams {
            tasks.spawn(read(address, stream_idx, tokens, Arc::clone(&begun)));
        }
        Self {
            streams,
            begun,
            tasks,
        }
    }

    /// Once every stream has had an event.
    pub async fn all_have_events(&mut self) {
        while self.begun.count.load(Ordering::Relaxed) < self.streams {
            self.begun.changed.notified().await;
        }
    }

    /// All of them, in the order of the streams.
    pub async fn answers(&mut self) -> anyhow::Result<Vec<Answer>> {
        let mut answers = Vec::new();
        while let Some(answer) = self.tasks.join_next().await {
            answers.push(answer??);
        }
        answers.sort_unstable_by_key(|answer| answer.stream_idx);
        Ok(answers)
    }
}

async fn read(
    address: SocketAddr,
    stream_idx: u32,
    tokens: u32,
    begun: Arc<Begun>,
) -> anyhow::Result<Answer> {
    let prompt: Vec<u32> = (0..PROMPT_LEN)
        .map(|i| FIRST_TEXT_TOKEN + (stream_idx + i) % 1700)
        .collect();
    let body = json!({
        "model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true
    });
    let body = body.to_string();
    let mut connection = TcpStream::connect(address).await?;
    connection.set_nodelay(true)?;
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let sent_at = Instant::now();
    connection.write_all(request.as_bytes()).await?;

    let mut event_at = Vec::with_capacity(tokens as usize + 1);
    let mut buffer = vec![0; 16 * 1024];
    let mut is_first = true;
    let mut last = 0;
    loop {
        let count = connection.read(&mut buffer).await?;
        let now = Instant::now();
        if count == 0 {
            break;
        }
        if is_first {
            is_first = false;
            let head = String::from_utf8_lossy(&buffer[..count.min(400)]).into_owned();
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
        for &byte in &buffer[..count] {
            // An empty line with bare line feeds ends an event; HTTP's own lines have carriage returns.
            if byte == b'\n' && last == b'\n' {
                event_at.push(now);
                if event_at.len() == 1 {
                    begun.count.fetch_add(1, Ordering::Relaxed);
                    begun.changed.notify_one();
                }
            }
            last = byte;
        }
    }
    event_at.pop().context("no event came")?; // [DONE]
    Ok(Answer {
        stream_idx,
        sent_at,
        event_at,
    })
}
