//! Random operations against the reference shard: whatever is added, cancelled, preempted and shared, each sequence gets exactly the
//! tokens it would get alone. Seeded, so that a failure can be repeated.

use std::collections::VecDeque;

use super::random::{Random, SpecSource};
use super::reference_shard::{ReferenceShard, expected};
use super::{config, id, invariants};
use crate::plan::{SequenceId, StepPlan, StepResult, TokenId};
use crate::{FinishReason, Scheduler, SchedulerConfig, SequenceEvent, SequenceSpec, Stats};

const MAX_OUTSTANDING: usize = 3;
const MAX_LIVE: usize = 12;

struct Simulation {
    config: SchedulerConfig,
    random: Random,
    scheduler: Scheduler,
    shard: ReferenceShard,
    /// Of outstanding plans. The shard is ahead of what the scheduler has seen.
    results: VecDeque<StepResult>,
    /// Every sequence ever added.
    clients: Vec<Client>,
    plans: Vec<StepPlan>,
    num_dropped_tokens: u64,
}

/// What was asked and what came back.
struct Client {
    spec: SequenceSpec,
    tokens: Vec<TokenId>,
    prompt_logprobs: Vec<f32>,
    end: Option<End>,
}

#[derive(Debug, PartialEq)]
enum End {
    Finished(FinishReason),
    Failed,
    Cancelled,
}

impl Simulation {
    fn new(config: SchedulerConfig, seed: u64) -> Self {
        Self {
            random: Random(seed),
            scheduler: Scheduler::new(config.clone()),
            shard: ReferenceShard::new(config.num_blocks, config.block_size),
            results: VecDeque::new(),
            clients: Vec::new(),
            plans: Vec::new(),
            num_dropped_tokens: 0,
            config,
        }
    }

    fn run(&mut self, num_operations: usize) {
        for _ in 0..num_operations {
            match self.random.below(100) {
                0..12 => self.add(),
                12..14 => self.cancel(),
                14..57 => self.schedule(),
                _ => self.apply(),
            }
            invariants::check(&self.scheduler);
        }
        self.drain();
    }

    /// Until there is nothing more to say and nothing outstanding.
    fn drain(&mut self) {
        let mut num_steps = 0;
        loop {
            let num_plans = self.plans.len();
            self.schedule();
            if self.plans.len() == num_plans && self.results.is_empty() {
                return;
            }
            self.apply();
            invariants::check(&self.scheduler);
            num_steps += 1;
            assert!(num_steps < 10_000, "everything ends");
        }
    }

    fn live(&self) -> Vec<usize> {
        let is_live = |idx: &usize| self.clients[*idx].end.is_none();
        // The ones added long ago are gone: starvation has a test of its own.
        (self.clients.len().saturating_sub(1000)..self.clients.len())
            .filter(is_live)
            .collect()
    }

    fn add(&mut self) {
        if self.live().len() == MAX_LIVE {
            return;
        }
        let capacity = (self.config.num_blocks * self.config.block_size) as usize;
        let source = SpecSource {
            capacity: capacity as u64,
            previous: self.previous(),
        };
        let spec = source.draw(&mut self.random);
        let fits = spec.prompt.len() + spec.max_new_tokens as usize <= capacity;
        let added = self
            .scheduler
            .add(id(self.clients.len() as u64), spec.clone());
        assert_eq!(added.is_ok(), fits);
        if fits {
            self.clients.push(Client {
                spec,
                tokens: Vec::new(),
                prompt_logprobs: Vec::new(),
                end: None,
            });
        }
    }

    /// One of the last conversations, to be continued.
    fn previous(&mut self) -> Option<(u64, Vec<TokenId>)> {
        if self.clients.is_empty() || !self.random.one_in(3) {
            return None;
        }
        let back = 1 + self.random.below(self.clients.len().min(10) as u64) as usize;
        let client = &self.clients[self.clients.len() - back];
        let tokens = [client.spec.prompt.as_slice(), &client.tokens].concat();
        Some((client.spec.cache_salt, tokens))
    }

