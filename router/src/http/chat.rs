//! `/v1/chat/completions`: messages in, a message or its pieces out, in OpenAI's shapes as TGI wrote them.

use axum::Json;
use axum::http::HeaderMap;
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::answer::{self, Call, CollectedSequence, Message, Step};
use super::body::{JsonBody, Object};
use super::chat_body::{self, ChatBody};
use super::errors::ApiError;
use super::openai::{self, Identity, SYSTEM_FINGERPRINT, Usage};
use super::openai_errors::Reader;
use super::sse::{self, EventWriter};
use super::{App, Ready, metrics};
use crate::generation::Progress;
use crate::input::ValidationError;
use crate::output::{TextDelta, Token};
use crate::types::Request;

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
}

#[derive(Serialize)]
struct Completion {
    object: &'static str,
    id: String,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct AssistantMessage {
    role: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize)]
struct ToolCall {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

#[derive(Serialize)]
struct CalledFunction {
    name: String,
    arguments: String,
}

#[derive(Serialize)]
struct Chunk<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<ChunkChoice>,
    usage: Option<Usage>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: AssistantMessage,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<TokenLogprob>,
}

#[derive(Serialize)]
struct TokenLogprob {
    token: String,
    /// Where OpenAI's SDK reads them; TGI had none.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
    logprob: f32,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Serialize)]
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

/// Content is left out only where there are calls instead.
fn message(message: Message) -> AssistantMessage {
    let has_content = message.calls.is_empty() || !message.content.is_empty();
    let call = |call: Call| ToolCall {
        id: openai::unique_id("call"),
        kind: "function",
        function: CalledFunction {
            name: call.name,
            arguments: call.arguments,
        },
    };
    AssistantMessage {
        role: "assistant",
        content: has_content.then_some(message.content),
        reasoning_content: (!message.reasoning.is_empty()).then_some(message.reasoning),
        tool_calls: message.calls.into_iter().map(call).collect(),
    }
}

fn delta(content: String) -> AssistantMessage {
    message(Message {
        content,
        ..Message::default()
    })
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
        message: message(sequence.message),
        logprobs: form.logprobs.then(|| Logprobs {
            content: sequence
                .tokens
                .into_iter()
                .map(|token| TokenLogprob::new(token, form.reader))
                .collect(),
        }),
        finish_reason: openai::finish_reason(sequence.finish),
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
        ChatWriter(form),
    )
}

/// One chunk for every token, though its text may be empty.
struct ChatWriter(Form);

impl ChatWriter {
    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> Event {
        let identity = &self.0.identity;
        sse::event(&Chunk {
            object: "chat.completion.chunk",
            id: &identity.id,
            created: identity.created,
            model: &identity.model,
            system_fingerprint: SYSTEM_FINGERPRINT,
            choices,
            usage,
        })
    }

    fn choice(&self, index: usize, delta: TextDelta) -> ChunkChoice {
        ChunkChoice {
            index,
            delta: self::delta(delta.text),
            logprobs: self.0.logprobs.then(|| Logprobs {
                content: vec![TokenLogprob::new(delta.token, self.0.reader)],
            }),
            finish_reason: delta.finish.map(openai::finish_reason),
        }
    }
}

impl EventWriter for ChatWriter {
    fn step(&mut self, step: Step) -> Vec<Event> {
        match step {
            Step::Progress(index, Progress::Text(delta)) => {
                vec![self.chunk(vec![self.choice(index, delta)], None)]
            }
            Step::Progress(..) => Vec::new(),
            Step::Done(usage) if self.0.include_usage => {
                vec![
                    self.chunk(Vec::new(), Some(Usage::new(&usage))),
                    sse::done(),
                ]
            }
            Step::Done(_) => vec![sse::done()],
        }
    }

    fn error(&mut self, error: &ApiError) -> Event {
        sse::event(&error.openai_event())
    }
}
