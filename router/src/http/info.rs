//! What the server is: `/info`, `/v1/models` and `/metrics`. Never a secret, a path or a prompt.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::TAG;
use super::openapi::refusals::WhileNotReady;
use super::{HttpState, Ready};

const DEMO_NOTE: &str = "This is the small demo model that comes with text-gen. Serve a real one with \
    text-gen-launcher --model-id MODEL or make serve MODEL_ID=MODEL: a name on the Hugging Face hub, or a folder.";

/// What is served, and within which limits.
#[derive(Serialize, ToSchema)]
pub struct Info {
    model_id: String,
    /// Commit of the model on the hub, where it came from there.
    model_sha: Option<String>,
    model_pipeline_tag: Option<String>,
    /// Sequences that may run or wait at a time; more are answered with 429.
    max_concurrent_requests: usize,
    /// Most sequences of one request.
    max_best_of: usize,
    max_stop_sequences: usize,
    /// Of a prompt.
    max_input_tokens: usize,
    /// Of a prompt and its answer.
    max_total_tokens: usize,
    validation_workers: usize,
    /// Most prompts of one request.
    max_client_batch_size: usize,
    /// Name of the program.
    router: &'static str,
    version: &'static str,
    /// Commit of the build; empty where it is not known.
    sha: &'static str,
    docker_label: Option<&'static str>,
    /// That the model is the demo model, and how to serve another; absent where another is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    demo_model: Option<&'static str>,
}

/// The model and the limits of the server
#[utoipa::path(
    get, path = "/info", operation_id = "get_model_info", tag = TAG,
    responses((status = 200, description = "What is served", body = Info), WhileNotReady)
)]
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
        demo_model: app.info.is_demo.then_some(DEMO_NOTE),
    })
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
pub struct Models {
    #[schema(example = "list")]
    object: &'static str,
    /// The one model that is served.
    data: [Model; 1],
}

#[derive(Serialize, ToSchema)]
#[schema(as = ModelInfo)]
struct Model {
    id: String,
    #[schema(example = "model")]
    object: &'static str,
    created: u64,
    owned_by: String,
}

/// The served model in OpenAI's form
#[utoipa::path(
    get, path = "/v1/models", operation_id = "openai_get_model_info", tag = TAG,
    responses((status = 200, description = "A list of one model", body = Models), WhileNotReady)
)]
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

/// Measurements in the text format of Prometheus, also while the model is loading
#[utoipa::path(
    get, path = "/metrics", operation_id = "metrics", tag = TAG,
    responses((status = 200, description = "Measurements", body = String, content_type = "text/plain"))
)]
pub async fn metrics(State(state): State<HttpState>) -> String {
    state.metrics.render()
}
