//! The way to standard output: a thread of its own behind a bounded queue, because writing there can block for as long as nobody
//! reads. Whoever logs never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Lines that may wait to be written.
const QUEUE_LINES: usize = 1024;

/// Takes finished lines. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sink {
    lines: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(String),
    /// Everything before this is written.
    Flush(SyncSender<()>),
}

impl Sink {
    /// A sink that writes to `out` in a thread of its own.
    pub fn new(out: impl std::io::Write + Send + 'static) -> std::io::Result<Self> {
        let (lines, receiver) = sync_channel(QUEUE_LINES);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&receiver, out))?;
        Ok(Self {
            lines,
            dropped: Arc::default(),
        })
    }

    pub(super) fn write(&self, line: String) {
        if self.lines.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines were dropped since this was last asked, if any.
    pub(super) fn take_dropped(&self) -> Option<u64> {
        Some(self.dropped.swap(0, Ordering::Relaxed)).filter(|count| *count > 0)
    }

    /// Waits until everything is written, but not for longer than `deadline`.
    pub fn flush(&self, deadline: Duration) {
        let (done, is_done) = sync_channel(1);
        if self.lines.try_send(Message::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(deadline);
        }
    }
}

fn write_all(messages: &Receiver<Message>, mut out: impl std::io::Write) {
    for message in messages {
        match message {
            // When nobody reads the log any more, there is nobody to tell.
            Message::Line(line) => {
                let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
            }
            Message::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}
