//! The road of one request, straight through: validate, submit, turn tokens into text. Read this file first.
//!
//! Down once, up once: nothing re-enters a stage. Dropping a `GenerationStream` cancels its sequences and gives back its permits;
//! a sequence whose text ended at a stop string is cancelled the same way.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::engine::{EngineError, EngineHandle, TokenEvent, TokenStream};
use crate::grammar::GrammarError;
use crate::input::{InputError, ValidationError, Validator};
use crate::output::{SequenceText, TextDelta};
use crate::tokenizer::{TokenSpan, Tokenizer};
use crate::types::{Limits, Prompt, Request, Tenant};

/// Why a request failed, before or while it was answered.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("Model is overloaded")]
    Overloaded,
    #[error("Input validation error: {0}")]
    Validation(#[from] ValidationError),
    #[error("Request failed during generation: {0}")]
    Engine(EngineError),
    #[error("Incomplete generation")]
    Incomplete,
    #[error("Internal error: {0}")]
    Internal(String),
}

/// What happens to one sequence of a request, in this order.
#[derive(Debug)]
pub enum Progress {
    Admitted {
        at: Instant,
        num_cached_tokens: u32,
    },
    /// Of prompt tokens 1.., each given the tokens before it.
    PromptLogprobs(Vec<f32>),
    /// The last one has a `finish`.
    Text(TextDelta),
}

/// The way in, cheap to clone.
#[derive(Clone)]
pub struct Generator {
    validator: Arc<Validator>,
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    permits: Arc<Semaphore>,
}

/// The progress of all sequences of a request, as it happens. It ends after the last text of the last sequence, or with an error.
pub struct GenerationStream {
    pub prompt_ids: Arc<[u32]>,
    pub prompt_chars: usize,
    pub max_new_tokens: u32,
    /// By sequence; `None` where nothing is drawn.
    pub seeds: Vec<Option<u64>>,
    pub validation_time: Duration,
    pub submitted_at: Instant,
    /// Those that have not ended.
    sequences: Vec<RunningSequence>,
    /// The next one that is asked first.
    turn: usize,
    _permits: OwnedSemaphorePermit,
}

/// One sequence from its tokens to its text.
struct RunningSequence {
    idx: usize,
    tokens: TokenStream,
    text: SequenceText,
}

impl Generator {
    /// `vocab_size` is the model's: every token id that reaches the engine is below it.
    pub fn new(
        engine: EngineHandle,
        tokenizer: Arc<Tokenizer>,
        limits: Limits,
        vocab_size: u32,
    ) -> Self {
        let permits = limits.max_concurrent_requests.min(Semaphore::MAX_PERMITS);
        Self {
            validator: Arc::new(Validator::new(tokenizer.clone(), limits, vocab_size)),
            engine,
            tokenizer,
            permits: Arc::new(Semaphore::new(permits)),
        }
    }

    /// Makes ready what a first grammar would wait for, on a thread of its own.
    pub fn prepare_grammars(&self) {
        let validator = self.validator.clone();
        let preparation = move || validator.prepare_grammars();
        let thread = thread::Builder::new().name("grammar".to_owned());
        if let Err(error) = thread.spawn(preparation) {
            tracing::debug!("no thread prepares grammars: {error}");
        }
    }

    /// Starts a tenant's request. Refused at once when as many sequences are running as the server allows.
    pub async fn generate(
        &self,
        tenant: &Tenant,
        request: Request,
    ) -> Result<GenerationStream, GenerateError> {
        let started = Instant::now();
        let num_sequences = self.validator.num_sequences(&request)?;
        let permits = self.acquire(num_sequences)?;
        let mut valid = self.validator.validate(request).await?;
        let validation_time = started.elapsed();

        let submitted_at = Instant::now();
        let mut sequences = Vec::with_capacity(valid.num_sequences);
        for idx in 0..valid.num_sequences {
            let sequence = valid.sequence(idx, tenant.cache_salt);
            let tokens = self.engine.submit(sequence, valid.take_constraint(idx))?;
            let stop = valid.stop.clone();
            let tokenizer = self.tokenizer.clone();
            let format = valid.message_format.clone();
            let keep = valid.keep_stop_text;
            let text = SequenceText::new(tokenizer, &valid.prompt_ids, stop, keep, format);
            sequences.push(RunningSequence { idx, tokens, text });
        }
        Ok(GenerationStream {
            seeds: (0..valid.num_sequences)
                .map(|idx| valid.seed(idx))
                .collect(),
            prompt_ids: valid.prompt_ids,
            prompt_chars: valid.prompt_chars,
            max_new_tokens: valid.max_new_tokens,
            validation_time,
            submitted_at,
            sequences,
            turn: 0,
            _permits: permits,
        })
    }

