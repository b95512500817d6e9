//! TGI's own routes: `/generate`, `/generate_stream`, and `/`, which is one or the other. The stop string stays in the text; the end
//! token has a name in the tokens and none in the text.

use std::collections::VecDeque;

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::answer::{self, Collected, CollectedSequence, Usage};
use super::body::{JsonBody, Object};
use super::errors::ApiError;
use super::generate_stream::{StreamResponse, stream};
use super::grammar::AnswerFormat;
use super::openapi::TAG;
use super::openapi::described::{AnyFormat, CompatGenerateRequest, FinishReason};
use super::openapi::refusals::{OfBodies, OfGenerations};
use super::{App, Ready, metrics};
use crate::input::ValidationError;
use crate::output::{Finish, Token, TopToken};
use crate::types::{Parameters, Prompt, Request, SamplingMode};

#[derive(Deserialize, ToSchema)]
#[schema(as = GenerateRequest)]
pub struct GenerateBody {
    /// The prompt.
    #[schema(min_length = 1, example = "What is deep learning?")]
    pub inputs: String,
    /// Without them tokens are drawn; with an empty object the likeliest are taken.
    #[schema(value_type = Option<GenerateParameters>)]
    parameters: Option<Object<GenerateParameters>>,
    /// Only `/` looks at it.
    stream: Option<bool>,
}

/// How an answer is made and what is told of it. `null` is the same as absent.
#[derive(Clone, Default, Deserialize, ToSchema)]
pub struct GenerateParameters {
    /// Generate so many answers and give the one whose tokens are likeliest on average. Needs sampling, and no `seed`.
    #[schema(minimum = 1)]
    best_of: Option<u64>,
    /// Below 1 likely tokens become likelier, above 1 less so.
    #[schema(exclusive_minimum = 0, example = 0.7)]
    temperature: Option<f64>,
    /// Above 1, tokens of the prompt and of the answer become less likely.
    #[schema(exclusive_minimum = 0)]
    repetition_penalty: Option<f64>,
    /// Taken from a token's logit for each time that it was generated.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Taken from a token's logit if it was generated before.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Choose among so many likeliest tokens.
    #[schema(minimum = 1)]
    top_k: Option<i32>,
    /// Choose among the likeliest tokens that together have this probability. 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 1, example = 0.95)]
    top_p: Option<f64>,
    /// Choose among tokens that are about as surprising as expected and together have this probability. 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    typical_p: Option<f64>,
    /// Choose among tokens that have at least this share of the likeliest one's probability.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// Draw tokens instead of taking the likeliest. A temperature or a filter that is not off does the same.
    do_sample: Option<bool>,
    /// Most tokens of the answer.
    #[schema(minimum = 1, example = 20)]
    max_new_tokens: Option<u32>,
    /// So many tokens come before the end of text may.
    min_tokens: Option<u32>,
    /// Go on after the model's end of text. `ignore_eos_token` is another name.
    #[serde(alias = "ignore_eos_token")]
    ignore_eos: Option<bool>,
    /// Put the prompt before the text. `/` does so unless told not to.
    return_full_text: Option<bool>,
    /// Texts that end the answer. The one that did is kept in it.
    stop: Option<Vec<String>>,
    /// Tokens that end the answer, besides the model's own.
    stop_token_ids: Option<Vec<u64>>,
    /// Keep only so many tokens at the end of the prompt.
    #[schema(minimum = 1)]
    truncate: Option<usize>,
    /// Prefer tokens in a way that a detector finds later.
    watermark: Option<bool>,
    /// Tell the tokens, their log-probabilities and why the answer ended.
    details: Option<bool>,
    /// Tell the same of the prompt's tokens, if the server was started with `--enable-prefill-logprobs`. Not in streams.
    decoder_input_details: Option<bool>,
    /// The same seed draws the same tokens.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// Tell so many of the likeliest tokens at each place.
    top_n_tokens: Option<u32>,
    /// What the answer must be.
    #[schema(value_type = Option<AnyFormat>)]
    grammar: Option<AnswerFormat>,
    /// An adapter that was loaded with the model.
    adapter_id: Option<String>,
}

impl GenerateBody {
    pub(super) fn new(inputs: String, parameters: Option<GenerateParameters>) -> Self {
        Self {
            inputs,
            parameters: parameters.map(Object),
            stream: None,
        }
    }

    /// Draws tokens unless the body says otherwise.
    pub(super) fn sample_by_default(&mut self) {
        self.parameters_mut().do_sample.get_or_insert(true);
    }

