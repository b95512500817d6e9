//! Errors in the shape that their reader knows. TGI's routes answer `{"error": "text", "error_type"}`, because TGI's clients read that;
//! OpenAI's SDKs announce themselves in every request and look for `error.message`, so they get OpenAI's object. Routes that TGI never had
//! answer in the shape of the surface that they belong to, whoever asks.

use std::convert::Infallible;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{FromRequestParts, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::messages;

/// Every SDK that OpenAI generates sends it, whatever the language.
const SDK_HEADER: &str = "x-stainless-lang";
/// Our error bodies are far shorter.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// Who reads an answer of an OpenAI route.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    OpenAiSdk,
    Any,
}

impl Reader {
    fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(SDK_HEADER) {
            Self::OpenAiSdk
        } else {
            Self::Any
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Reader {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers))
    }
}

#[derive(Deserialize)]
struct NativeError {
    error: String,
    error_type: String,
}

/// What went wrong, for SDKs of OpenAI: requests with the header `x-stainless-lang` to a route below `/v1/`.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiErrorResponse)]
pub struct OpenAiError {
    #[schema(inline)]
    error: ErrorObject,
}

#[derive(Serialize, ToSchema)]
struct ErrorObject {
    message: String,
    #[schema(example = "invalid_request_error")]
    r#type: &'static str,
    param: Option<String>,
    code: Option<String>,
}

enum Shape {
    Tgi,
    OpenAi,
    Anthropic,
}

fn shape(request: &Request) -> Shape {
    let path = request.uri().path();
    let of_responses = path == "/v1/responses" || path.starts_with("/v1/responses/");
    let of_sdk = path.starts_with("/v1/") && Reader::of(request.headers()) == Reader::OpenAiSdk;
    if messages::errors::is_for(path) {
        Shape::Anthropic
    } else if of_responses || of_sdk {
        Shape::OpenAi
    } else {
        Shape::Tgi
    }
}

/// Rewrites the body of an error, and nothing else of it but what Anthropic calls the status.
pub async fn for_sdks(request: Request, next: Next) -> Response {
    let shape = shape(&request);
    let response = next.run(request).await;
    let status = response.status();
    if matches!(shape, Shape::Tgi) || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (head, body) = response.into_parts();
    let bytes = to_bytes(body, MAX_ERROR_BYTES).await.unwrap_or_default();
    let mut rewritten = match shape {
        Shape::Anthropic => {
            let (message, _) = told(status, &bytes);
            let status = messages::errors::status(status);
            let object = messages::errors::object(status, message);
            (status, Json(object)).into_response()
        }
        _ => (status, Json(error_object(status, &bytes))).into_response(),
    };
    rewritten.headers_mut().extend(other_headers(head.headers));
    *rewritten.extensions_mut() = head.extensions;
    rewritten
}

/// The message of an error, and its type where it has one.
fn told(status: StatusCode, body: &[u8]) -> (String, Option<String>) {
    match serde_json::from_slice::<NativeError>(body) {
        Ok(native) => (native.error, Some(native.error_type)),
        Err(_) => (plain_message(status, body), None),
    }
}

fn error_object(status: StatusCode, body: &[u8]) -> OpenAiError {
    let (message, code) = told(status, body);
    OpenAiError {
        error: ErrorObject {
            message,
            r#type: error_type(status),
            param: None,
            code,
        },
    }
}

fn plain_message(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if text.trim().is_empty() {
        let reason = status.canonical_reason().unwrap_or("error");
        reason.to_owned()
    } else {
        text.into_owned()
    }
}

/// OpenAI's own names.
fn error_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

fn other_headers(mut headers: HeaderMap) -> HeaderMap {
    headers.remove(CONTENT_TYPE);
    headers.remove(CONTENT_LENGTH);
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(status: u16, body: &str) -> serde_json::Value {
        let status = StatusCode::from_u16(status).unwrap();
        serde_json::to_value(error_object(status, body.as_bytes())).unwrap()
    }

    #[test]
    fn a_native_error_keeps_its_message_and_its_type_becomes_the_code() {
        let body = r#"{"error": "`n` is too large", "error_type": "validation"}"#;
        let expected = serde_json::json!({"error": {
            "message": "`n` is too large", "type": "invalid_request_error", "param": null, "code": "validation",
        }});
        assert_eq!(object(422, body), expected);
    }

    #[test]
    fn a_text_is_the_message_and_an_empty_body_gets_the_reason_of_its_status() {
        assert_eq!(
            object(400, "EOF at line 1")["error"]["message"],
            "EOF at line 1"
        );
        assert_eq!(object(401, "")["error"]["message"], "Unauthorized");
        assert_eq!(object(401, "")["error"]["type"], "authentication_error");
    }

    #[test]
    fn overload_and_server_faults_have_the_types_that_sdks_know() {
        assert_eq!(object(429, "")["error"]["type"], "rate_limit_error");
        assert_eq!(object(503, "")["error"]["type"], "server_error");
    }
}
