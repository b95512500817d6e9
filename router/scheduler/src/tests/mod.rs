//! Tests of the whole scheduler, and what they share.

mod admission;
mod caching;
mod clocked;
mod invariants;
mod pace;
mod protocol;
mod random;
mod reference_shard;
mod simulation;
mod starvation;
mod steps;

use std::sync::Arc;

use crate::plan::{
    RowOutcome, RowResult, SampledToken, SamplingParameters, SequenceId, StepPlan, StepResult,
    TokenId,
};
use crate::{Scheduler, SchedulerConfig, SequenceEvent, SequenceSpec};

/// 16 blocks of 4 tokens, 16 prefill tokens and 8 sequences per step.
fn config() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 16,
        block_size: 4,
        max_batch_prefill_tokens: 16,
        max_batch_size: 8,
        prefix_caching: true,
    }
}

/// A sequence without an end token.
fn spec(prompt: impl IntoIterator<Item = TokenId>, max_new_tokens: u32) -> SequenceSpec {
    SequenceSpec {
        prompt: prompt.into_iter().collect(),
        max_new_tokens,
        end_token_ids: Vec::new(),
        cache_salt: 0,
        read_prefix_cache: true,
        sampling: Arc::new(SamplingParameters::default()),
    }
}

fn id(id: u64) -> SequenceId {
    SequenceId(id)
}

fn token(token_id: TokenId) -> SampledToken {
    SampledToken {
        token_id,
        logprob: -1.0,
        top_tokens: Vec::new(),
    }
}

/// The answer to a plan in which these sequences sampled these tokens.
fn tokens(plan: &StepPlan, sampled: &[(u64, TokenId)]) -> StepResult {
    let rows = sampled.iter().map(|&(sequence_id, token_id)| RowResult {
        sequence_id: id(sequence_id),
        outcome: Some(RowOutcome::Token(token(token_id))),
        prompt_logprobs: Vec::new(),
    });
    StepResult {
        step_id: plan.step_id,
        rows: rows.collect(),
    }
}

/// Ids and numbers of tokens of a plan's rows.
fn rows(plan: &StepPlan) -> Vec<(u64, u32)> {
    let row = |row: &crate::plan::Row| (row.sequence_id.0, row.num_scheduled_tokens);
    plan.rows.iter().map(row).collect()
}

/// The ids that are new in a plan, and their cached tokens.
fn new_sequences(plan: &StepPlan) -> Vec<(u64, u32)> {
    let new = |new: &crate::plan::NewSequence| (new.sequence_id.0, new.num_cached_tokens);
    plan.new_sequences.iter().map(new).collect()
}

impl Scheduler {
    fn must_add(&mut self, sequence_id: u64, spec: SequenceSpec) {
        self.add(id(sequence_id), spec).unwrap();
        invariants::check(self);
    }

    fn must_schedule(&mut self) -> StepPlan {
        let plan = self.schedule().expect("there is something to say");
        invariants::check(self);
        plan
    }

    fn must_apply(&mut self, result: StepResult) -> Vec<SequenceEvent> {
        let events = self.apply(result).unwrap();
        invariants::check(self);
        events
    }

    /// Schedules, and lets each of these sequences sample its token.
    fn step(&mut self, sampled: &[(u64, TokenId)]) -> Vec<SequenceEvent> {
        let plan = self.must_schedule();
        self.must_apply(tokens(&plan, sampled))
    }
}
