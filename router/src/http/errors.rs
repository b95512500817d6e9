//! What a failed request is answered with: TGI's status codes and `{"error", "error_type"}`. An error is counted where it is
//! answered, and never carries the prompt's text.

use std::any::Any;

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Body};
use serde::Serialize;
use utoipa::ToSchema;

use crate::engine::EngineError;
use crate::generation::GenerateError;
use crate::input::ValidationError;

#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    pub error_type: &'static str,
}

/// Tells the layers around a route what kind of error it answered with.
#[derive(Clone, Copy)]
pub struct ErrorType(pub &'static str);

/// What went wrong. In a stream of the native routes it is the last event.
#[derive(Serialize, ToSchema)]
#[schema(as = ErrorResponse)]
pub struct NativeError<'a> {
    #[schema(example = "`temperature` must be strictly positive")]
    error: &'a str,
    #[schema(example = "validation")]
    error_type: &'a str,
}

/// What went wrong, as the last event of a stream of the OpenAI routes.
#[derive(Serialize, ToSchema)]
#[schema(as = StreamError)]
pub struct OpenAiError<'a> {
    #[schema(inline)]
    error: OpenAiErrorObject<'a>,
}

#[derive(Serialize, ToSchema)]
struct OpenAiErrorObject<'a> {
    message: &'a str,
    /// The status that an answer without a stream would have had.
    #[schema(minimum = 400, maximum = 599)]
    http_status_code: u16,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>, error_type: &'static str) -> Self {
        Self {
            status,
            message: message.into(),
            error_type,
        }
    }

    /// 422 with a type of its own.
    pub fn refused(message: impl Into<String>, error_type: &'static str) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, message, error_type)
    }

    pub fn loading(what: &str) -> Self {
        let message = format!("the model is loading: {what}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message, "loading")
    }

    pub fn stopping() -> Self {
        let message = "the server is stopping";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message, "stopping")
    }

    pub fn native_event(&self) -> impl Serialize {
        NativeError {
            error: &self.message,
            error_type: self.error_type,
        }
    }

    pub fn openai_event(&self) -> impl Serialize {
        OpenAiError {
            error: OpenAiErrorObject {
                message: &self.message,
                http_status_code: self.status.as_u16(),
            },
        }
    }
}

impl From<ValidationError> for ApiError {
    fn from(error: ValidationError) -> Self {
        GenerateError::Validation(error).into()
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> Self {
        if let GenerateError::Validation(tool @ ValidationError::ToolNotFound(_)) = &error {
            return Self::refused(format!("Tool error: {tool}"), "tool_error");
        }
        let (status, error_type) = match &error {
            GenerateError::Validation(_) => (StatusCode::UNPROCESSABLE_ENTITY, "validation"),
            GenerateError::Overloaded => (StatusCode::TOO_MANY_REQUESTS, "overloaded"),
            GenerateError::Incomplete => {
                (StatusCode::INTERNAL_SERVER_ERROR, "incomplete_generation")
            }
            GenerateError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
            GenerateError::Engine(EngineError::ShardLost(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, "shard_lost")
            }
            GenerateError::Engine(EngineError::Stopped) => {
                (StatusCode::SERVICE_UNAVAILABLE, "stopping")
            }
            GenerateError::Engine(EngineError::Numerical) => {
                (StatusCode::FAILED_DEPENDENCY, "numerical")
            }
            GenerateError::Engine(_) => (StatusCode::FAILED_DEPENDENCY, "generation"),
        };
        Self::new(status, error.to_string(), error_type)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.native_event())).into_response();
        response.extensions_mut().insert(ErrorType(self.error_type));
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// A panic in a request is that request's 500.
pub fn panicked(_cause: Box<dyn Any + Send>) -> Response<Body> {
    let message = "the request failed unexpectedly";
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message, "internal").into_response()
}
