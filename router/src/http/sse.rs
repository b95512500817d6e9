//! Server-sent events as TGI wrote them: `data: {json}`, a blank line, a comment every 15 seconds of silence. Nothing follows the
//! last event, and an error is the last event.
//!
//! Events are written as bytes once, into the buffer that goes to the connection; those that are ready at the same time go together.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use hyper::body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};
use tracing::Span;

use super::answer::Step;
use super::errors::ApiError;
use super::request_id;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// An event of one token mostly fits.
const USUAL_BYTES: usize = 256;

/// So many bytes are enough for one piece of the answer.
const MAX_PIECE_BYTES: usize = 8 * 1024;

/// Writes the steps of an answer as events.
pub trait EventWriter: Send + Unpin + 'static {
    fn step(&mut self, step: Step, events: &mut EventBuffer);

    fn error(&mut self, error: &ApiError, events: &mut EventBuffer);

    /// What is sent in silence.
    fn keep_alive(&self, events: &mut EventBuffer) {
        events.push_comment();
    }
}

/// Events on their way to the client.
#[derive(Default)]
pub struct EventBuffer(Vec<u8>);

impl EventBuffer {
    /// One event of JSON.
    pub fn push(&mut self, data: &impl Serialize) {
        self.0.reserve(USUAL_BYTES);
        self.0.extend_from_slice(b"data: ");
        let begin = self.0.len();
        // JSON has no line breaks. Our own types are always JSON; an empty object is what a client would see if one were not.
        if serde_json::to_writer(&mut self.0, data).is_err() {
            self.0.truncate(begin);
            self.0.extend_from_slice(b"{}");
        }
        self.0.extend_from_slice(b"\n\n");
    }

    /// One event of JSON, with its name on a line of its own.
    pub fn push_named(&mut self, name: &str, data: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.push(data);
    }

    /// The end of a successful OpenAI stream.
    pub fn push_done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn push_comment(&mut self) {
        self.0.extend_from_slice(b":\n\n");
    }

    fn take(&mut self) -> Bytes {
        // Of its own size, so that nothing is kept for what is not there.
        std::mem::take(&mut self.0).into_boxed_slice().into()
    }
}

/// The stream of an answer that began, or the one event of a request that was refused.
pub fn respond(
    headers: HeaderMap,
    answer: Result<BoxStream<'static, Result<Step, ApiError>>, ApiError>,
    mut writer: impl EventWriter,
) -> Response {
    let steps = match answer {
        Ok(steps) => steps,
        Err(error) => stream::iter([Err(error)]).boxed(),
    };
    let mut keep_alive = EventBuffer::default();
    writer.keep_alive(&mut keep_alive);
    let span = Span::current();
    let write = move |step, events: &mut EventBuffer| match step {
        Ok(step) => writer.step(step, events),
        Err(error) => {
            request_id::stream_failed(&span, &error);
            writer.error(&error, events);
        }
    };
    response(headers, EventBody::new(steps, write, keep_alive))
}

/// A stream of named events; a comment in silence.
pub fn stream<T: Serialize + 'static>(
    headers: HeaderMap,
    events: impl Stream<Item = T> + Send + 'static,
    name: impl Fn(&T) -> &'static str + Send + Unpin + 'static,
) -> Response {
    let mut keep_alive = EventBuffer::default();
    keep_alive.push_comment();
    let write = move |event: T, events: &mut EventBuffer| events.push_named(name(&event), &event);
    response(headers, EventBody::new(events.boxed(), write, keep_alive))
}

fn response(
    headers: HeaderMap,
    body: impl HttpBody<Data = Bytes, Error = Infallible> + Send + 'static,
) -> Response {
    let mut response = Response::new(Body::new(body));
    let own = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-cache"),
    ];
    let all = response.headers_mut();
    all.extend(own.map(|(name, value)| (name, HeaderValue::from_static(value))));
    all.extend(headers);
    // Asks nginx not to collect the stream.
    all.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

/// The body of a stream: items as events.
struct EventBody<S, W> {
    items: S,
    /// Writes an item as no, one or several events.
    write: W,
    has_ended: bool,
    silence: Silence,
    keep_alive: Bytes,
}

impl<S, W> EventBody<S, W> {
    fn new(items: S, write: W, mut keep_alive: EventBuffer) -> Self {
        Self {
            items,
            write,
            has_ended: false,
            silence: Silence::default(),
            keep_alive: keep_alive.take(),
        }
    }
}

impl<S, W> HttpBody for EventBody<S, W>
where
    S: Stream + Unpin,
    W: FnMut(S::Item, &mut EventBuffer) + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let mut events = EventBuffer::default();
        while !this.has_ended && events.0.len() < MAX_PIECE_BYTES {
            match this.items.poll_next_unpin(context) {
                Poll::Ready(Some(item)) => (this.write)(item, &mut events),
                Poll::Ready(None) => this.has_ended = true,
                Poll::Pending => break,
            }
        }
        if !events.0.is_empty() {
            this.silence.is_broken();
            return Poll::Ready(Some(Ok(Frame::data(events.take()))));
        }
        if this.has_ended {
            return Poll::Ready(None);
        }
        ready!(this.silence.poll(context));
        Poll::Ready(Some(Ok(Frame::data(this.keep_alive.clone()))))
    }
}

/// Tells when nothing was sent for a while. The timer is set anew when it fires, not with every event.
struct Silence {
    begun_at: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Default for Silence {
    fn default() -> Self {
        Self {
            begun_at: Instant::now(),
            timer: Box::pin(sleep(KEEP_ALIVE)),
        }
    }
}

impl Silence {
    fn is_broken(&mut self) {
        self.begun_at = Instant::now();
    }

    /// Ready once it has lasted, and again after another such while.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(context));
            let now = Instant::now();
            let has_lasted = now >= self.begun_at + KEEP_ALIVE;
            if has_lasted {
                self.begun_at = now;
            }
            self.timer.as_mut().reset(self.begun_at + KEEP_ALIVE);
            if has_lasted {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
