//! Whether the server takes requests (`/health`, `/ping`, `/readyz`, `GET /`), and whether it is alive at all (`/livez`). Told from
//! the work that is done; nothing is asked of the shards.

use axum::extract::State;
use axum::http::StatusCode;

use super::errors::ApiError;
use super::{HttpState, Phase};

/// 200 with an empty body, or 503 with what the server waits for.
pub async fn ready(State(state): State<HttpState>) -> Result<StatusCode, ApiError> {
    let error = match &*state.phase.borrow() {
        Phase::Ready(app) => match app.generator.trouble() {
            None => return Ok(StatusCode::OK),
            Some(trouble) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, trouble, ""),
        },
        Phase::Loading(what) => ApiError::loading(what),
        Phase::Stopping => ApiError::stopping(),
    };
    Err(ApiError {
        error_type: "healthcheck",
        ..error
    })
}

/// Restarting would help if this does not answer.
pub async fn alive() -> StatusCode {
    StatusCode::OK
}
