//! What the scheduler and the shards tell each other, as plain data: `StepPlan` down, `StepResult` up.
//! `proto/shard.proto` is the same contract on the wire; the shard client translates between the two.

use std::sync::Arc;

/// Each step with prefill has room for so many prefill tokens, or for `max_batch_prefill_tokens` where these are fewer, however long they take.
pub const MIN_PREFILL_TOKENS: u32 = 8;

/// A vocabulary index.
pub type TokenId = u32;

/// One generation of the engine. A request with `n` completions has `n` sequences. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// A unit of KV memory, `block_size` tokens long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// How the next token is chosen. The scheduler carries it and never looks inside. Fields and units as in `shard.proto`.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParameters {
    /// False: take the most likely token; temperature and the filters are then unused.
    pub do_sample: bool,
    pub temperature: f32,
    /// 0 = off.
    pub top_k: u32,
    /// 1 = off.
    pub top_p: f32,
    /// 1 = off.
    pub typical_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// Every draw is a function of (seed, position).
    pub seed: u64,
    /// 1 = off.
    pub repetition_penalty: f32,
    /// 0 = off.
    pub frequency_penalty: f32,
    /// 0 = off.
    pub presence_penalty: f32,
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Until that many tokens were generated, `end_token_ids` cannot be sampled.
    pub min_new_tokens: u32,
    pub end_token_ids: Vec<TokenId>,
    /// Alternatives returned with each token.
    pub num_top_tokens: u32,
    /// Return the log-probability of every prompt token.
    pub prompt_logprobs: bool,
    /// Share of the vocabulary that is green, in (0, 1) where there is a watermark.
    pub watermark_gamma: f32,
    /// Added to the logits of green tokens; 0 = no watermark.
    pub watermark_delta: f32,
}

impl Default for SamplingParameters {
    /// Greedy, nothing penalised, no extras.
    fn default() -> Self {
        Self {
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            typical_p: 1.0,
            min_p: 0.0,
            seed: 0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            min_new_tokens: 0,
            end_token_ids: Vec::new(),
            num_top_tokens: 0,
            prompt_logprobs: false,
            watermark_gamma: 0.0,
            watermark_delta: 0.0,
        }
    }
}

/// One schedule, one forward on all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    pub step_id: u64,
    /// Ids the shards drop before anything else; an id can be forgotten and new in the same plan.
    pub forget: Vec<SequenceId>,
    /// Sequences that the shards do not know: first admitted, or admitted again after a preemption.
    pub new_sequences: Vec<NewSequence>,
    /// The sequences of this step in batch order, new ones included. Empty: the plan only forgets.
    pub rows: Vec<Row>,
}

/// A sequence in full.
#[derive(Clone, Debug, PartialEq)]
pub struct NewSequence {
    pub sequence_id: SequenceId,
    /// The prompt, and what was generated before a preemption.
    pub token_ids: Vec<TokenId>,
    /// Leading tokens that are prompt.
    pub prompt_len: u32,
    /// Leading tokens found in the prefix cache.
    pub num_cached_tokens: u32,
    pub sampling: Arc<SamplingParameters>,
}

/// One sequence's part of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub sequence_id: SequenceId,
    /// Tokens computed in this step, at least 1.
    pub num_scheduled_tokens: u32,
    /// Appended to the sequence's block table; for a new sequence the cached blocks come first.
    pub new_block_ids: Vec<BlockId>,
    /// The step leaves no known token uncomputed, so a token is sampled.
    pub samples: bool,
}

/// What a step produced.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    pub step_id: u64,
    pub rows: Vec<RowResult>,
}

/// A row that sampled a token, failed, or returned prompt log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct RowResult {
    pub sequence_id: SequenceId,
    /// `None`: the step did not reach the end of the known tokens.
    pub outcome: Option<RowOutcome>,
    /// Of the prompt tokens computed in this step; position 0 has none.
    pub prompt_logprobs: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RowOutcome {
    Token(SampledToken),
    Error(RowError),
}

#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    pub token_id: TokenId,
    pub logprob: f32,
    /// Most likely first.
    pub top_tokens: Vec<(TokenId, f32)>,
}

/// Why one row could not be sampled while the others were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowError {
    /// The logits held NaN or infinity.
    Numerical,
}
