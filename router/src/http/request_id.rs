//! Every answer carries `x-request-id`: the client's, if it is fit for a log, or a new one. What is logged of a request is in a span
//! with that id, and a request that fails leaves one line there: route, status, kind of error, and nothing that a client wrote.

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, Span};

use super::errors::{ApiError, ErrorType};
use super::health;
use super::openai;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
const MAX_BYTES: usize = 128;

pub async fn tag(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(HEADER).filter(|id| is_sane(id));
    let id = match given {
        Some(id) => id.clone(),
        None => new_id(),
    };
    let span = tracing::info_span!("request", request_id = id.to_str().unwrap_or_default());
    request.headers_mut().insert(HEADER, id.clone());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let error_type = response.extensions().get::<ErrorType>();
        let error_type = error_type.map_or("", |error_type| error_type.0);
        let route = path.as_ref().map_or("", MatchedPath::as_str);
        span.in_scope(|| log(route, status, error_type));
    }
    response.headers_mut().insert(HEADER, id);
    response
}

/// A stream that fails after its head was sent; `span` is the request's.
pub fn stream_failed(span: &Span, error: &ApiError) {
    span.in_scope(|| log("stream", error.status, error.error_type));
}

fn log(route: &str, status: StatusCode, error_type: &str) {
    let status_code = status.as_u16();
    if error_type == health::ERROR_TYPE {
        // Who asks whether the server is ready asks many times until it is, and what is worth a warning has one already.
        tracing::debug!(route, status = status_code, "not ready");
    } else if status.is_server_error() || status == StatusCode::FAILED_DEPENDENCY {
        tracing::warn!(route, status = status_code, error_type, "a request failed");
    } else {
        tracing::info!(
            route,
            status = status_code,
            error_type,
            "a request was refused"
        );
    }
}

/// Visible ASCII, and not too much of it.
fn is_sane(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

fn new_id() -> HeaderValue {
    let id = openai::unique_id("req");
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("req"))
}
