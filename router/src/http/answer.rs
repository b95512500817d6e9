//! The answer of one request on its way to a route: started, measured, and either read step by step or collected.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures::stream::{BoxStream, Stream, StreamExt};

use super::App;
use super::errors::ApiError;
use super::metrics::RequestMetrics;
use crate::generation::{GenerationStream, Progress};
use crate::output::{Finish, MessagePart, TextDelta, Token};
use crate::types::Request;

/// What happens to an answer. `Done` is the last, unless an error is.
pub enum Step {
    Progress(usize, Progress),
    Done(Usage),
}

/// What an answer took.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub num_cached_tokens: u32,
    /// Over all sequences.
    pub generated_tokens: usize,
    /// Of these, what the model thought before it answered.
    pub reasoning_tokens: usize,
    pub total: Duration,
    pub validation: Duration,
    pub queue: Duration,
    pub inference: Duration,
}

impl Usage {
    /// Of requests that ran side by side.
    pub fn add(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.num_cached_tokens += other.num_cached_tokens;
        self.generated_tokens += other.generated_tokens;
        self.reasoning_tokens += other.reasoning_tokens;
        self.total = self.total.max(other.total);
        self.validation = self.validation.max(other.validation);
        self.queue = self.queue.max(other.queue);
        self.inference = self.inference.max(other.inference);
    }
}

pub struct Answer {
    pub prompt_ids: Arc<[u32]>,
    pub prompt_chars: usize,
    pub seeds: Vec<Option<u64>>,
    pub steps: BoxStream<'static, Result<Step, ApiError>>,
}

/// Starts a request and its measurements. Dropping the answer cancels it.
pub async fn start(app: &App, request: Request) -> Result<Answer, ApiError> {
    let mut metrics = RequestMetrics::started(&app.tenant);
    match app.generator.generate(&app.tenant, request).await {
        Ok(stream) => {
            metrics.accepted(&stream);
            Ok(Answer {
                prompt_ids: stream.prompt_ids.clone(),
                prompt_chars: stream.prompt_chars,
                seeds: stream.seeds.clone(),
                steps: Running::new(stream, metrics).boxed(),
            })
        }
        Err(error) => {
            let error = ApiError::from(error);
            metrics.failed(&error);
            Err(error)
        }
    }
}

struct Running {
    stream: GenerationStream,
    metrics: RequestMetrics,
    started: Instant,
    admitted: Option<Instant>,
    usage: Usage,
    ended: bool,
}

impl Running {
    fn new(stream: GenerationStream, metrics: RequestMetrics) -> Self {
        Self {
            started: stream.submitted_at - stream.validation_time,
            admitted: None,
            usage: Usage {
                prompt_tokens: stream.prompt_ids.len(),
                validation: stream.validation_time,
                ..Usage::default()
            },
            stream,
            metrics,
            ended: false,
        }
    }

    fn saw(&mut self, idx: usize, progress: &Progress) {
        match progress {
            Progress::Admitted {
                at,
                num_cached_tokens,
            } => {
                self.admitted.get_or_insert(*at);
                self.usage.num_cached_tokens = self.usage.num_cached_tokens.max(*num_cached_tokens);
            }
            Progress::Text(delta) => {
                self.usage.generated_tokens += 1;
                self.usage.reasoning_tokens += usize::from(delta.reasoning);
                self.metrics.token(idx);
            }
            Progress::PromptLogprobs(_) => {}
        }
    }

    fn finished(&mut self) -> Usage {
        let submitted = self.stream.submitted_at;
        let admitted = self.admitted.unwrap_or(submitted);
        self.usage.total = self.started.elapsed();
        self.usage.queue = admitted.saturating_duration_since(submitted);
        self.usage.inference = admitted.elapsed();
        self.metrics.succeeded(&self.usage);
        self.usage.clone()
    }
}

impl Stream for Running {
    type Item = Result<Step, ApiError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let step = match ready!(this.stream.poll_next(context)) {
            Some(Ok((idx, progress))) => {
                this.saw(idx, &progress);
                return Poll::Ready(Some(Ok(Step::Progress(idx, progress))));
            }
            Some(Err(error)) => {
                let error = ApiError::from(error);
                this.metrics.failed(&error);
                Err(error)
            }
            None => Ok(Step::Done(this.finished())),
        };
        this.ended = true;
        Poll::Ready(Some(step))
    }
}

