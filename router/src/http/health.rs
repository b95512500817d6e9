//! Whether the server takes requests (`/health`, `/ping`, `/readyz`, `GET /`), and whether it is alive at all (`/livez`). Told from
//! the work that is done; nothing is asked of the shards.

use axum::extract::State;
use axum::http::StatusCode;

use super::errors::ApiError;
use super::openapi::TAG;
use super::openapi::refusals::WhileNotReady;
use super::{HttpState, Phase};

pub const ERROR_TYPE: &str = "healthcheck";

/// Whether requests are taken: 200 with an empty body, or 503 with what the server waits for
#[utoipa::path(
    get, path = "/health", operation_id = "health", tag = TAG,
    responses((status = 200, description = "Requests are taken"), WhileNotReady)
)]
pub async fn ready(State(state): State<HttpState>) -> Result<StatusCode, ApiError> {
    let error = match &*state.phase.borrow() {
        Phase::Ready(app) => match app.generator.trouble() {
            None => return Ok(StatusCode::OK),
            Some(trouble) => {
                tracing::warn!(trouble, "not healthy");
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, trouble, "")
            }
        },
        Phase::Loading(what) => ApiError::loading(what),
        Phase::Stopping => ApiError::stopping(),
    };
    Err(ApiError {
        error_type: ERROR_TYPE,
        ..error
    })
}

/// Whether the server lives: restarting would help if this does not answer
#[utoipa::path(
    get, path = "/livez", operation_id = "livez", tag = TAG,
    responses((status = 200, description = "The server lives"))
)]
pub async fn alive() -> StatusCode {
    StatusCode::OK
}
