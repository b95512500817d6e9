//! Server-sent events as TGI wrote them: `data: {json}`, a blank line, a comment every 15 seconds of silence. Nothing follows the
//! last event, and an error is the last event.

use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use serde::Serialize;
use tracing::Span;

use super::answer::Step;
use super::errors::ApiError;
use super::request_id;

const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Writes the steps of an answer as events.
pub trait EventWriter: Send + 'static {
    fn step(&mut self, step: Step) -> Vec<Event>;

    fn error(&mut self, error: &ApiError) -> Event;

    /// What is sent in silence.
    fn keep_alive(&self) -> KeepAlive {
        KeepAlive::new()
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
    let keep_alive = writer.keep_alive();
    let span = Span::current();
    let events = steps.flat_map(move |step| {
        let events = match step {
            Ok(step) => writer.step(step),
            Err(error) => {
                request_id::stream_failed(&span, &error);
                vec![writer.error(&error)]
            }
        };
        stream::iter(events.into_iter().map(Ok::<_, Infallible>))
    });
    stream_with(headers, events, keep_alive)
}

/// A stream of events; a comment in silence.
pub fn stream(headers: HeaderMap, events: impl Stream<Item = Event> + Send + 'static) -> Response {
    stream_with(headers, events.map(Ok), KeepAlive::new())
}

fn stream_with(
    headers: HeaderMap,
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    keep_alive: KeepAlive,
) -> Response {
    let keep_alive = keep_alive.interval(KEEP_ALIVE);
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    response.headers_mut().extend(headers);
    // Asks nginx not to collect the stream.
    response.headers_mut().insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

/// One event of JSON.
pub fn event(data: &impl Serialize) -> Event {
    Event::default().data(json(data))
}

/// One event of JSON, with its name on a line of its own.
pub fn named_event(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).data(json(data))
}

fn json(data: &impl Serialize) -> String {
    // Our own types are always JSON; an empty object is what a client would see if one were not.
    serde_json::to_string(data).unwrap_or_else(|_| "{}".to_owned())
}

/// The end of a successful OpenAI stream.
pub fn done() -> Event {
    Event::default().data("[DONE]")
}