    /// The text that is tokenized for a prompt, and its tokens.
    pub async fn tokenize(
        &self,
        prompt: Prompt,
    ) -> Result<(String, Vec<TokenSpan>), GenerateError> {
        Ok(self.validator.tokenize(prompt).await?)
    }

    /// The text of tokens.
    pub async fn detokenize(
        &self,
        ids: Vec<u64>,
        skip_special_tokens: bool,
    ) -> Result<String, GenerateError> {
        let text = self.validator.detokenize(ids, skip_special_tokens);
        Ok(text.await?)
    }

    /// Why an accepted request would not be answered, as far as is known; `None` where it would.
    pub fn trouble(&self) -> Option<String> {
        if let Some(end) = self.engine.stopped() {
            return Some(end.to_string());
        }
        let progress = self.engine.progress();
        let waiting = progress.waiting_for();
        let seconds = waiting.as_secs();
        (waiting > progress.patience()).then(|| format!("a step has been running for {seconds} s"))
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn acquire(&self, num_sequences: usize) -> Result<OwnedSemaphorePermit, GenerateError> {
        let permits = u32::try_from(num_sequences).unwrap_or(u32::MAX);
        let acquired = self.permits.clone().try_acquire_many_owned(permits);
        acquired.map_err(|_| GenerateError::Overloaded)
    }
}

impl GenerationStream {
    /// The next progress of any sequence; `None` after the last. An error of one sequence ends the request.
    pub async fn next(&mut self) -> Option<Result<(usize, Progress), GenerateError>> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As `next`. The sequences take turns.
    pub fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<(usize, Progress), GenerateError>>> {
        let num_sequences = self.sequences.len();
        if num_sequences == 0 {
            return Poll::Ready(None);
        }
        for _ in 0..num_sequences {
            self.turn %= num_sequences;
            let at = self.turn;
            self.turn += 1;
            let sequence = &mut self.sequences[at];
            if let Poll::Ready(progress) = sequence.poll_next(context) {
                let idx = sequence.idx;
                match &progress {
                    Ok(Progress::Text(delta)) if delta.finish.is_some() => {
                        self.sequences.remove(at);
                    }
                    Ok(_) => {}
                    Err(_) => self.sequences.clear(),
                }
                return Poll::Ready(Some(progress.map(|progress| (idx, progress))));
            }
        }
        Poll::Pending
    }
}

impl RunningSequence {
    /// After the last text there must be no other call. Drop it then, which cancels the sequence if it goes on.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Progress, GenerateError>> {
        self.tokens.poll_next(context).map(|event| match event {
            None => Err(GenerateError::Incomplete),
            Some(TokenEvent::Failed(error)) => Err(error.into()),
            Some(TokenEvent::Admitted {
                at,
                num_cached_tokens,
            }) => Ok(Progress::Admitted {
                at,
                num_cached_tokens,
            }),
            Some(TokenEvent::PromptLogprobs(logprobs)) => Ok(Progress::PromptLogprobs(logprobs)),
            Some(TokenEvent::Token {
                token,
                finish_reason,
            }) => Ok(Progress::Text(self.text.push(token, finish_reason))),
        })
    }
}

impl From<InputError> for GenerateError {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Invalid(ValidationError::Grammar(GrammarError::Busy)) => Self::Overloaded,
            InputError::Invalid(error) => Self::Validation(error),
            InputError::Panicked => Self::Internal(error.to_string()),
        }
    }
}

impl From<EngineError> for GenerateError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::QueueFull => Self::Overloaded,
            EngineError::TooLong { .. } => {
                Self::Validation(ValidationError::Invalid(error.to_string()))
            }
            other => Self::Engine(other),
        }
    }
}

#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
