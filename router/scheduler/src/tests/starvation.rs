//! Under endless arrivals each sequence is gone within the bound that the crate documentation proves.

use std::collections::{HashMap, VecDeque};

use super::config;
use super::random::Random;
use super::reference_shard::ReferenceShard;
use super::{id, invariants, spec};
use crate::plan::{SequenceId, StepResult};
use crate::{Scheduler, SchedulerConfig, SequenceEvent};

const MAX_OUTSTANDING: usize = 2;

/// A scheduler whose queue is never empty.
struct Crowd {
    config: SchedulerConfig,
    random: Random,
    scheduler: Scheduler,
    shard: ReferenceShard,
    results: VecDeque<StepResult>,
    num_added: u64,
    num_plans: usize,
    num_finished: usize,
    /// Of each live sequence: the most plans it may take from when it is the oldest, and the plan by which it must be gone.
    live: HashMap<SequenceId, (usize, usize)>,
}

impl Crowd {
    fn new(config: SchedulerConfig) -> Self {
        Self {
            random: Random(8),
            scheduler: Scheduler::new(config.clone()),
            shard: ReferenceShard::new(config.num_blocks, config.block_size),
            results: VecDeque::new(),
            num_added: 0,
            num_plans: 0,
            num_finished: 0,
            live: HashMap::new(),
            config,
        }
    }

    fn add(&mut self) {
        let capacity = u64::from(self.config.num_blocks * self.config.block_size);
        let prompt_len = 1 + self.random.below(capacity / 2) as usize;
        let max_new_tokens = 1 + self.random.below(capacity - prompt_len as u64) as usize;
        // No two prompts begin alike, so that the prefix cache spares no work.
        let prompt = (0..prompt_len as u32).map(|i| self.num_added as u32 * 1000 + i);
        let spec = spec(prompt, max_new_tokens as u32);
        self.scheduler.add(id(self.num_added), spec).unwrap();

        let budget = self.config.max_batch_prefill_tokens as usize;
        let recomputation = (prompt_len + max_new_tokens).div_ceil(budget);
        let work = recomputation + max_new_tokens + 2 * MAX_OUTSTANDING;
        let work_ahead: usize = self.live.values().map(|(work, _)| work).sum();
        let deadline = self.num_plans + work_ahead + work;
        self.live.insert(id(self.num_added), (work, deadline));
        self.num_added += 1;
    }

    /// One plan if there is one to send, and results until another may be sent.
    fn step(&mut self) {
        match self.scheduler.schedule() {
            Some(plan) => {
                self.num_plans += 1;
                self.results.push_back(self.shard.execute(&plan));
                if self.results.len() < MAX_OUTSTANDING {
                    return;
                }
            }
            None => assert!(!self.results.is_empty(), "the oldest runs or is waited for"),
        }
        let result = self.results.pop_front().expect("a result is outstanding");
        for event in self.scheduler.apply(result).unwrap() {
            if let SequenceEvent::Token(id, _, Some(_)) = event {
                let (_, deadline) = self.live.remove(&id).expect("it was live");
                assert!(self.num_plans <= deadline, "{id:?} is late");
                self.num_finished += 1;
            }
        }
        let late = self
            .live
            .iter()
            .find(|(_, (_, deadline))| self.num_plans > *deadline);
        assert_eq!(late, None, "sequences are in time");
        invariants::check(&self.scheduler);
    }
}

fn assert_nobody_starves(config: SchedulerConfig) -> Crowd {
    let mut crowd = Crowd::new(config);
    for _ in 0..5_000 {
        while crowd.scheduler.stats().num_waiting < 5 {
            crowd.add();
        }
        crowd.step();
    }
    assert!(crowd.num_finished > 100, "{}", crowd.num_finished);
    crowd
}

#[test]
fn each_sequence_finishes_within_its_bound_under_endless_arrivals() {
    let crowd = assert_nobody_starves(config());
    assert!(crowd.scheduler.stats().num_preemptions > 100);
}

#[test]
fn each_sequence_finishes_within_its_bound_when_prefill_is_the_bottleneck() {
    assert_nobody_starves(SchedulerConfig {
        max_batch_prefill_tokens: 2,
        ..config()
    });
}
