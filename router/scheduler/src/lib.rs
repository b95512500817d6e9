//! Continuous batching over paged KV blocks as a plain state machine: `add`, `cancel`, `schedule`, `apply`.
//!
//! It owns every sequence, block table, reference count, budget and the prefix cache. It has no clock, no I/O, no logging and no
//! randomness, so the same calls always give the same plans; a seeded test drives it for 100,000 operations.

pub mod plan;

use std::sync::Arc;

use plan::{RowError, SampledToken, SamplingParameters, SequenceId, StepPlan, StepResult, TokenId};

/// The budgets. All in tokens, sequences or blocks; none may be 0.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Most prefill tokens in one step, over all sequences: the prefill chunk. Decode tokens come on top, one per sequence.
    pub max_batch_prefill_tokens: u32,
    /// Most sequences in one step.
    pub max_batch_size: u32,
    /// False: never read from the prefix cache.
    pub prefix_caching: bool,
}

/// A sequence to generate.
#[derive(Clone, Debug)]
pub struct SequenceSpec {
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// At least 1.
    pub max_new_tokens: u32,
    /// Tokens that end the sequence; empty to ignore the end of text.
    pub end_token_ids: Vec<TokenId>,
    /// Blocks are shared only between sequences with the same salt (one per tenant).
    pub cache_salt: u64,
    /// False where every prompt token must be computed (prompt log-probabilities).
    pub read_prefix_cache: bool,
    pub sampling: Arc<SamplingParameters>,
}

/// Why a sequence ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// `max_new_tokens` reached.
    Length,
    /// The last token is one of `end_token_ids`. It wins over `Length`.
    EndToken,
}

/// What a step meant for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum SequenceEvent {
    /// Of the prompt tokens that the step computed.
    PromptLogprobs(SequenceId, Vec<f32>),
    /// A token; with a finish reason it is the last, and the sequence is gone.
    Token(SequenceId, SampledToken, Option<FinishReason>),
    /// The sequence ended with an error and is gone.
    Failed(SequenceId, RowError),
}
