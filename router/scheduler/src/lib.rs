//! Continuous batching over paged KV blocks as a plain state machine: `add`, `cancel`, `schedule`, `observe`, `apply`.
//!
//! It owns every sequence, block table, reference count, budget and the prefix cache. It has no clock, no I/O, no logging and no
//! randomness, so the same calls always give the same plans; a seeded test drives it for 100,000 operations.
//!
//! ```text
//!              schedule: admit                 apply: last token, error
//!   add ──▶ WAITING ─────────────▶ RUNNING ─────────────▶ gone, id goes to `forget`
//!              ▲    FIFO              │
//!              └──────────────────────┘
//!                schedule: preempt the youngest, id goes to `forget`
//!
//!   block:  free ──allocate──▶ used ──release──▶ free                    (content unknown)
//!                              used ──release──▶ cached ──evict──▶ used  (content registered; ──hit──▶ used)
//! ```
//!
//! # What always holds
//!
//! 1. **One order.** Sequences are ordered by arrival, and every running one arrived before every waiting one: admission takes the
//!    oldest waiting sequence and nobody behind it, preemption takes the youngest running one.
//! 2. **Plans may be outstanding.** `schedule` may be called again before the results of earlier plans are applied; results come in
//!    plan order. A sequence has known tokens, plus tokens sampled by outstanding plans that only the shards know yet, and
//!    `num_computed_tokens` counts what the issued plans compute. `max_new_tokens` is therefore respected ahead; an end token is learnt
//!    late, and the token of a row that was issued meanwhile is dropped.
//! 3. **Blocks are given back at once.** A shard executes plans strictly in order, so a block that is released here and given to
//!    another sequence in plan N is written by its old owner only in plans before N. Every slot is written by its new owner before it
//!    is read, in plan N or later, so the old writes are never seen.
//! 4. **A result belongs to the admission it is met in.** A preempted sequence is not admitted again before all its rows in flight were
//!    applied. Their tokens count and are reported; the blocks that they wrote are gone. Results of cancelled, failed and finished
//!    sequences are dropped.
//! 5. **Cached content is confirmed and frozen.** A block is registered in the prefix cache when it is full, all its tokens are known and
//!    the results of the steps that computed it were applied. Nobody writes to a full block, so it can be shared by reference count.
//! 6. **Capacity.** free + cached + used blocks = all blocks; a block is used exactly while a running sequence's table names it.
//!
//! # No starvation
//!
//! The oldest sequence is never preempted, because only a younger one can be taken for it and it fits in all blocks when it is
//! alone (`add` refuses longer ones). It is first in line for a row and for the prefill budget, of which `B` is the least that a plan
//! ever has (see "Pace"), so each plan that has prefill computes `B` of its tokens, or all
//! that are left. By (1), when it is still waiting nobody is running, all blocks are free or cached, and it is admitted
//! as soon as its rows in flight are applied. With at most `d` plans outstanding the oldest sequence, with a prompt of `p`
//! tokens and `m` new ones, is thus gone after at most
//!
//! ```text
//!   work(p, m) = d + 2 ceil((p + m) / B) + m + d   plans
//!                │   │                     │   └ until its last result is applied
//!                │   │                     └ one per new token
//!                │   └ recomputation of everything, if it was preempted before; twice, for the plans without prefill
//!                └ rows in flight from before its preemption
//! ```
//!
//! (plans in which it was not paused; who pauses a sequence must end that). Then the next one is the oldest. So a sequence is gone after at most the sum of `work` over itself and the sequences that
//! were there when it arrived, whatever arrives later.
//!
//! # Pace
//!
//! A step takes as long as all its rows together, so a large chunk of a prompt makes every decoding sequence wait. `observe` is told how
//! long steps took; from that follows how many prefill tokens a step may have while others decode, so that it takes less than
//! twice as long as it would without, and more only where many wait beside few that decode. With nobody decoding it takes at most sixteen times the smallest step, and with nothing observed
//! it has all of `max_batch_prefill_tokens`. It always has the smaller of that and `plan::MIN_PREFILL_TOKENS`, which is `B` above; but for one plan in seven at most, which has no
//! prefill at all, so that the time of such a step is known.

mod apply;
mod blocks;
mod lifecycle;
pub mod plan;
mod prefix_cache;
mod schedule;
mod sequence;
mod step_times;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use blocks::BlockPool;
use plan::{RowError, SampledToken, SamplingParameters, SequenceId, TokenId};
use schedule::IssuedPlan;
use sequence::Sequence;
use step_times::StepTimes;

/// The budgets. All in tokens, sequences or blocks; none may be 0.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// Most prefill tokens in one step, over all sequences. Decode tokens come on top, one per sequence.
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

