//! Prints what `schedule` and `apply` cost per step: `cargo run --release -p text-gen-scheduler --example step_time`.
//! Nothing is asserted, because the numbers depend on the machine.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use scheduler::plan::{
    RowOutcome, RowResult, SampledToken, SamplingParameters, SequenceId, StepPlan, StepResult,
};
use scheduler::{Scheduler, SchedulerConfig, SequenceSpec};

const NUM_SEQUENCES: u64 = 256;
const MAX_NEW_TOKENS: u32 = 512;

fn main() {
    for (prompt_len, num_blocks) in [(128, 100_000), (4096, 100_000), (4096, 40_000)] {
        measure(prompt_len, num_blocks);
    }
}

/// One step behind, as the engine is; a new sequence comes for each that finishes.
fn measure(prompt_len: u32, num_blocks: u32) {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks,
        block_size: 16,
        max_batch_prefill_tokens: 8192,
        max_batch_size: NUM_SEQUENCES as u32,
        prefix_caching: true,
    });
    let mut shard = Shard::default();
    let mut num_added = 0;
    let mut times: Vec<Duration> = Vec::new();
    let mut waiting_result: Option<StepResult> = None;
    for _ in 0..5_000 {
        while scheduler.stats().num_waiting < 16 {
            num_added += 1;
            let added = scheduler.add(SequenceId(num_added), spec(num_added, prompt_len));
            added.expect("the sequence fits");
        }
        let start = Instant::now();
        let plan = scheduler.schedule();
        let mut time = start.elapsed();
        let result = plan.as_ref().map(|plan| shard.execute(plan));
        if let Some(earlier) = waiting_result.take() {
            let start = Instant::now();
            let events = scheduler.apply(earlier);
            time += start.elapsed();
            events.expect("the result answers its plan");
        }
        waiting_result = result;
        times.push(time);
    }
    times.sort_unstable();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    println!(
        "prompt {prompt_len:>4}, {num_blocks:>6} blocks: median {:.0} us, 90 % {:.0} us, 99 % {:.0} us; {:?}",
        at(50),
        at(90),
        at(99),
        scheduler.stats()
    );
}

fn spec(number: u64, prompt_len: u32) -> SequenceSpec {
    SequenceSpec {
        // Half of each prompt is common to all.
        prompt: (0..prompt_len)
            .map(|i| i + (i / (prompt_len / 2)) * number as u32)
            .collect(),
        max_new_tokens: MAX_NEW_TOKENS / 2 + (number as u32 * 37) % (MAX_NEW_TOKENS / 2),
        end_token_ids: vec![2],
        cache_salt: 0,
        read_prefix_cache: true,
        sampling: Arc::new(SamplingParameters::default()),
    }
}

/// Samples a token for each row that reaches the end of its sequence's tokens.
#[derive(Default)]
struct Shard {
    num_uncomputed_tokens: HashMap<SequenceId, u32>,
}

impl Shard {
    fn execute(&mut self, plan: &StepPlan) -> StepResult {
        for id in &plan.forget {
            self.num_uncomputed_tokens.remove(id);
        }
        for new in &plan.new_sequences {
            let num_uncomputed = new.token_ids.len() as u32 - new.num_cached_tokens;
            self.num_uncomputed_tokens
                .insert(new.sequence_id, num_uncomputed);
        }
        let mut rows = Vec::with_capacity(plan.rows.len());
        for row in &plan.rows {
            let num_uncomputed = self
                .num_uncomputed_tokens
                .get_mut(&row.sequence_id)
                .expect("the sequence is known");
            *num_uncomputed -= row.num_scheduled_tokens;
            if *num_uncomputed == 0 {
                *num_uncomputed = 1;
                rows.push(sampled(row.sequence_id));
            }
        }
        StepResult {
            step_id: plan.step_id,
            rows,
        }
    }
}

fn sampled(sequence_id: SequenceId) -> RowResult {
    RowResult {
        sequence_id,
        outcome: Some(RowOutcome::Token(SampledToken {
            token_id: 3,
            logprob: -1.0,
            top_tokens: Vec::new(),
        })),
        prompt_logprobs: Vec::new(),
    }
}
