//! `/v1/completions`: one or several prompts, as text or as tokens, in OpenAI's shapes as TGI wrote them. Choices are numbered prompt
//! by prompt.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::answer::{self, Answer, Collected, CollectedSequence};
use super::body::{JsonBody, LogitBias, Object, OneOrMany};
use super::errors::ApiError;
use super::openai::{self, Identity, SYSTEM_FINGERPRINT, Usage};
use super::{App, Ready, completion_stream, metrics};
use crate::input::ValidationError;
use crate::output::{Finish, Token};
use crate::types::{Parameters, Prompt, Request};

#[derive(Deserialize)]
pub struct CompletionBody {
    prompt: Prompts,
    model: Option<String>,
    max_tokens: Option<u32>,
    min_tokens: Option<u32>,
    ignore_eos: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i32>,
    min_p: Option<f64>,
    n: Option<u32>,
    best_of: Option<u32>,
    stream: Option<bool>,
    logprobs: Option<u32>,
    echo: Option<bool>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u64>>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    logit_bias: Option<LogitBias>,
    seed: Option<u64>,
    suffix: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum TypedPrompts {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

#[derive(Clone, Deserialize)]
#[serde(try_from = "TypedPrompts")]
struct Prompts(Vec<OnePrompt>);

#[derive(Clone)]
enum OnePrompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl TryFrom<TypedPrompts> for Prompts {
    type Error = &'static str;

    fn try_from(typed: TypedPrompts) -> Result<Self, Self::Error> {
        let prompts: Vec<OnePrompt> = match typed {
            TypedPrompts::Text(text) => vec![OnePrompt::Text(text)],
            TypedPrompts::Tokens(ids) if ids.is_empty() => Vec::new(),
            TypedPrompts::Tokens(ids) => vec![OnePrompt::Tokens(ids)],
            TypedPrompts::Texts(texts) => texts.into_iter().map(OnePrompt::Text).collect(),
            TypedPrompts::TokenLists(lists) => lists.into_iter().map(OnePrompt::Tokens).collect(),
        };
        if prompts.is_empty() {
            return Err("Empty array detected. Do not use an empty array for the prompt.");
        }
        Ok(Self(prompts))
    }
}

pub async fn completions(
    Ready(app): Ready,
    JsonBody(Object(body)): JsonBody<Object<CompletionBody>>,
) -> Response {
    respond(&app, body).await
}

pub(super) async fn respond(app: &App, mut body: CompletionBody) -> Response {
    if let Err(error) = check(app, &body) {
        return metrics::refused(error).into_response();
    }
    let form = Form {
        identity: Identity::new(app, "cmpl", body.model.take()),
        n: body.n.unwrap_or(1) as usize,
        logprobs: body.logprobs.is_some(),
        echo: body.echo.unwrap_or(false),
    };
    let streamed = body.stream.unwrap_or(false);
    let requests = requests(app, body, streamed).map_err(metrics::refused);
    if streamed {
        return completion_stream::stream(app, form, requests).await;
    }
    match whole(app, form, requests).await {
        Ok((headers, completion)) => (headers, Json(completion)).into_response(),
        Err(error) => error.into_response(),
    }
}

/// What is refused with a plain answer even where a stream was asked for.
fn check(app: &App, body: &CompletionBody) -> Result<(), ApiError> {
    if body.suffix.is_some() {
        return Err(ApiError::refused(
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
            "suffix not supported",
        ));
    }
    let max = app.limits.max_client_batch_size;
    if body.prompt.0.len() > max {
        return Err(ApiError::refused(
            format!("Number of prompts exceeds the maximum allowed batch size of {max}"),
            "batch size exceeded",
        ));
    }
    Ok(())
}

pub(super) struct Form {
    pub identity: Identity,
    /// Choices of each prompt.
    pub n: usize,
    pub logprobs: bool,
    pub echo: bool,
}

/// A prompt's request, and the text that `echo` puts before its answers.
pub(super) struct PromptRequest {
    request: Request,
    echoed: String,
}

fn requests(
    app: &App,
    body: CompletionBody,
    streamed: bool,
) -> Result<Vec<PromptRequest>, ValidationError> {
    let n = body.n.unwrap_or(1);
    let best_of = body.best_of.unwrap_or(n);
    if best_of < n {
        let reason = format!("`best_of` must be >= `n`, {n}. Given: {best_of}");
        return Err(ValidationError::Invalid(reason));
    }
    let max = app.limits.max_best_of;
    if best_of > n && best_of as usize > max {
        let given = u64::from(best_of);
        return Err(ValidationError::BestOf { max, given });
    }
    if streamed && best_of > n {
        return Err(ValidationError::BestOfStreamed);
    }
    let prompt_logprobs = body.echo.unwrap_or(false) && body.logprobs.is_some();
    if prompt_logprobs && !app.limits.enable_prefill_logprobs {
        let reason = "`echo` with `logprobs` needs a server with --enable-prefill-logprobs";
        return Err(ValidationError::Invalid(reason.to_owned()));
    }
    let echo = body.echo.unwrap_or(false);
    let (mode, temperature) = openai::sampling(body.temperature);
    let parameters = Parameters {
        mode,
        temperature,
        top_k: body.top_k.map(i64::from),
        top_p: body.top_p,
        typical_p: None,
        min_p: body.min_p,
        repetition_penalty: body.repetition_penalty,
        frequency_penalty: body.frequency_penalty,
        presence_penalty: body.presence_penalty,
        logit_bias: body
            .logit_bias
            .map_or(Ok(Vec::new()), LogitBias::into_entries)?,
        seed: body.seed,
        best_of: None,
        n: Some(u64::from(best_of)),
        max_new_tokens: body.max_tokens.map(u64::from),
        min_new_tokens: body.min_tokens.map(u64::from),
        ignore_eos: body.ignore_eos.unwrap_or(false),
        stop: body.stop.map(OneOrMany::into_list).unwrap_or_default(),
        stop_token_ids: body.stop_token_ids.unwrap_or_default(),
        truncate: None,
        top_n_tokens: body.logprobs.map(u64::from),
        prompt_logprobs,
        watermark: false,
    };
    let request = |prompt: OnePrompt| PromptRequest {
        echoed: match &prompt {
            _ if !echo => String::new(),
            OnePrompt::Text(text) => text.clone(),
            OnePrompt::Tokens(ids) => app.generator.tokenizer().decode(ids, false),
        },
        request: Request {
            prompt: match prompt {
                OnePrompt::Text(text) => Prompt::Text(text),
                OnePrompt::Tokens(ids) => Prompt::TokenIds(ids),
            },
            streamed,
            keep_stop_text: false,
            parameters: parameters.clone(),
            grammar: None,
        },
    };
    Ok(body.prompt.0.into_iter().map(request).collect())
}

/// Starts every prompt; if one is refused, those before it are cancelled.
pub(super) async fn start(
    app: &App,
    requests: Result<Vec<PromptRequest>, ApiError>,
) -> Result<Vec<(Answer, String)>, ApiError> {
    let mut answers = Vec::new();
    for prompt in requests? {
        answers.push((answer::start(app, prompt.request).await?, prompt.echoed));
    }
    Ok(answers)
}

#[derive(Serialize)]
struct Completion {
    object: &'static str,
    id: String,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
    choices: Vec<Choice<&'static str>>,
    usage: Usage,
}

#[derive(Serialize)]
pub(super) struct Choice<Reason> {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Reason,
}

#[derive(Default, Serialize)]
pub(super) struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// In characters of the choice's text.
    text_offset: Vec<usize>,
}

impl Logprobs {
    pub fn push(&mut self, token: Token, offset: &mut usize) {
        let top = token.top_tokens.into_iter();
        self.text_offset.push(*offset);
        *offset += token.text.chars().count();
        self.tokens.push(token.text);
        self.token_logprobs.push(Some(token.logprob));
        self.top_logprobs
            .push(Some(top.map(|top| (top.text, top.logprob)).collect()));
    }

