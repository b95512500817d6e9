//! What clients see: routes, JSON, server-sent events, status codes. JSON bodies, axum and status codes live here and nowhere else;
//! no route knows tokens' meaning or the engine.
//!
//! Each family of routes is one file that turns a JSON body into a `Request`, and the `Step`s of its answer into JSON.

// The routes.
mod generate;
mod generate_stream;

mod chat;
mod chat_body;
mod chat_message;
mod chat_tools;

mod completion_stream;
mod completions;

mod messages;
mod responses;

mod invocations;
mod kserve;
mod vertex;

mod health;
mod info;
mod tokenize;

// What they share.
mod answer;
mod blocks;
mod body;
mod conversation;
mod errors;
mod grammar;
pub mod metrics;
mod openai;
mod openai_errors;
mod openapi;
mod sse;

// Layers around all of them.
mod auth;
mod cors;
mod request_id;

// What carries them.
mod connection;
mod server;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;

use crate::generation::Generator;
use crate::telemetry::MetricsHandle;
use crate::types::{ApiKey, Limits, ModelInfo, Tenant};
pub use connection::ConnectionLimits;
use errors::ApiError;
pub use responses::ResponseStore;

/// Where the server is in its life.
#[derive(Clone)]
pub enum Phase {
    /// With what is being done, for `/health`.
    Loading(String),
    Ready(Arc<App>),
    /// Running streams go on, nothing new is accepted.
    Stopping,
}

/// What a loaded model answers one tenant with.
#[derive(Clone)]
pub struct App {
    pub generator: Generator,
    pub info: Arc<ModelInfo>,
    pub limits: Limits,
    /// The default in a `Phase`; whoever asks in a `Ready`.
    pub tenant: Tenant,
    pub responses: ResponseStore,
}

pub struct HttpConfig {
    /// Empty: no CORS headers at all. "*": any origin.
    pub cors_allow_origin: Vec<String>,
    /// Everything but health needs one of them. Empty at the start: nobody ever needs one.
    pub api_keys: watch::Receiver<Vec<ApiKey>>,
    /// What can be read without a key, besides health.
    pub public_routes: Vec<String>,
    pub payload_limit_bytes: usize,
    pub connections: ConnectionLimits,
    pub metrics: MetricsHandle,
}

/// Answers clients until `shutdown`, then until the running requests are answered.
pub async fn serve(
    listener: TcpListener,
    config: HttpConfig,
    phase: watch::Receiver<Phase>,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let connections = config.connections;
    let router = router(config, phase).map_err(std::io::Error::other)?;
    server::serve(listener, router, connections, shutdown).await;
    Ok(())
}

#[derive(Clone)]
struct HttpState {
    phase: watch::Receiver<Phase>,
    payload_limit_bytes: usize,
    body_timeout: Duration,
    metrics: MetricsHandle,
}

/// All routes. The layers are outermost last: CORS answers preflights before the key is asked for.
fn router(config: HttpConfig, phase: watch::Receiver<Phase>) -> Result<Router, cors::BadOrigin> {
    let state = HttpState {
        phase,
        payload_limit_bytes: config.payload_limit_bytes,
        body_timeout: config.connections.body_timeout,
        metrics: config.metrics,
    };
    let mut router = Router::new()
        .route("/", get(health::ready).post(generate::compat))
        .route("/generate", post(generate::generate))
        .route("/generate_stream", post(generate::generate_stream))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/responses", post(responses::create))
        .route(
            "/v1/responses/{id}",
            get(responses::retrieve).delete(responses::delete),
        )
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route(
            "/v1/responses/{id}/input_items",
            get(responses::input_items),
        )
        .route("/invocations", post(invocations::invocations))
        .route("/vertex", post(vertex::vertex))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/chat_tokenize", post(tokenize::chat_tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health::ready))
        .route("/ping", get(health::ready))
        .route("/readyz", get(health::ready))
        .route("/livez", get(health::alive))
        .route("/info", get(info::info))
        .route("/v1/models", get(info::models))
        .route("/metrics", get(info::metrics))
        .route("/v2", get(kserve::server_metadata))
        .route("/v2/health/live", get(kserve::live))
        .route("/v2/health/ready", get(kserve::ready))
        .route(
            "/v2/models/{model_name}/versions/{model_version}",
            get(kserve::model_metadata),
        )
        .route(
            "/v2/models/{model_name}/versions/{model_version}/ready",
            get(kserve::model_ready),
        )
        .route(
            "/v2/models/{model_name}/versions/{model_version}/infer",
            post(kserve::infer),
        )
        .merge(openapi::routes(!config.api_keys.borrow().is_empty()))
        .layer(DefaultBodyLimit::max(config.payload_limit_bytes))
        .layer(CatchPanicLayer::custom(errors::panicked));
    if !config.api_keys.borrow().is_empty() {
        let access = auth::Access::new(config.api_keys.clone(), config.public_routes);
        let layer = axum::middleware::from_fn_with_state(access, auth::require_key);
        router = router.layer(layer);
    }
    router = router.layer(axum::middleware::from_fn(openai_errors::for_sdks));
    if let Some(cors) = cors::layer(&config.cors_allow_origin)? {
        router = router.layer(cors);
        router = router.layer(axum::middleware::map_request(cors::ask_for_headers));
    }
    router = router.layer(axum::middleware::from_fn(request_id::tag));
    Ok(router.with_state(state))
}

/// The loaded model for whoever asks; 503 before and after. Every route takes this, so none can forget its tenant.
struct Ready(Arc<App>);

impl FromRequestParts<HttpState> for Ready {
    type Rejection = ApiError;

    async fn from_request_parts(
        parts: &mut Parts,
        state: &HttpState,
    ) -> Result<Self, Self::Rejection> {
        match &*state.phase.borrow() {
            Phase::Ready(app) => Ok(Self(match parts.extensions.get::<Tenant>() {
                None => app.clone(),
                Some(tenant) => Arc::new(App {
                    tenant: tenant.clone(),
                    responses: app.responses.of(tenant),
                    ..App::clone(app)
                }),
            })),
            Phase::Loading(what) => Err(ApiError::loading(what)),
            Phase::Stopping => Err(ApiError::stopping()),
        }
    }
}

#[cfg(test)]
mod tests;
