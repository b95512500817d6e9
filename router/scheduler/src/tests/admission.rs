//! Who may run: refusal, first come first served, preemption.

use super::{config, id, invariants, new_sequences, rows, spec, token, tokens};
use crate::plan::{RowResult, StepResult};
use crate::{AddError, FinishReason, Scheduler, SchedulerConfig, SequenceEvent, SequenceSpec};

/// Four blocks of four tokens, without sharing.
fn small() -> SchedulerConfig {
    SchedulerConfig {
        num_blocks: 4,
        prefix_caching: false,
        ..config()
    }
}

#[test]
fn a_sequence_that_can_never_run_is_refused() {
    let mut scheduler = Scheduler::new(small());
    let mut add = |sequence_id, spec| scheduler.add(id(sequence_id), spec);
    assert_eq!(add(1, spec([], 1)), Err(AddError::EmptyPrompt));
    assert_eq!(add(1, spec(0..3, 0)), Err(AddError::ZeroTokens));
    let too_long = AddError::TooLong {
        tokens: 17,
        capacity: 16,
    };
    assert_eq!(add(1, spec(0..10, 7)), Err(too_long));
    assert_eq!(
        too_long.to_string(),
        "a sequence of 17 tokens cannot fit in the KV cache of 16 tokens"
    );
    assert_eq!(add(1, spec(0..10, 6)), Ok(()));
    assert_eq!(add(1, spec(0..3, 1)), Err(AddError::DuplicateId(id(1))));
    assert_eq!(scheduler.stats().num_waiting, 1);
}

#[test]
#[should_panic(expected = "max_batch_size is 0")]
fn a_budget_of_zero_is_a_bug_of_the_caller() {
    Scheduler::new(SchedulerConfig {
        max_batch_size: 0,
        ..config()
    });
}

#[test]
fn a_sequence_as_long_as_all_blocks_runs_alone_to_its_end() {
    let mut scheduler = Scheduler::new(small());
    scheduler.must_add(1, spec(0..15, 1));
    let events = scheduler.step(&[(1, 7)]);
    let last = SequenceEvent::Token(id(1), token(7), Some(FinishReason::Length));
    assert_eq!(events, [last]);
}

#[test]
fn nobody_overtakes_the_first_in_the_queue() {
    let mut scheduler = Scheduler::new(small());
    scheduler.must_add(1, spec(0..4, 4));
    scheduler.must_add(2, spec(0..11, 1));
    scheduler.must_add(3, spec(0..1, 1));
    let plan = scheduler.must_schedule();
    assert_eq!(
        rows(&plan),
        [(1, 4)],
        "2 needs three blocks and one to spare; 3 would fit, but is behind it"
    );
    scheduler.cancel(id(1));
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(2, 11)], "now 3 lacks the spare block");
    scheduler.cancel(id(2));
    assert_eq!(rows(&scheduler.must_schedule()), [(3, 1)]);
}

/// Two sequences that fill two blocks each; both decode, with the tokens of the last plan in flight.
fn full() -> (Scheduler, crate::plan::StepPlan) {
    let mut scheduler = Scheduler::new(small());
    scheduler.must_add(1, spec(0..6, 8));
    scheduler.step(&[(1, 10)]);
    scheduler.must_add(2, spec(0..4, 8));
    scheduler.step(&[(1, 11), (2, 20)]);
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 1), (2, 1)]);
    assert_eq!(scheduler.stats().num_available(), 0);
    (scheduler, plan)
}

impl crate::Stats {
    fn num_available(&self) -> u32 {
        self.num_free_blocks + self.num_cached_blocks
    }
}