    /// The echoed prompt. Its first token has no log-probability.
    fn push_prompt(&mut self, app: &App, collected: &Collected, offset: &mut usize) {
        for (idx, id) in collected.prompt_ids.iter().enumerate() {
            let text = app.generator.tokenizer().decode(&[*id], false);
            let logprob = idx.checked_sub(1);
            self.text_offset.push(*offset);
            *offset += text.chars().count();
            self.tokens.push(text);
            self.token_logprobs
                .push(logprob.and_then(|idx| collected.prompt_logprobs.get(idx).copied()));
            self.top_logprobs.push(None);
        }
    }
}

async fn whole(
    app: &App,
    form: Form,
    requests: Result<Vec<PromptRequest>, ApiError>,
) -> Result<(HeaderMap, Completion), ApiError> {
    let answers = start(app, requests).await?;
    let collecting = answers.into_iter().map(|(answer, echoed)| async move {
        Ok::<_, ApiError>((answer.collect().await?, echoed))
    });
    let collected = futures::future::try_join_all(collecting).await?;
    let mut choices = Vec::new();
    let mut usage = answer::Usage::default();
    let mut prompt_chars = 0;
    for (prompt_idx, (mut collected, echoed)) in collected.into_iter().enumerate() {
        usage.add(&collected.usage);
        prompt_chars += collected.prompt_chars;
        let sequences = keep_best(std::mem::take(&mut collected.sequences), form.n);
        for (idx, sequence) in sequences.into_iter().enumerate() {
            let logprobs = form.logprobs.then(|| {
                let mut logprobs = Logprobs::default();
                let mut offset = 0;
                if form.echo {
                    logprobs.push_prompt(app, &collected, &mut offset);
                }
                for token in visible(sequence.tokens, sequence.finish) {
                    logprobs.push(token, &mut offset);
                }
                logprobs
            });
            choices.push(Choice {
                index: prompt_idx * form.n + idx,
                text: format!("{echoed}{}", sequence.text),
                logprobs,
                finish_reason: openai::finish_reason(sequence.finish),
            });
        }
    }
    let completion = Completion {
        object: "text_completion",
        id: form.identity.id,
        created: form.identity.created,
        model: form.identity.model,
        system_fingerprint: SYSTEM_FINGERPRINT,
        choices,
        usage: Usage::new(&usage),
    };
    Ok((answer::headers(app, prompt_chars, &usage), completion))
}

/// The `n` sequences whose tokens were likeliest on average; all of them in their order if there are not more.
fn keep_best(mut sequences: Vec<CollectedSequence>, n: usize) -> Vec<CollectedSequence> {
    if sequences.len() > n {
        sequences.sort_by(|left, right| right.mean_logprob().total_cmp(&left.mean_logprob()));
        sequences.truncate(n);
    }
    sequences
}

/// Without the token that ended the text.
fn visible(mut tokens: Vec<Token>, finish: Finish) -> Vec<Token> {
    if finish == Finish::EndToken {
        tokens.pop();
    }
    tokens
}
