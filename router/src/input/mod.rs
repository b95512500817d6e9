//! From what a client typed to what the engine may run. A `ValidRequest` can only be made here, so nothing unchecked reaches the
//! engine. Templates and tokenization run on blocking threads, at most `validation_workers` at a time.

pub mod chat_template;
mod error;
mod parameters;
mod prompt;
mod python;
mod template_traits;
mod tool_prompt;
mod typed;

pub use error::ValidationError;

use std::sync::Arc;

use scheduler::SequenceSpec;
use scheduler::plan::SamplingParameters;
use tokio::sync::Semaphore;

use crate::grammar::{Constraint, GrammarCompiler, ReasoningBudget};
use crate::tokenizer::{TokenSpan, Tokenizer};
use crate::types::message_format::MessageFormat;
use crate::types::{Grammar, Limits, Prompt, Request, ToolUse};
use chat_template::ChatTemplates;
use prompt::Rendered;

/// A request that passed every check.
#[derive(Debug)]
pub struct ValidRequest {
    pub prompt_ids: Arc<[u32]>,
    /// Characters of the prompt's text; its tokens where it came as tokens.
    pub prompt_chars: usize,
    pub num_sequences: usize,
    pub max_new_tokens: u32,
    pub stop: Vec<String>,
    pub keep_stop_text: bool,
    /// How the answer's text becomes a message.
    pub message_format: MessageFormat,
    constraint: Option<Constraint>,
    end_token_ids: Vec<u32>,
    /// Of the first sequence; the others count its seed up.
    sampling: SamplingParameters,
}

impl ValidRequest {
    /// The seed that sequence uses; `None` if it does not draw.
    pub fn seed(&self, sequence_idx: usize) -> Option<u64> {
        let seed = self.sampling.seed.wrapping_add(sequence_idx as u64);
        self.sampling.do_sample.then_some(seed)
    }

    /// What the tokens of a sequence must obey, from their beginning. The last sequence gets the one that was compiled.
    pub fn take_constraint(&mut self, sequence_idx: usize) -> Option<Constraint> {
        if sequence_idx + 1 == self.num_sequences {
            return self.constraint.take();
        }
        let compiled = self.constraint.as_ref();
        compiled.map(Constraint::for_another_sequence)
    }

    /// `cache_salt` is the tenant's.
    pub fn sequence(&self, sequence_idx: usize, cache_salt: u64) -> SequenceSpec {
        let sampling = SamplingParameters {
            seed: self.sampling.seed.wrapping_add(sequence_idx as u64),
            ..self.sampling.clone()
        };
        SequenceSpec {
            prompt: self.prompt_ids.to_vec(),
            max_new_tokens: self.max_new_tokens,
            end_token_ids: self.end_token_ids.clone(),
            cache_salt,
            read_prefix_cache: !sampling.prompt_logprobs,
            sampling: Arc::new(sampling),
        }
    }
}

/// Why a request did not become a `ValidRequest`.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Invalid(#[from] ValidationError),
    #[error("validation failed unexpectedly")]
    Panicked,
}

pub struct Validator {
    tokenizer: Arc<Tokenizer>,
    templates: ChatTemplates,
    grammars: GrammarCompiler,
    limits: Limits,
    vocab_size: u32,
    workers: Arc<Semaphore>,
}

impl Validator {
    /// `vocab_size` is the model's: every token id that leaves here is below it.
    pub fn new(tokenizer: Arc<Tokenizer>, limits: Limits, vocab_size: u32) -> Self {
        Self {
            grammars: GrammarCompiler::new(tokenizer.clone(), vocab_size),
            templates: ChatTemplates::new(tokenizer.chat_templates(), tokenizer.special_names()),
            tokenizer,
            limits,
            vocab_size,
            workers: Arc::new(Semaphore::new(limits.validation_workers.max(1))),
        }
    }

    /// Makes ready what a first grammar would wait for. Takes a while.
    pub fn prepare_grammars(&self) {
        if self.limits.grammar_support {
            self.grammars.prepare();
        }
    }

    /// How many sequences the request needs. Cheap, and checked before anything else is paid that many times.
    pub fn num_sequences(&self, request: &Request) -> Result<usize, ValidationError> {
        parameters::num_sequences(request, &self.limits)
    }

    pub async fn validate(self: &Arc<Self>, request: Request) -> Result<ValidRequest, InputError> {
        let validator = self.clone();
        self.on_worker(move || validator.validate_now(request))
            .await
    }

    /// The text that is tokenized for a prompt, and its tokens. No limit but the payload's applies.
    pub async fn tokenize(
        self: &Arc<Self>,
        prompt: Prompt,
    ) -> Result<(String, Vec<TokenSpan>), InputError> {
        let validator = self.clone();
        self.on_worker(move || validator.tokenize_now(prompt)).await
    }

