//! The streamed form of TGI's own routes: one event for each token, the whole text with the last.

use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::answer::{self, Step};
use super::errors::ApiError;
use super::generate::{self, Form, GenerateBody, NativeToken};
use super::openapi::described::FinishReason;
use super::sse::{self, EventBuffer, EventWriter};
use super::{App, metrics};
use crate::generation::Progress;
use crate::output::TextDelta;

/// One token. The last has the whole text, and the details where they were asked for.
#[derive(Serialize, ToSchema)]
pub struct StreamResponse {
    /// Counts the tokens, from 1.
    index: usize,
    token: NativeToken,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<NativeToken>,
    generated_text: Option<String>,
    details: Option<StreamDetails>,
}

#[derive(Serialize, ToSchema)]
struct StreamDetails {
    #[schema(value_type = FinishReason)]
    finish_reason: &'static str,
    generated_tokens: usize,
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// Tokens of the prompt.
    input_length: usize,
}

/// An error before the first token is an event as well, with status 200.
pub async fn stream(app: &App, body: GenerateBody) -> Response {
    let headers = answer::early_headers(app, body.inputs.chars().count());
    let mut writer = NativeWriter::default();
    let steps = match generate::request(body, true) {
        Ok((form, request)) => {
            writer.form = Some(form);
            answer::start(app, request).await.map(|answer| {
                writer.input_length = answer.prompt_ids.len();
                writer.seed = answer.seeds.first().copied().flatten();
                answer.steps
            })
        }
        Err(error) => Err(metrics::refused(error)),
    };
    sse::respond(headers, steps, writer)
}

#[derive(Default)]
struct NativeWriter {
    form: Option<Form>,
    input_length: usize,
    seed: Option<u64>,
    /// Tokens so far; the first event has index 1.
    index: usize,
    text: String,
}

impl NativeWriter {
    fn token(&mut self, delta: TextDelta) -> StreamResponse {
        self.index += 1;
        self.text.push_str(&delta.text);
        let (token, top_tokens) = generate::split(delta.token);
        let mut response = StreamResponse {
            index: self.index,
            token,
            top_tokens,
            generated_text: None,
            details: None,
        };
        if let (Some(finish), Some(form)) = (delta.finish, &self.form) {
            response.generated_text = Some(format!("{}{}", form.prefix, self.text));
            response.details = form.details.then(|| StreamDetails {
                finish_reason: generate::finish_reason(finish),
                generated_tokens: self.index,
                seed: self.seed,
                input_length: self.input_length,
            });
        }
        response
    }
}

impl EventWriter for NativeWriter {
    fn step(&mut self, step: Step, events: &mut EventBuffer) {
        if let Step::Progress(_, Progress::Text(delta)) = step {
            events.push(&self.token(delta));
        }
    }

    fn error(&mut self, error: &ApiError, events: &mut EventBuffer) {
        events.push(&error.native_event());
    }
}
