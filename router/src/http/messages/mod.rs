//! `/v1/messages`: Anthropic's surface. A conversation in, one message of blocks out, streamed or whole; errors in Anthropic's shape.

mod body;
pub mod content;
mod writer;

pub mod errors;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{self, Answer, Step, Usage};
use super::body::{JsonBody, Object};
use super::errors::ApiError;
use super::openapi::TAG;
use super::openapi::refusals::OfMessages;
use super::{App, Ready, metrics, openai, sse};
use body::MessagesBody;
use writer::{Message, MessageEvent, MessageWriter};

/// Answer in the form of Anthropic's Messages
#[utoipa::path(
    post, path = "/v1/messages", operation_id = "create_message", tag = TAG,
    request_body = MessagesBody,
    responses(
        (status = 200, description = "The message, streamed if `stream` is true", content((Message = "application/json"), (MessageEvent = "text/event-stream"))),
        OfMessages
    )
)]
pub async fn create(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<MessagesBody>>,
) -> Result<Response, ApiError> {
    let model = openai::answering_model(&app, body.model.clone());
    let stop_sequences = body.stop_sequences.clone().unwrap_or_default();
    let request = body.request().map_err(metrics::refused)?;
    let streamed = request.streamed;
    let answer = answer::start(&app, request).await?;
    let writer = MessageWriter::new(model, stop_sequences, answer.prompt_ids.len());
    if streamed {
        let headers = answer::early_headers(&app, answer.prompt_chars);
        return Ok(sse::respond(headers, Ok(answer.steps), writer));
    }
    whole(&app, answer, writer).await
}

async fn whole(
    app: &App,
    mut answer: Answer,
    mut writer: MessageWriter,
) -> Result<Response, ApiError> {
    let mut usage = Usage::default();
    while let Some(step) = answer.steps.next().await {
        let step = step?;
        if let Step::Done(done) = &step {
            usage = done.clone();
        }
        writer.write(step);
    }
    let headers = answer::headers(app, answer.prompt_chars, &usage);
    Ok((headers, Json(writer.into_message())).into_response())
}

#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicTokenCount)]
pub struct TokenCount {
    input_tokens: usize,
}

/// Count the tokens that the prompt of a message has
#[utoipa::path(
    post, path = "/v1/messages/count_tokens", operation_id = "count_message_tokens", tag = TAG,
    request_body = MessagesBody,
    responses(
        (status = 200, description = "The number", body = TokenCount),
        OfMessages
    )
)]
pub async fn count_tokens(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<MessagesBody>>,
) -> Result<Json<TokenCount>, ApiError> {
    let (_, tokens) = app.generator.tokenize(body.prompt()?).await?;
    Ok(Json(TokenCount {
        input_tokens: tokens.len(),
    }))
}