    fn cancel(&mut self) {
        let live = self.live();
        if live.is_empty() {
            assert!(!self.scheduler.cancel(id(u64::MAX)));
            return;
        }
        let idx = live[self.random.below(live.len() as u64) as usize];
        assert!(self.scheduler.cancel(id(idx as u64)));
        assert!(!self.scheduler.cancel(id(idx as u64)));
        self.clients[idx].end = Some(End::Cancelled);
    }

    fn schedule(&mut self) {
        if self.results.len() == MAX_OUTSTANDING {
            return;
        }
        if let Some(plan) = self.scheduler.schedule() {
            self.check_plan(&plan);
            self.results.push_back(self.shard.execute(&plan));
            self.plans.push(plan);
        }
    }

    fn check_plan(&self, plan: &StepPlan) {
        assert!(
            !plan.rows.is_empty() || !plan.forget.is_empty(),
            "a plan says something"
        );
        assert!(plan.rows.len() <= self.config.max_batch_size as usize);
        let is_decode: Vec<bool> = plan
            .rows
            .iter()
            .map(|row| self.shard.is_decode(plan, row))
            .collect();
        assert!(is_decode.is_sorted_by(|a, b| a >= b), "decode rows first");
        let prefill_rows = plan
            .rows
            .iter()
            .zip(is_decode)
            .filter(|(_, is_decode)| !is_decode);
        let num_prefill_tokens: u32 = prefill_rows.map(|(row, _)| row.num_scheduled_tokens).sum();
        assert!(num_prefill_tokens <= self.config.max_batch_prefill_tokens);
    }

    fn apply(&mut self) {
        let Some(result) = self.results.pop_front() else {
            return;
        };
        let num_tokens = result
            .rows
            .iter()
            .filter(|row| row.outcome.is_some())
            .count();
        let events = self.scheduler.apply(result).unwrap();
        let mut num_outcomes = 0;
        for event in events {
            num_outcomes += usize::from(!matches!(event, SequenceEvent::PromptLogprobs(..)));
            self.take(event);
        }
        self.num_dropped_tokens += (num_tokens - num_outcomes) as u64;
    }

    fn take(&mut self, event: SequenceEvent) {
        let SequenceId(idx) = match event {
            SequenceEvent::PromptLogprobs(id, _)
            | SequenceEvent::Token(id, _, _)
            | SequenceEvent::Failed(id, _) => id,
        };
        let client = &mut self.clients[idx as usize];
        assert_eq!(
            client.end, None,
            "sequence {idx} has no event after its end"
        );
        match event {
            SequenceEvent::PromptLogprobs(_, logprobs) => client.prompt_logprobs.extend(logprobs),
            SequenceEvent::Token(_, token, finish_reason) => {
                client.tokens.push(token.token_id);
                client.end = finish_reason.map(End::Finished);
            }
            SequenceEvent::Failed(..) => client.end = Some(End::Failed),
        }
    }

    /// Everybody got what he asked for, and nothing is left.
    fn check_end(&self) {
        for (idx, client) in self.clients.iter().enumerate() {
            let expected = expected(&client.spec);
            let end = match client.end.as_ref().expect("every sequence ended") {
                End::Cancelled => {
                    assert!(expected.tokens.starts_with(&client.tokens));
                    assert!(
                        expected
                            .prompt_logprobs
                            .starts_with(&client.prompt_logprobs)
                    );
                    continue;
                }
                end => end,
            };
            let ends_itself = expected
                .tokens
                .last()
                .is_some_and(|token| client.spec.end_token_ids.contains(token));
            let expected_end = match (expected.fails, ends_itself) {
                (true, _) => End::Failed,
                (_, true) => End::Finished(FinishReason::EndToken),
                _ => End::Finished(FinishReason::Length),
            };
            assert_eq!(*end, expected_end, "end of sequence {idx}");
            assert_eq!(client.tokens, expected.tokens, "tokens of sequence {idx}");
            if expected.fails && expected.tokens.is_empty() {
                // The step that failed was the one that computed the last of the prompt.
                assert!(
                    expected
                        .prompt_logprobs
                        .starts_with(&client.prompt_logprobs)
                );
            } else {
                assert_eq!(client.prompt_logprobs, expected.prompt_logprobs);
            }
        }
        assert!(self.scheduler.is_idle());
        assert_eq!(self.shard.num_sequences(), 0, "the shard holds no sequence");
        let stats = self.scheduler.stats();
        assert_eq!(
            stats.num_free_blocks + stats.num_cached_blocks,
            stats.num_blocks
        );
        assert_eq!(stats.num_waiting + stats.num_running, 0);
        assert_eq!(stats.num_outstanding_steps + stats.num_tokens_in_flight, 0);
    }
}

