//! `/v1/chat/completions`: messages in, a message or its pieces out, in OpenAI's shapes as TGI wrote them.

use std::collections::HashSet;

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{self, CollectedSequence, Step};
use super::body::{JsonBody, Object};
use super::chat_body::{self, ChatBody};
use super::chat_message::{AssistantMessage, finish_reason};
use super::errors::ApiError;
use super::openai::{Identity, SYSTEM_FINGERPRINT, Usage};
use super::openai_errors::Reader;
use super::openapi::TAG;
use super::openapi::described::{ChatCompletionDelta, OutputMessage, StopReason};
use super::openapi::refusals::OfGenerations;
use super::sse::{self, EventBuffer, EventWriter};
use super::{App, Ready, metrics};
use crate::generation::Progress;
use crate::input::ValidationError;
use crate::output::{MessagePart, TextDelta, Token};
use crate::types::Request;

/// Answer a conversation, in the form of OpenAI's chat completions
#[utoipa::path(
    post, path = "/v1/chat/completions", operation_id = "chat_completions", tag = TAG,
    request_body = ChatBody,
    responses(
        (status = 200, description = "The answers, streamed if `stream` is true", content(
            (Completion = "application/json"), (Chunk = "text/event-stream")
        )),
        OfGenerations
    )
)]
pub async fn chat(
    Ready(app): Ready,
    reader: Reader,
    JsonBody(Object(body)): JsonBody<Object<ChatBody>>,
) -> Response {
    respond_to(&app, reader, body).await
}

pub(super) async fn respond(app: &App, body: ChatBody) -> Response {
    respond_to(app, Reader::Any, body).await
}

async fn respond_to(app: &App, reader: Reader, body: ChatBody) -> Response {
    let form = Form {
        identity: Identity::new(app, "chatcmpl", body.model.clone()),
        reader,
        logprobs: body.logprobs.unwrap_or(false),
        has_tools: body.tools.as_ref().is_some_and(|tools| !tools.is_empty()),
        include_usage: matches!(&body.stream_options, Some(Object(options)) if options.include_usage == Some(true)),
    };
    let streamed = body.stream.unwrap_or(false);
    let request = chat_body::request(body, streamed).map_err(metrics::refused);
    if streamed {
        return stream(app, form, request).await;
    }
    match whole(app, form, request).await {
        Ok((headers, completion)) => (headers, Json(completion)).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Nothing but the text of a whole answer.
pub(super) async fn text(app: &App, body: ChatBody) -> Result<String, ApiError> {
    let request = single(body).map_err(metrics::refused)?;
    let mut collected = answer::start(app, request).await?.collect().await?;
    Ok(collected.sequences.swap_remove(0).text)
}

fn single(body: ChatBody) -> Result<Request, ValidationError> {
    let request = chat_body::request(body, false)?;
    match request.parameters.n {
        None | Some(1) => Ok(request),
        Some(n) => {
            let reason = format!("`n` must be 1 where only a text is answered. Given: {n}");
            Err(ValidationError::Invalid(reason))
        }
    }
}

struct Form {
    identity: Identity,
    reader: Reader,
    logprobs: bool,
    include_usage: bool,
    has_tools: bool,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletion)]
pub struct Completion {
    #[schema(example = "chat.completion")]
    object: &'static str,
    id: String,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionComplete)]
struct Choice {
    index: usize,
    #[schema(value_type = OutputMessage)]
    message: AssistantMessage,
    logprobs: Option<Logprobs>,
    #[schema(value_type = StopReason)]
    finish_reason: &'static str,
}

/// A piece of one choice of a streamed answer, or, without choices, what the answer took.
#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionChunk)]
pub struct Chunk<'a> {
    #[schema(example = "chat.completion.chunk")]
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<ChunkChoice>,
    /// In the last chunk, if `stream_options.include_usage` asked for it.
    usage: Option<Usage>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionChoice)]
struct ChunkChoice {
    index: usize,
    #[schema(value_type = ChatCompletionDelta)]
    delta: AssistantMessage,
    logprobs: Option<Logprobs>,
    /// `null` until the choice's last chunk.
    #[schema(value_type = Option<StopReason>)]
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionLogprobs)]
struct Logprobs {
    content: Vec<TokenLogprob>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionLogprob)]
