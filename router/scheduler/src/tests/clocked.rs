//! A scheduler on a made-up machine: every step takes a time that follows from its rows and a seed, and the scheduler is told.

use std::collections::VecDeque;
use std::time::Duration;

use super::random::Random;
use super::reference_shard::ReferenceShard;
use super::{id, spec};
use crate::plan::{StepPlan, StepResult};
use crate::{Scheduler, SchedulerConfig};

pub(super) const LIMIT: u32 = 512;

/// What a made-up machine needs: in microseconds.
#[derive(Clone, Copy)]
pub(super) struct Machine {
    pub(super) per_step: f64,
    pub(super) per_decode_row: f64,
    /// Of a step with any prefill beside decodes.
    pub(super) per_mixed_step: f64,
    pub(super) per_prefill_token: f64,
    /// Per token and 1,000 tokens before it.
    pub(super) per_thousand: f64,
}

/// About a small model on two cores.
pub(super) const CPU: Machine = Machine {
    per_step: 14_000.0,
    per_decode_row: 2_500.0,
    per_mixed_step: 0.0,
    per_prefill_token: 1_000.0,
    per_thousand: 300.0,
};

/// About a large one on an accelerator.
pub(super) const ACCELERATOR: Machine = Machine {
    per_step: 8_000.0,
    per_decode_row: 20.0,
    per_mixed_step: 0.0,
    per_prefill_token: 25.0,
    per_thousand: 5.0,
};

/// What a step computed and how long it took.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) num_decode_rows: usize,
    pub(super) num_prefill_tokens: u32,
    pub(super) secs: f64,
}

/// A scheduler one step ahead of a machine, as the engine is.
pub(super) struct Clocked {
    pub(super) machine: Machine,
    pub(super) noise: Random,
    pub(super) scheduler: Scheduler,
    pub(super) shard: ReferenceShard,
    pub(super) waiting: VecDeque<(StepResult, Step)>,
    pub(super) steps: Vec<Step>,
    pub(super) num_added: u64,
    /// Computed tokens of each sequence, by id.
    pub(super) computed: Vec<u32>,
    /// Multiplies the next step's time.
    pub(super) glitch: f64,
    /// Whether the scheduler is told the times.
    pub(super) is_observed: bool,
}

impl Clocked {
    pub(super) fn new(machine: Machine, seed: u64) -> Self {
        let config = SchedulerConfig {
            num_blocks: 20_000,
            block_size: 16,
            max_batch_prefill_tokens: LIMIT,
            max_batch_size: 64,
            prefix_caching: false,
        };
        Self {
            machine,
            noise: Random(seed),
            scheduler: Scheduler::new(config.clone()),
            shard: ReferenceShard::new(config.num_blocks, config.block_size),
            waiting: VecDeque::new(),
            steps: Vec::new(),
            num_added: 0,
            computed: Vec::new(),
            glitch: 1.0,
            is_observed: true,
        }
    }

    pub(super) fn add(&mut self, prompt_len: u32, max_new_tokens: u32) {
        let first = self.num_added as u32 * 7;
        let prompt = spec((0..prompt_len).map(|i| first + i), max_new_tokens);
        self.scheduler.add(id(self.num_added), prompt).unwrap();
        self.computed.push(0);
        self.num_added += 1;
    }

    /// Sequences that decode, and nothing else.
    pub(super) fn decoding(machine: Machine, num_sequences: u32, seed: u64) -> Self {
        let mut clocked = Self::new(machine, seed);
        (0..num_sequences).for_each(|_| clocked.add(32, 100_000));
        clocked.run(40);
        clocked.steps.clear();
        clocked
    }

    /// So many results.
    pub(super) fn run(&mut self, num_steps: usize) {
        for _ in 0..num_steps {
            while self.waiting.len() < 2
                && let Some(plan) = self.scheduler.schedule()
            {
                let step = self.step(&plan);
                self.waiting.push_back((self.shard.execute(&plan), step));
            }
            let Some((result, step)) = self.waiting.pop_front() else {
                return;
            };
            self.steps.push(step);
            if self.is_observed {
                let time = Duration::from_secs_f64(step.secs);
                self.scheduler.observe(result.step_id, time);
            }
            self.scheduler.apply(result).unwrap();
        }
    }

    pub(super) fn step(&mut self, plan: &StepPlan) -> Step {
        let mut step = Step {
            num_decode_rows: 0,
            num_prefill_tokens: 0,
            secs: self.machine.per_step,
        };
        for row in &plan.rows {
            let computed = &mut self.computed[row.sequence_id.0 as usize];
            if self.shard.is_decode(plan, row) {
                step.num_decode_rows += 1;
                step.secs += self.machine.per_decode_row;
            } else {
                let tokens = f64::from(row.num_scheduled_tokens);
                let before = f64::from(*computed) + tokens / 2.0;
                step.num_prefill_tokens += row.num_scheduled_tokens;
                let per_token =
                    self.machine.per_prefill_token + self.machine.per_thousand * before / 1e3;
                step.secs += tokens * per_token;
            }
            *computed += row.num_scheduled_tokens;
        }
        if step.num_decode_rows > 0 && step.num_prefill_tokens > 0 {
            step.secs += self.machine.per_mixed_step;
        }
        let noise = 0.95 + self.noise.below(100) as f64 / 1000.0;
        step.secs *= 1e-6 * noise * std::mem::replace(&mut self.glitch, 1.0);
        step
    }

    /// The usual time of a step that only decodes.
    pub(super) fn usual(&self) -> f64 {
        let only_decode = self
            .steps
            .iter()
            .filter(|step| step.num_prefill_tokens == 0);
        let mut times: Vec<f64> = only_decode.map(|step| step.secs).collect();
        times.sort_unstable_by(f64::total_cmp);
        times[times.len() / 2]
    }

    pub(super) fn chunks(&self) -> Vec<u32> {
        let chunks = self.steps.iter().map(|step| step.num_prefill_tokens);
        chunks.filter(|&tokens| tokens > 0).collect()
    }
}