/// A whole answer.
pub struct Collected {
    pub sequences: Vec<CollectedSequence>,
    pub prompt_ids: Arc<[u32]>,
    /// Of prompt tokens 1.., where they were asked for.
    pub prompt_logprobs: Vec<f32>,
    pub prompt_chars: usize,
    pub usage: Usage,
}

pub struct CollectedSequence {
    pub text: String,
    /// The same text as a message.
    pub message: Message,
    pub tokens: Vec<Token>,
    pub finish: Finish,
    pub seed: Option<u64>,
}

/// What a model says to a chat, whole.
#[derive(Default)]
pub struct Message {
    pub content: String,
    pub reasoning: String,
    pub calls: Vec<Call>,
}

/// A call of a tool.
pub struct Call {
    pub name: String,
    /// JSON text of an object, unless the answer was cut off.
    pub arguments: String,
}

impl Message {
    fn push(&mut self, part: MessagePart) {
        match part {
            MessagePart::Content(text) => self.content.push_str(&text),
            MessagePart::Reasoning(text) => self.reasoning.push_str(&text),
            MessagePart::CallStart { name, .. } => self.calls.push(Call {
                name,
                arguments: String::new(),
            }),
            MessagePart::CallArguments { call_idx, text } => {
                if let Some(call) = self.calls.get_mut(call_idx) {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}

impl CollectedSequence {
    fn push(&mut self, delta: TextDelta) {
        self.text.push_str(&delta.text);
        for part in delta.parts {
            self.message.push(part);
        }
        self.tokens.push(delta.token);
        self.finish = delta.finish.unwrap_or(self.finish);
    }

    /// Decides which of several sequences is the best.
    pub fn mean_logprob(&self) -> f32 {
        let sum: f32 = self.tokens.iter().map(|token| token.logprob).sum();
        sum / self.tokens.len().max(1) as f32
    }
}

impl Answer {
    pub async fn collect(mut self) -> Result<Collected, ApiError> {
        let empty = |seed: &Option<u64>| CollectedSequence {
            text: String::new(),
            message: Message::default(),
            tokens: Vec::new(),
            finish: Finish::Length,
            seed: *seed,
        };
        let mut collected = Collected {
            sequences: self.seeds.iter().map(empty).collect(),
            prompt_ids: self.prompt_ids,
            prompt_logprobs: Vec::new(),
            prompt_chars: self.prompt_chars,
            usage: Usage::default(),
        };
        while let Some(step) = self.steps.next().await {
            match step? {
                Step::Progress(idx, Progress::Text(delta)) => collected.sequences[idx].push(delta),
                Step::Progress(0, Progress::PromptLogprobs(logprobs)) => {
                    collected.prompt_logprobs = logprobs;
                }
                Step::Progress(..) => {}
                Step::Done(usage) => collected.usage = usage,
            }
        }
        Ok(collected)
    }
}

/// Headers that an answer has before it is known.
pub fn early_headers(app: &App, prompt_chars: usize) -> HeaderMap {
    let compute_type = match app.info.device.as_str() {
        "cuda" => "gpu+optimized",
        _ => "cpu+optimized",
    };
    let mut headers = HeaderMap::new();
    headers.insert(
        HeaderName::from_static("x-compute-type"),
        HeaderValue::from_static(compute_type),
    );
    insert(&mut headers, "x-compute-characters", prompt_chars);
    headers
}

/// Headers of a whole answer: counts, and times in milliseconds.
pub fn headers(app: &App, prompt_chars: usize, usage: &Usage) -> HeaderMap {
    let mut headers = early_headers(app, prompt_chars);
    let generated = usage.generated_tokens;
    insert(&mut headers, "x-prompt-tokens", usage.prompt_tokens);
    insert(&mut headers, "x-generated-tokens", generated);
    let per_token = usage.inference.as_millis() / generated.max(1) as u128;
    insert(&mut headers, "x-total-time", usage.total.as_millis());
    insert(
        &mut headers,
        "x-validation-time",
        usage.validation.as_millis(),
    );
    insert(&mut headers, "x-queue-time", usage.queue.as_millis());
    insert(
        &mut headers,
        "x-inference-time",
        usage.inference.as_millis(),
    );
    insert(&mut headers, "x-time-per-token", per_token);
    headers
}

/// `x-compute-time`, in seconds. The completions route never had it.
pub fn insert_compute_time(headers: &mut HeaderMap, usage: &Usage) {
    insert(headers, "x-compute-time", usage.total.as_secs_f64());
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: impl ToString) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
