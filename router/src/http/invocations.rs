//! `/invocations`, the one route that SageMaker calls: the body of `/`, of `/v1/chat/completions` or of `/v1/completions`, and that
//! route's answer. A body that could be several of them is the first.

use axum::response::Response;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::body::{self, JsonBody, TellingKeys};
use super::chat_body::ChatBody;
use super::completions::CompletionBody;
use super::generate::GenerateBody;
use super::openapi::TAG;
use super::openapi::described::{SagemakerRequest, SagemakerResponse, SagemakerStreamResponse};
use super::openapi::refusals::OfGenerations;
use super::{Ready, chat, completions, generate};

pub enum Invocation {
    Generate(Box<GenerateBody>),
    Chat(Box<ChatBody>),
    Completion(Box<CompletionBody>),
}

impl<'de> Deserialize<'de> for Invocation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let keys: TellingKeys = body::parse(&json)?;
        if keys.inputs.is_some() {
            body::parse(&json).map(Self::Generate)
        } else if keys.messages.is_some() {
            body::parse(&json).map(Self::Chat)
        } else if keys.prompt.is_some() {
            body::parse(&json).map(Self::Completion)
        } else {
            Err(D::Error::custom(
                "one of `inputs`, `messages` and `prompt` is needed",
            ))
        }
    }
}

/// The route of Amazon SageMaker: a body of `/`, `/v1/chat/completions` or `/v1/completions`, and that route's answer
#[utoipa::path(
    post, path = "/invocations", operation_id = "sagemaker_compatibility", tag = TAG,
    request_body = SagemakerRequest,
    responses(
        (status = 200, description = "The answer, streamed where the body asks for it", content(
            (SagemakerResponse = "application/json"), (SagemakerStreamResponse = "text/event-stream")
        )),
        OfGenerations
    )
)]
pub async fn invocations(
    Ready(app): Ready,
    JsonBody(invocation): JsonBody<Invocation>,
) -> Response {
    match invocation {
        Invocation::Generate(body) => generate::respond_compat(&app, *body).await,
        Invocation::Chat(body) => chat::respond(&app, *body).await,
        Invocation::Completion(body) => completions::respond(&app, *body).await,
    }
}
