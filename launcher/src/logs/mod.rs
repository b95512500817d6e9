//! One log for all processes: their lines, and the launcher's own, go through here to standard output.
//!
//! A child writes JSON, one object per line; anything else it writes is wrapped into such a line. Reading never waits for
//! writing: when nobody reads the log, lines are dropped and counted, and serving goes on.

mod lines;
mod render;
mod sink;

use std::io;

use serde_json::{Map, Value};
use tokio::io::AsyncRead;
use tracing::{Dispatch, Level};
use tracing_subscriber::fmt::MakeWriter;

use lines::Lines;
pub use render::Style;
pub use sink::Sink;

/// Who wrote a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Launcher,
    Router,
    /// Finds and downloads the model.
    Resolver,
    Shard {
        rank: usize,
    },
}

/// Which of a child's streams a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Where lines go, and in what form. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Logs {
    sink: Sink,
    style: Style,
    level: Level,
}

impl Logs {
    pub fn new(sink: Sink, style: Style, level: Level) -> Self {
        Self { sink, style, level }
    }

    /// Forwards a child's stream until it ends, and shows `observe` the fields of every line that has some.
    pub async fn forward<R, F>(self, source: Source, (stream, reader): (Stream, R), mut observe: F)
    where
        R: AsyncRead + Unpin,
        F: FnMut(&Map<String, Value>),
    {
        let mut lines = Lines::new(reader);
        while let Some(line) = lines.next().await {
            if let Some(fields) = self.emit(source, stream, line) {
                observe(&fields);
            }
            if let Some(count) = self.sink.take_dropped() {
                tracing::warn!(
                    count,
                    "log lines were dropped, because standard output is not read fast enough"
                );
            }
        }
    }

    /// The subscriber for the launcher's own lines.
    pub fn dispatch(&self) -> Dispatch {
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_max_level(self.level)
            .with_writer(self.clone());
        Dispatch::new(subscriber.finish())
    }

    /// The line's fields, if it is a JSON object that has some.
    fn emit(&self, source: Source, stream: Stream, line: &str) -> Option<Map<String, Value>> {
        let Ok(Value::Object(mut object)) = serde_json::from_str(line) else {
            if !line.trim().is_empty() {
                wrap(source, stream, line);
            }
            return None;
        };
        if let Source::Shard { rank } = source {
            add_rank(&mut object, rank);
        }
        if is_wanted(&object, self.level) {
            self.sink.write(self.style.render(&object, source));
        }
        match object.remove("fields") {
            Some(Value::Object(fields)) => Some(fields),
            _ => None,
        }
    }
}

fn is_wanted(object: &Map<String, Value>, least: Level) -> bool {
    let level = object.get("level").and_then(Value::as_str);
    // A line of unknown importance is not kept back.
    level
        .and_then(|level| level.parse().ok())
        .is_none_or(|level: Level| level <= least)
}

fn add_rank(object: &mut Map<String, Value>, rank: usize) {
    if let Value::Object(fields) = object
        .entry("fields")
        .or_insert_with(|| Value::Object(Map::new()))
    {
        fields.insert("rank".into(), rank.into());
    }
}

/// Logs a line that is not JSON in the name of its process.
fn wrap(source: Source, stream: Stream, line: &str) {
    match (source, stream) {
        (Source::Router, Stream::Stdout) => tracing::info!(target: "text_gen_router", "{line}"),
        (Source::Router, Stream::Stderr) => tracing::warn!(target: "text_gen_router", "{line}"),
        (Source::Shard { rank }, Stream::Stdout) => {
            tracing::info!(target: "text_gen_server", rank, "{line}")
        }
        (Source::Shard { rank }, Stream::Stderr) => {
            tracing::warn!(target: "text_gen_server", rank, "{line}")
        }
        (_, Stream::Stdout) => tracing::info!(target: "text_gen_server", "{line}"),
        (_, Stream::Stderr) => tracing::warn!(target: "text_gen_server", "{line}"),
    }
}

/// Takes the launcher's own lines, one event per write.
impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        if let Ok(Value::Object(object)) = serde_json::from_str(line.trim_end()) {
            self.sink
                .write(self.style.render(&object, Source::Launcher));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