struct TokenLogprob {
    token: String,
    /// Where OpenAI's SDK reads them; TGI had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
    logprob: f32,
    /// The likeliest tokens at this place, as many as `top_logprobs` asked for.
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = ChatCompletionTopLogprob)]
struct TopLogprob {
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
    logprob: f32,
}

impl TokenLogprob {
    fn new(token: Token, reader: Reader) -> Self {
        let bytes = |text: &str| (reader == Reader::OpenAiSdk).then(|| text.as_bytes().to_vec());
        let top = token.top_tokens.into_iter().map(|top| TopLogprob {
            bytes: bytes(&top.text),
            token: top.text,
            logprob: top.logprob,
        });
        Self {
            bytes: bytes(&token.text),
            token: token.text,
            logprob: token.logprob,
            top_logprobs: top.collect(),
        }
    }
}

async fn whole(
    app: &App,
    form: Form,
    request: Result<Request, ApiError>,
) -> Result<(HeaderMap, Completion), ApiError> {
    let collected = answer::start(app, request?).await?.collect().await?;
    let mut headers = answer::headers(app, collected.prompt_chars, &collected.usage);
    answer::insert_compute_time(&mut headers, &collected.usage);
    let choice = |(index, sequence): (usize, CollectedSequence)| Choice {
        index,
        finish_reason: finish_reason(sequence.finish, !sequence.message.calls.is_empty()),
        message: sequence.message.into(),
        logprobs: form.logprobs.then(|| Logprobs {
            content: sequence
                .tokens
                .into_iter()
                .map(|token| TokenLogprob::new(token, form.reader))
                .collect(),
        }),
    };
    let completion = Completion {
        object: "chat.completion",
        id: form.identity.id,
        created: form.identity.created,
        model: form.identity.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices: collected
            .sequences
            .into_iter()
            .enumerate()
            .map(choice)
            .collect(),
        usage: Usage::new(&collected.usage),
    };
    Ok((headers, completion))
}

async fn stream(app: &App, form: Form, request: Result<Request, ApiError>) -> Response {
    let started = match request {
        Ok(request) => answer::start(app, request).await,
        Err(error) => Err(error),
    };
    let prompt_chars = started.as_ref().map_or(0, |answer| answer.prompt_chars);
    let headers = answer::early_headers(app, prompt_chars);
    sse::respond(
        headers,
        started.map(|answer| answer.steps),
        ChatWriter {
            form,
            called: HashSet::new(),
        },
    )
}

/// One chunk for every token, though its text may be empty; with tools only for those that say something.
struct ChatWriter {
    form: Form,
    /// Sequences that called a tool.
    called: HashSet<usize>,
}

impl ChatWriter {
    fn write_chunk(
        &self,
        choices: Vec<ChunkChoice>,
        usage: Option<Usage>,
        events: &mut EventBuffer,
    ) {
        let identity = &self.form.identity;
        events.push(&Chunk {
            object: "chat.completion.chunk",
            id: &identity.id,
            created: identity.created,
            model: &identity.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        });
    }

    fn choice(&mut self, index: usize, delta: TextDelta) -> Option<ChunkChoice> {
        let starts_call = |part: &MessagePart| matches!(part, MessagePart::CallStart { .. });
        if delta.parts.iter().any(starts_call) {
            self.called.insert(index);
        }
        let says_nothing = delta.parts.is_empty() && delta.finish.is_none();
        if says_nothing && self.form.has_tools && !self.form.logprobs {
            return None;
        }
        let called = self.called.contains(&index);
        Some(ChunkChoice {
            index,
            delta: AssistantMessage::delta(delta.parts),
            logprobs: self.form.logprobs.then(|| Logprobs {
                content: vec![TokenLogprob::new(delta.token, self.form.reader)],
            }),
            finish_reason: delta.finish.map(|finish| finish_reason(finish, called)),
        })
    }
}

impl EventWriter for ChatWriter {
    fn step(&mut self, step: Step, events: &mut EventBuffer) {
        match step {
            Step::Progress(index, Progress::Text(delta)) => {
                if let Some(choice) = self.choice(index, delta) {
                    self.write_chunk(vec![choice], None, events);
                }
            }
            Step::Progress(..) => {}
            Step::Done(usage) => {
                if self.form.include_usage {
                    self.write_chunk(Vec::new(), Some(Usage::new(&usage)), events);
                }
                events.push_done();
            }
        }
    }

    fn error(&mut self, error: &ApiError, events: &mut EventBuffer) {
        events.push(&error.openai_event());
    }
}