/// Why a sequence was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    EmptyPrompt,
    /// `max_new_tokens` is 0.
    ZeroTokens,
    /// The id is waiting or running.
    DuplicateId(SequenceId),
    /// The prompt with `max_new_tokens` is longer than all blocks together, both in tokens.
    TooLong {
        tokens: usize,
        capacity: usize,
    },
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyPrompt => write!(f, "the prompt has no token"),
            Self::ZeroTokens => write!(f, "max_new_tokens is 0, and must be at least 1"),
            Self::DuplicateId(id) => write!(f, "sequence {} is already waiting or running", id.0),
            Self::TooLong { tokens, capacity } => write!(
                f,
                "a sequence of {tokens} tokens cannot fit in the KV cache of {capacity} tokens"
            ),
        }
    }
}

impl std::error::Error for AddError {}

/// How a result contradicts its plan. The scheduler is unchanged, but the shard that sent it cannot be trusted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// Not the oldest outstanding step; `None`: no step is outstanding.
    UnexpectedStep { step_id: u64, expected: Option<u64> },
    /// Not a row of the plan, there twice, or not in row order.
    UnexpectedRow {
        step_id: u64,
        sequence_id: SequenceId,
    },
    /// The row reached the end of its tokens, and has neither a token nor an error.
    MissingToken {
        step_id: u64,
        sequence_id: SequenceId,
    },
    /// The row did not reach the end of its tokens, and has a token.
    UnexpectedToken {
        step_id: u64,
        sequence_id: SequenceId,
    },
    /// More values than the prompt has positions after the first.
    TooManyPromptLogprobs {
        step_id: u64,
        sequence_id: SequenceId,
    },
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step_id, sequence_id, what) = match *self {
            Self::UnexpectedStep {
                step_id,
                expected: None,
            } => {
                return write!(f, "result of step {step_id}, but no step is outstanding");
            }
            Self::UnexpectedStep {
                step_id,
                expected: Some(expected),
            } => {
                return write!(f, "result of step {step_id}, but step {expected} is next");
            }
            Self::UnexpectedRow {
                step_id,
                sequence_id,
            } => (
                step_id,
                sequence_id,
                "is not in the plan, or not in its place",
            ),
            Self::MissingToken {
                step_id,
                sequence_id,
            } => (step_id, sequence_id, "sampled no token"),
            Self::UnexpectedToken {
                step_id,
                sequence_id,
            } => (
                step_id,
                sequence_id,
                "sampled a token before its last known one was computed",
            ),
            Self::TooManyPromptLogprobs {
                step_id,
                sequence_id,
            } => (
                step_id,
                sequence_id,
                "has more prompt log-probabilities than prompt tokens",
            ),
        };
        write!(
            f,
            "result of step {step_id}: sequence {} {what}",
            sequence_id.0
        )
    }
}

impl std::error::Error for ProtocolError {}

/// An outstanding step.
#[derive(Clone, Copy, Debug)]
pub struct Forecast {
    pub num_decode_rows: usize,
    pub num_prefill_tokens: usize,
    /// `None`: too little was observed so far.
    pub foreseen: Option<Duration>,
}

/// Gauges of this moment, and totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub num_waiting: usize,
    pub num_running: usize,
    pub num_blocks: u32,
    /// Content unknown, nobody's.
    pub num_free_blocks: u32,
    /// Held only by the prefix cache; given away when the free ones run out.
    pub num_cached_blocks: u32,
    /// In the block tables of running sequences.
    pub num_used_blocks: u32,
    /// Plans whose result was not applied yet.
    pub num_outstanding_steps: usize,
    /// Tokens that the outstanding plans compute.
    pub num_tokens_in_flight: usize,
    /// Total.
    pub num_preemptions: u64,
    /// Total of cached blocks that were given away.
    pub num_evictions: u64,
    /// Total of tokens that admitted sequences looked up in the prefix cache.
    pub num_prefix_cache_query_tokens: u64,
    /// Total of these that were found.
    pub num_prefix_cache_hit_tokens: u64,
}

/// The state machine. `schedule` and `apply` have files of their own; `add`, `cancel` and the ways out are in `lifecycle.rs`.
pub struct Scheduler {
    config: SchedulerConfig,
    blocks: BlockPool,
    sequences: HashMap<SequenceId, Sequence>,
    /// By arrival, as is `running`; each sequence is in one of them.
    waiting: BTreeMap<u64, SequenceId>,
    running: BTreeMap<u64, SequenceId>,
    /// Ids the shards hold that are not running any more; the next plan carries them.
    forget: Vec<SequenceId>,
    /// Plans without a result, oldest first.
    outstanding: VecDeque<IssuedPlan>,
    step_times: StepTimes,
    next_arrival: u64,
    next_step_id: u64,
    num_preemptions: u64,
    num_prefix_cache_query_tokens: u64,
    num_prefix_cache_hit_tokens: u64,
}
