//! What the server is: `/info`, `/v1/models` and `/metrics`. Never a secret, a path or a prompt.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::{HttpState, Ready};

#[derive(Serialize)]
pub struct Info {
    model_id: String,
    model_sha: Option<String>,
    model_pipeline_tag: Option<String>,
    max_concurrent_requests: usize,
    max_best_of: usize,
    max_stop_sequences: usize,
    max_input_tokens: usize,
    max_total_tokens: usize,
    validation_workers: usize,
    max_client_batch_size: usize,
    router: &'static str,
    version: &'static str,
    /// Commit of the build, where it is known.
    sha: &'static str,
    docker_label: Option<&'static str>,
}

pub async fn info(Ready(app): Ready) -> Json<Info> {
    let limits = app.limits;
    Json(Info {
        model_id: app.info.model_id.clone(),
        model_sha: app.info.revision.clone(),
        model_pipeline_tag: None,
        max_concurrent_requests: limits.max_concurrent_requests,
        max_best_of: limits.max_best_of,
        max_stop_sequences: limits.max_stop_sequences,
        max_input_tokens: limits.max_input_tokens,
        max_total_tokens: limits.max_total_tokens,
        validation_workers: limits.validation_workers,
        max_client_batch_size: limits.max_client_batch_size,
        router: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        sha: option_env!("GIT_SHA").unwrap_or(""),
        docker_label: option_env!("DOCKER_LABEL"),
    })
}

#[derive(Serialize)]
pub struct Models {
    object: &'static str,
    data: [Model; 1],
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
}

pub async fn models(Ready(app): Ready) -> Json<Models> {
    Json(Models {
        object: "list",
        data: [Model {
            id: app.info.model_id.clone(),
            object: "model",
            created: 0,
            owned_by: app.info.model_id.clone(),
        }],
    })
}

/// The text format of Prometheus, also while the model is loading.
pub async fn metrics(State(state): State<HttpState>) -> String {
    state.metrics.render()
}
