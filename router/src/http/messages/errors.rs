//! Anthropic's error object, which every error of `/v1/messages` has, also those that no handler has seen.

use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

/// What went wrong. In a stream it is the last event.
#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicErrorResponse)]
pub struct AnthropicError {
    #[serde(rename = "type")]
    #[schema(example = "error")]
    kind: &'static str,
    #[schema(inline)]
    error: ErrorObject,
}

#[derive(Serialize, ToSchema)]
struct ErrorObject {
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    kind: &'static str,
    message: String,
}

/// Whether the errors of a path have this shape.
pub fn is_for(path: &str) -> bool {
    path == "/v1/messages" || path.starts_with("/v1/messages/")
}

pub fn object(status: StatusCode, message: String) -> AnthropicError {
    AnthropicError {
        kind: "error",
        error: ErrorObject {
            kind: error_type(status),
            message,
        },
    }
}

/// Anthropic answers everything that is wrong with a request with 400, which is what its SDKs have an exception for.
pub fn status(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
        other => other,
    }
}

/// Anthropic's own names.
fn error_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        // The request was fine; generating failed.
        StatusCode::FAILED_DEPENDENCY => "api_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}