#[test]
fn when_blocks_run_out_the_youngest_goes_back_to_the_queue() {
    let (mut scheduler, plan) = full();
    scheduler.must_add(3, spec(0..1, 1));
    let next = scheduler.must_schedule();
    assert_eq!(next.forget, [id(2)]);
    assert_eq!(rows(&next), [(1, 1)], "and nobody is admitted");
    let stats = scheduler.stats();
    assert_eq!((stats.num_waiting, stats.num_preemptions), (2, 1));

    let events = scheduler.must_apply(tokens(&plan, &[(1, 12), (2, 21)]));
    assert_eq!(
        events[1],
        SequenceEvent::Token(id(2), token(21), None),
        "its token in flight counts"
    );
    scheduler.cancel(id(1));
    let again = scheduler.must_schedule();
    assert_eq!(again.new_sequences[0].sequence_id, id(2), "before 3");
    assert_eq!(again.new_sequences[0].token_ids, [0, 1, 2, 3, 20, 21]);
    assert_eq!(again.new_sequences[0].prompt_len, 4);
    assert_eq!(rows(&again), [(2, 6), (3, 1)]);
}

#[test]
fn a_preempted_sequence_waits_for_its_tokens_in_flight() {
    let (mut scheduler, plan) = full();
    let next = scheduler.must_schedule();
    scheduler.cancel(id(1));
    assert_eq!(scheduler.must_schedule().forget, [id(1)]);
    assert_eq!(
        scheduler.schedule(),
        None,
        "all blocks are free, but 2 waits"
    );
    scheduler.must_apply(tokens(&plan, &[(1, 12), (2, 21)]));
    assert_eq!(new_sequences(&scheduler.must_schedule()), [(2, 0)]);
    assert_eq!(rows(&next), [(1, 1)]);
}

#[test]
fn a_preempted_sequence_can_end_in_the_queue() {
    let (mut scheduler, plan) = full();
    scheduler.must_schedule();
    let mut result = tokens(&plan, &[(1, 12), (2, 21)]);
    result.rows[1].outcome = Some(crate::plan::RowOutcome::Error(
        crate::plan::RowError::Numerical,
    ));
    assert_eq!(scheduler.must_apply(result).len(), 2);
    assert_eq!(scheduler.stats().num_waiting, 0);
    assert!(!scheduler.cancel(id(2)));
    assert_eq!(
        scheduler.must_schedule().forget,
        [],
        "it was forgotten when it was preempted"
    );
}

#[test]
fn the_youngest_preempts_itself() {
    let mut scheduler = Scheduler::new(small());
    scheduler.must_add(1, spec(0..7, 8));
    scheduler.step(&[(1, 10)]);
    scheduler.must_add(2, spec(0..3, 8));
    scheduler.step(&[(1, 11), (2, 20)]);
    scheduler.step(&[(1, 12), (2, 21)]);
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 1)], "2 finds no second block");
    assert_eq!(plan.forget, [id(2)]);
    invariants::check(&scheduler);
}

/// Computes the first of two chunks of 1's prompt; of position 0 there is no log-probability.
fn compute_first_chunk(scheduler: &mut Scheduler) -> Vec<SequenceEvent> {
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 4)]);
    let row = RowResult {
        sequence_id: id(1),
        outcome: None,
        prompt_logprobs: vec![-1.0, -2.0, -3.0],
    };
    scheduler.must_apply(StepResult {
        step_id: plan.step_id,
        rows: vec![row],
    })
}

#[test]
fn prompt_logprobs_are_reported_once_though_the_prompt_is_computed_twice() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_batch_prefill_tokens: 4,
        ..small()
    });
    let asks_for_logprobs = SequenceSpec {
        read_prefix_cache: false,
        ..spec(0..7, 1)
    };
    scheduler.must_add(1, asks_for_logprobs);
    let first = SequenceEvent::PromptLogprobs(id(1), vec![-1.0, -2.0, -3.0]);
    assert_eq!(compute_first_chunk(&mut scheduler), [first]);

    scheduler.preempt(id(1));
    assert_eq!(compute_first_chunk(&mut scheduler), []);
    let plan = scheduler.must_schedule();
    let mut result = tokens(&plan, &[(1, 7)]);
    result.rows[0].prompt_logprobs = vec![-4.0, -5.0, -6.0];
    let rest = SequenceEvent::PromptLogprobs(id(1), vec![-4.0, -5.0, -6.0]);
    assert_eq!(scheduler.must_apply(result)[0], rest);
}