/// 40,000 operations, and what they led to.
fn simulate(config: SchedulerConfig, seed: u64) -> Stats {
    let mut simulation = Simulation::new(config, seed);
    simulation.run(40_000);
    simulation.check_end();
    assert!(
        simulation.clients.len() > 500,
        "only {} sequences",
        simulation.clients.len()
    );
    assert!(
        simulation.num_dropped_tokens > 100,
        "tokens in flight are dropped"
    );
    simulation.scheduler.stats()
}

#[test]
fn every_sequence_gets_the_tokens_it_would_get_alone_with_few_blocks() {
    let stats = simulate(
        SchedulerConfig {
            num_blocks: 12,
            ..config()
        },
        1,
    );
    assert!(stats.num_preemptions > 300, "{stats:?}");
    assert!(stats.num_evictions > 1000, "{stats:?}");
    assert!(stats.num_prefix_cache_hit_tokens > 1000, "{stats:?}");
}

#[test]
fn every_sequence_gets_the_tokens_it_would_get_alone_with_blocks_of_one_token() {
    let stats = simulate(
        SchedulerConfig {
            num_blocks: 40,
            block_size: 1,
            max_batch_prefill_tokens: 7,
            ..config()
        },
        2,
    );
    assert!(stats.num_preemptions > 300, "{stats:?}");
    assert!(stats.num_evictions > 1000, "{stats:?}");
    assert!(stats.num_prefix_cache_hit_tokens > 1000, "{stats:?}");
}

#[test]
fn every_sequence_gets_the_tokens_it_would_get_alone_with_tiny_chunks() {
    let stats = simulate(
        SchedulerConfig {
            num_blocks: 20,
            block_size: 3,
            max_batch_prefill_tokens: 1,
            ..config()
        },
        3,
    );
    assert!(stats.num_evictions > 100, "{stats:?}");
}

#[test]
fn every_sequence_gets_the_tokens_it_would_get_alone_with_two_places() {
    let stats = simulate(
        SchedulerConfig {
            num_blocks: 10,
            max_batch_size: 2,
            max_batch_prefill_tokens: 64,
            ..config()
        },
        4,
    );
    assert!(stats.num_preemptions > 100, "{stats:?}");
    assert!(stats.num_prefix_cache_hit_tokens > 1000, "{stats:?}");
}

#[test]
fn every_sequence_gets_the_tokens_it_would_get_alone_without_prefix_caching() {
    let stats = simulate(
        SchedulerConfig {
            num_blocks: 12,
            prefix_caching: false,
            ..config()
        },
        5,
    );
    assert!(stats.num_preemptions > 300, "{stats:?}");
    assert_eq!(stats.num_evictions, 0);
    assert_eq!(stats.num_prefix_cache_query_tokens, 0);
}

#[test]
fn every_sequence_gets_the_tokens_it_would_get_alone_with_a_single_block() {
    let stats = simulate(
        SchedulerConfig {
            num_blocks: 1,
            block_size: 12,
            ..config()
        },
        6,
    );
    assert_eq!(stats.num_preemptions, 0, "two never run together");
}

#[test]
fn the_same_calls_give_the_same_plans() {
    let plans = |seed| {
        let mut simulation = Simulation::new(config(), seed);
        simulation.run(5_000);
        simulation.plans
    };
    let first = plans(7);
    assert!(first.len() > 1000);
    assert_eq!(first, plans(7));
}
