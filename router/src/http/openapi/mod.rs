//! The OpenAPI document, `/api-doc/openapi.json`, and the page that shows it, `/docs`. Generated from the types that read the bodies
//! and write the answers, so that it cannot say anything else; a route that is not in it fails a test.

pub mod described;
pub mod refusals;

mod adjust;

use axum::Router;
use serde_json::Value;
use utoipa::OpenApi;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::{
    chat, completions, errors, generate, health, info, invocations, kserve, messages,
    openai_errors, responses, tokenize, vertex,
};

/// Clients that are generated from the document name their classes after it, so it stays TGI's.
pub const TAG: &str = "Text Generation Inference";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "text-gen",
        description = "Serves a large language model: the routes of Text Generation Inference and of OpenAI.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        generate::compat,
        generate::generate,
        generate::generate_stream,
        chat::chat,
        completions::completions,
        responses::create,
        responses::retrieve,
        responses::delete,
        responses::cancel,
        responses::input_items,
        messages::create,
        messages::count_tokens,
        tokenize::tokenize,
        tokenize::chat_tokenize,
        tokenize::detokenize,
        invocations::invocations,
        vertex::vertex,
        kserve::server_metadata,
        kserve::live,
        kserve::ready,
        kserve::model_metadata,
        kserve::model_ready,
        kserve::infer,
        health::ready,
        health::alive,
        info::info,
        info::models,
        info::metrics,
    ),
    components(schemas(
        errors::NativeError,
        errors::OpenAiError,
        openai_errors::OpenAiError,
        described::Completion,
        messages::errors::AnthropicError,
    )),
    tags((name = TAG, description = "All routes"))
)]
struct Document;

/// `with_key`: the server has an API key.
pub fn document(with_key: bool) -> Value {
    // Types of this crate only, which are always JSON; an empty document is what a client would see if one were not.
    let generated = serde_json::to_value(Document::openapi()).unwrap_or_default();
    adjust::adjust(generated, with_key)
}

pub fn routes<S: Clone + Send + Sync + 'static>(with_key: bool) -> Router<S> {
    // Swagger UI would send the document's address to a validator on the internet.
    let config = Config::default().validator_url("none");
    SwaggerUi::new("/docs")
        .config(config)
        .external_url_unchecked("/api-doc/openapi.json", document(with_key))
        .into()
}
