//! `/tokenize`, `/chat_tokenize` and `/detokenize`: text to tokens and back, without generating. None needs a permit, and only the
//! payload limit bounds them.

use axum::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{JsonBody, Object};
use super::chat_body::ChatBody;
use super::errors::ApiError;
use super::openapi::TAG;
use super::openapi::described::TokenizeResponse;
use super::openapi::refusals::OfBodies;
use super::{App, Ready};
use crate::tokenizer::TokenSpan;
use crate::types::Prompt;

/// A body of `/generate`; everything but the text is ignored.
#[derive(Deserialize, ToSchema)]
#[schema(as = TokenizeRequest)]
pub struct TokenizeBody {
    #[schema(example = "Hello there")]
    inputs: String,
}

/// A token and the bytes of the text that it stands for.
#[derive(Serialize, ToSchema)]
pub struct SimpleToken {
    id: u32,
    text: String,
    /// In bytes of the text.
    start: usize,
    /// In bytes of the text; the byte there is not a part of the token.
    stop: usize,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatTokenizeResponse)]
pub struct ChatTokens {
    #[schema(value_type = TokenizeResponse)]
    tokenize_response: Vec<SimpleToken>,
    /// The conversation as the model reads it.
    templated_text: String,
}

/// The tokens of a text
#[utoipa::path(
    post, path = "/tokenize", operation_id = "tokenize", tag = TAG,
    request_body = TokenizeBody,
    responses((status = 200, description = "The tokens", body = TokenizeResponse), OfBodies)
)]
pub async fn tokenize(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<TokenizeBody>>,
) -> Result<Json<Vec<SimpleToken>>, ApiError> {
    let (tokens, _) = tokens(&app, Prompt::Text(body.inputs)).await?;
    Ok(Json(tokens))
}

/// The tokens of a conversation, as the model's chat template writes it
#[utoipa::path(
    post, path = "/chat_tokenize", operation_id = "get_chat_tokenize", tag = TAG,
    request_body = ChatBody,
    responses((status = 200, description = "The text and its tokens", body = ChatTokens), OfBodies)
)]
pub async fn chat_tokenize(
    Ready(app): Ready,
    JsonBody(Object(mut body)): JsonBody<Object<ChatBody>>,
) -> Result<Json<ChatTokens>, ApiError> {
    let chat = body.take_chat()?;
    let (tokenize_response, templated_text) = tokens(&app, Prompt::Chat(chat)).await?;
    Ok(Json(ChatTokens {
        tokenize_response,
        templated_text,
    }))
}

#[derive(Deserialize, ToSchema)]
#[schema(as = DetokenizeRequest)]
pub struct DetokenizeBody {
    #[schema(example = json!([1, 2]))]
    tokens: Vec<u64>,
    /// Leave control tokens such as the end of text out.
    skip_special_tokens: Option<bool>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = DetokenizeResponse)]
pub struct DetokenizedText {
    text: String,
}

/// The text of tokens
#[utoipa::path(
    post, path = "/detokenize", operation_id = "detokenize", tag = TAG,
    request_body = DetokenizeBody,
    responses((status = 200, description = "The text", body = DetokenizedText), OfBodies)
)]
pub async fn detokenize(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<DetokenizeBody>>,
) -> Result<Json<DetokenizedText>, ApiError> {
    let skip_special_tokens = body.skip_special_tokens.unwrap_or(false);
    let text = app.generator.detokenize(body.tokens, skip_special_tokens);
    Ok(Json(DetokenizedText { text: text.await? }))
}

async fn tokens(app: &App, prompt: Prompt) -> Result<(Vec<SimpleToken>, String), ApiError> {
    let (text, spans) = app.generator.tokenize(prompt).await?;
    let token = |span: TokenSpan| SimpleToken {
        id: span.id,
        // A token can be a part of a character; then its text is the whole character.
        text: text
            .get(span.start..span.stop)
            .unwrap_or_default()
            .to_owned(),
        start: span.start,
        stop: span.stop,
    };
    let tokens = spans.into_iter().map(token).collect();
    Ok((tokens, text))
}