    fn parameters_mut(&mut self) -> &mut GenerateParameters {
        let Object(parameters) = self
            .parameters
            .get_or_insert_with(|| Object(without_parameters()));
        parameters
    }
}

/// Generate, streamed if `stream` is true; an answer that is not streamed is a list of one, with the prompt
#[utoipa::path(
    post, path = "/", operation_id = "compat_generate", tag = TAG,
    request_body = CompatGenerateRequest,
    responses(
        (status = 200, description = "The answer", content(
            (Vec<GenerateResponse> = "application/json"), (StreamResponse = "text/event-stream")
        )),
        OfGenerations
    )
)]
pub async fn compat(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<GenerateBody>>,
) -> Response {
    respond_compat(&app, body).await
}

/// The prompt is a part of the answer, and an answer that is not streamed comes in a list.
pub(super) async fn respond_compat(app: &App, mut body: GenerateBody) -> Response {
    body.parameters_mut().return_full_text.get_or_insert(true);
    if body.stream.unwrap_or(false) {
        return stream(app, body).await;
    }
    match whole(app, body).await {
        Ok((headers, response)) => (headers, Json([response])).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Generate
#[utoipa::path(
    post, path = "/generate", operation_id = "generate", tag = TAG,
    request_body = GenerateBody,
    responses((status = 200, description = "The answer", body = GenerateResponse), OfGenerations)
)]
pub async fn generate(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<GenerateBody>>,
) -> Response {
    match whole(&app, body).await {
        Ok((headers, response)) => (headers, Json(response)).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Generate, with an event for each token
///
/// Once the body could be read the status is 200: a refusal is an event with an error, and the last.
#[utoipa::path(
    post, path = "/generate_stream", operation_id = "generate_stream", tag = TAG,
    request_body = GenerateBody,
    responses(
        (status = 200, description = "The tokens", body = StreamResponse, content_type = "text/event-stream"),
        OfBodies
    )
)]
pub async fn generate_stream(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<GenerateBody>>,
) -> Response {
    stream(&app, body).await
}

/// A body without `parameters` samples; one with an empty object does not.
fn without_parameters() -> GenerateParameters {
    GenerateParameters {
        do_sample: Some(true),
        ..GenerateParameters::default()
    }
}

/// What of a body the answer's form depends on.
pub(super) struct Form {
    pub details: bool,
    /// Put before the text.
    pub prefix: String,
}

pub(super) fn request(
    body: GenerateBody,
    streamed: bool,
) -> Result<(Form, Request), ValidationError> {
    let given = match body.parameters {
        Some(Object(parameters)) => parameters,
        None => without_parameters(),
    };
    for (name, asked) in [("adapter_id", given.adapter_id.is_some())] {
        if asked {
            return Err(ValidationError::Unsupported(name));
        }
    }
    let format = given.grammar.map(AnswerFormat::into_grammar);
    let grammar = format.transpose()?.flatten();
    let form = Form {
        details: given.details.unwrap_or(false),
        prefix: if given.return_full_text.unwrap_or(false) {
            body.inputs.clone()
        } else {
            String::new()
        },
    };
    let parameters = Parameters {
        mode: if given.do_sample.unwrap_or(false) {
            SamplingMode::Sample
        } else {
            SamplingMode::IfFiltered
        },
        temperature: given.temperature,
        top_k: given.top_k.map(i64::from),
        top_p: given.top_p,
        typical_p: given.typical_p,
        min_p: given.min_p,
        repetition_penalty: given.repetition_penalty,
        frequency_penalty: given.frequency_penalty,
        presence_penalty: given.presence_penalty,
        logit_bias: Vec::new(),
        seed: given.seed,
        best_of: given.best_of,
        n: None,
        max_new_tokens: given.max_new_tokens.map(u64::from),
        min_new_tokens: given.min_tokens.map(u64::from),
        ignore_eos: given.ignore_eos.unwrap_or(false),
        stop: given.stop.unwrap_or_default(),
        stop_token_ids: given.stop_token_ids.unwrap_or_default(),
        truncate: given.truncate.map(|tokens| tokens as u64),
        top_n_tokens: given.top_n_tokens.map(u64::from),
        prompt_logprobs: given.decoder_input_details.unwrap_or(false),
        watermark: given.watermark.unwrap_or(false),
    };
    let request = Request {
        prompt: Prompt::Text(body.inputs),
        streamed,
        keep_stop_text: true,
        parameters,
        grammar,
    };
    Ok((form, request))
}

