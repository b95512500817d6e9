//! `/tokenize`, `/chat_tokenize` and `/detokenize`: text to tokens and back, without generating. None needs a permit, and only the
//! payload limit bounds them.

use axum::Json;
use serde::{Deserialize, Serialize};

use super::body::{JsonBody, Object};
use super::chat_body::ChatBody;
use super::errors::ApiError;
use super::{App, Ready};
use crate::tokenizer::TokenSpan;
use crate::types::Prompt;

/// A body of `/generate`; everything but the text is ignored.
#[derive(Deserialize)]
pub struct TokenizeBody {
    inputs: String,
}

#[derive(Serialize)]
pub struct SimpleToken {
    id: u32,
    text: String,
    /// In bytes of the text.
    start: usize,
    stop: usize,
}

#[derive(Serialize)]
pub struct ChatTokens {
    tokenize_response: Vec<SimpleToken>,
    templated_text: String,
}

pub async fn tokenize(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<TokenizeBody>>,
) -> Result<Json<Vec<SimpleToken>>, ApiError> {
    let (tokens, _) = tokens(&app, Prompt::Text(body.inputs)).await?;
    Ok(Json(tokens))
}

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

#[derive(Deserialize)]
pub struct DetokenizeBody {
    tokens: Vec<u64>,
    /// Leave control tokens such as the end of text out.
    skip_special_tokens: Option<bool>,
}

#[derive(Serialize)]
pub struct DetokenizedText {
    text: String,
}

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