    /// The text of tokens. No limit but the payload's applies.
    pub async fn detokenize(
        self: &Arc<Self>,
        ids: Vec<u64>,
        skip_special_tokens: bool,
    ) -> Result<String, InputError> {
        let validator = self.clone();
        self.on_worker(move || validator.detokenize_now(&ids, skip_special_tokens))
            .await
    }

    async fn on_worker<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ValidationError> + Send + 'static,
    ) -> Result<T, InputError> {
        let permit = self.workers.clone().acquire_owned().await;
        let result = tokio::task::spawn_blocking(move || {
            let _held_until_done = permit;
            work()
        });
        match result.await {
            Ok(result) => Ok(result?),
            Err(_panic) => Err(InputError::Panicked),
        }
    }

    fn validate_now(&self, request: Request) -> Result<ValidRequest, ValidationError> {
        let limits = &self.limits;
        let end_token_ids = self.tokenizer.end_token_ids();
        let mut checked = parameters::check(&request, limits, self.vocab_size, end_token_ids)?;
        let tools = request.prompt.tools().cloned();
        let reasoning_budget = request.prompt.reasoning_budget();
        let mut message_format = MessageFormat::default();
        let (prompt_ids, prompt_chars) = match self.render(request.prompt)? {
            Rendered::TokenIds(ids) => {
                let ids = prompt::check_ids(ids, checked.truncate, self.vocab_size)?;
                let len = ids.len();
                (ids, len)
            }
            Rendered::Text(text) => {
                let ids = prompt::tokenize(&text, checked.truncate, &self.tokenizer, limits)?;
                message_format = text.message_format;
                (ids, text.text.chars().count())
            }
        };
        let max_new_tokens = prompt::check_lengths(prompt_ids.len(), &checked, limits)?;
        let constraint =
            self.constraint(request.grammar.as_ref(), tools.as_ref(), &message_format)?;
        // `check_lengths` saw that it is not above `max_new_tokens`.
        let min_new_tokens = checked.min_new_tokens as u32;
        let constraint = match constraint {
            // The grammar has the last word: it may leave nothing but an end token.
            Some(constraint) => Some(constraint.with_min_new_tokens(min_new_tokens)?),
            None => {
                checked.sampling.min_new_tokens = min_new_tokens;
                None
            }
        };
        let budget = reasoning_budget
            .and_then(|max_tokens| self.reasoning_budget(&message_format, max_tokens));
        let constraint = match (constraint, budget) {
            (Some(constraint), Some(budget)) => Some(constraint.with_budget(budget)),
            (None, Some(budget)) => Some(Constraint::of_budget(budget)),
            (constraint, None) => constraint,
        };
        Ok(ValidRequest {
            prompt_ids: prompt_ids.into(),
            prompt_chars,
            num_sequences: checked.num_sequences,
            max_new_tokens,
            stop: checked.stop,
            keep_stop_text: request.keep_stop_text,
            message_format,
            constraint,
            end_token_ids: checked.end_token_ids,
            sampling: checked.sampling,
        })
    }

    fn constraint(
        &self,
        grammar: Option<&Grammar>,
        tools: Option<&ToolUse>,
        format: &MessageFormat,
    ) -> Result<Option<Constraint>, ValidationError> {
        Ok(Some(match (grammar, tools) {
            (None, None) => return Ok(None),
            _ if !self.limits.grammar_support => return Err(ValidationError::NoGrammars),
            (Some(grammar), None) if format.reasoning.is_none() => {
                self.grammars.compile(grammar)?
            }
            _ => self.grammars.compile_answer(format, tools, grammar)?,
        }))
    }

    /// Of a model that marks no reasoning nothing is limited.
    fn reasoning_budget(&self, format: &MessageFormat, max_tokens: u64) -> Option<ReasoningBudget> {
        let (tokenizer, vocab_size) = (self.tokenizer.clone(), self.vocab_size);
        ReasoningBudget::new(tokenizer, vocab_size, format.reasoning?, max_tokens)
    }

    fn render(&self, prompt: Prompt) -> Result<Rendered, ValidationError> {
        prompt::render(prompt, &self.templates, self.tokenizer.control())
    }

    fn tokenize_now(&self, prompt: Prompt) -> Result<(String, Vec<TokenSpan>), ValidationError> {
        match self.render(prompt)? {
            Rendered::Text(text) => {
                let spans = text.spans(&self.tokenizer)?;
                Ok((text.text, spans))
            }
            Rendered::TokenIds(_) => Err(ValidationError::Unsupported("token ids")),
        }
    }

    fn detokenize_now(
        &self,
        ids: &[u64],
        skip_special_tokens: bool,
    ) -> Result<String, ValidationError> {
        let check = |&id: &u64| parameters::check_token_id("tokens", id, self.vocab_size);
        let ids = ids.iter().map(check).collect::<Result<Vec<u32>, _>>()?;
        Ok(self.tokenizer.decode(&ids, skip_special_tokens))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod typed_tests;