#[derive(Serialize, ToSchema)]
pub struct GenerateResponse {
    pub generated_text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

/// Of the answer that was chosen, and of the others if there were several.
#[derive(Serialize, ToSchema)]
struct Details {
    #[serde(flatten)]
    sequence: SequenceDetails,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    best_of_sequences: Vec<BestOfSequence>,
}

#[derive(Serialize, ToSchema)]
struct BestOfSequence {
    generated_text: String,
    #[serde(flatten)]
    sequence: SequenceDetails,
}

#[derive(Serialize, ToSchema)]
struct SequenceDetails {
    #[schema(value_type = FinishReason)]
    finish_reason: &'static str,
    generated_tokens: usize,
    /// Where tokens were drawn.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// Tokens of the prompt, where they were asked for.
    prefill: Vec<PrefillToken>,
    tokens: Vec<NativeToken>,
    /// The likeliest tokens at each place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_tokens: Vec<Vec<NativeToken>>,
}

#[derive(Clone, Serialize, ToSchema)]
struct PrefillToken {
    id: u32,
    text: String,
    /// The first token has none.
    logprob: Option<f32>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub(super) struct NativeToken {
    id: u32,
    text: String,
    logprob: f32,
    /// It controls the model and is no part of the text.
    special: bool,
}

pub(super) async fn whole(
    app: &App,
    body: GenerateBody,
) -> Result<(HeaderMap, GenerateResponse), ApiError> {
    let (form, request) = request(body, false).map_err(metrics::refused)?;
    let mut collected = answer::start(app, request).await?.collect().await?;
    let mut sequences = std::mem::take(&mut collected.sequences);
    let best_idx = best(&sequences);
    let chosen = sequences.remove(best_idx);
    let usage = Usage {
        generated_tokens: chosen.tokens.len(),
        ..collected.usage.clone()
    };
    let mut headers = answer::headers(app, collected.prompt_chars, &usage);
    answer::insert_compute_time(&mut headers, &usage);
    let text = |sequence: &CollectedSequence| format!("{}{}", form.prefix, sequence.text);
    let response = GenerateResponse {
        generated_text: text(&chosen),
        details: form.details.then(|| {
            let prefill = prefill(app, &collected);
            let others = sequences.into_iter().map(|sequence| BestOfSequence {
                generated_text: text(&sequence),
                sequence: sequence_details(sequence, prefill.clone()),
            });
            Details {
                best_of_sequences: others.collect(),
                sequence: sequence_details(chosen, prefill.clone()),
            }
        }),
    };
    Ok((headers, response))
}

/// The sequence whose tokens were likeliest on average.
fn best(sequences: &[CollectedSequence]) -> usize {
    let means = sequences.iter().map(CollectedSequence::mean_logprob);
    means
        .enumerate()
        .max_by(|(_, left), (_, right)| left.total_cmp(right))
        .map_or(0, |(idx, _)| idx)
}

/// Empty where the prompt's log-probabilities were not asked for, or the server does not give them.
fn prefill(app: &App, collected: &Collected) -> Vec<PrefillToken> {
    if collected.prompt_logprobs.is_empty() {
        return Vec::new();
    }
    let mut logprobs: VecDeque<Option<f32>> = collected
        .prompt_logprobs
        .iter()
        .copied()
        .map(Some)
        .collect();
    logprobs.push_front(None);
    let tokens = collected.prompt_ids.iter().zip(logprobs);
    tokens
        .map(|(&id, logprob)| PrefillToken {
            id,
            text: app.generator.tokenizer().decode(&[id], false),
            logprob,
        })
        .collect()
}

fn sequence_details(sequence: CollectedSequence, prefill: Vec<PrefillToken>) -> SequenceDetails {
    let has_top_tokens = sequence
        .tokens
        .iter()
        .any(|token| !token.top_tokens.is_empty());
    let (tokens, top_tokens): (Vec<_>, Vec<_>) = sequence.tokens.into_iter().map(split).unzip();
    SequenceDetails {
        finish_reason: finish_reason(sequence.finish),
        generated_tokens: tokens.len(),
        seed: sequence.seed,
        prefill,
        tokens,
        top_tokens: if has_top_tokens {
            top_tokens
        } else {
            Vec::new()
        },
    }
}

/// A token, and its alternatives.
pub(super) fn split(token: Token) -> (NativeToken, Vec<NativeToken>) {
    let native = |top: TopToken| NativeToken {
        id: top.id,
        text: top.text,
        logprob: top.logprob,
        special: top.special,
    };
    let top_tokens = token.top_tokens.into_iter().map(native).collect();
    let token = NativeToken {
        id: token.id,
        text: token.text,
        logprob: token.logprob,
        special: token.special,
    };
    (token, top_tokens)
}

pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::EndToken => "eos_token",
        Finish::StopString(_) => "stop_sequence",
    }
}
