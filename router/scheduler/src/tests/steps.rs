//! What one step computes, and what running ahead of the results means.

use super::{config, id, invariants, new_sequences, rows, spec, token, tokens};
use crate::plan::{RowError, RowOutcome, RowResult, StepResult};
use crate::{FinishReason, Scheduler, SchedulerConfig, SequenceEvent, SequenceSpec};

#[test]
fn without_sequences_there_is_nothing_to_say() {
    let mut scheduler = Scheduler::new(config());
    assert_eq!(scheduler.schedule(), None);
    assert!(scheduler.is_idle());
}

#[test]
fn a_long_prompt_is_computed_in_chunks_and_only_the_last_one_samples() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..35, 2));
    let chunks: Vec<_> = (0..3).map(|_| scheduler.must_schedule()).collect();
    let numbers: Vec<_> = chunks.iter().map(rows).collect();
    assert_eq!(numbers, [[(1, 16)], [(1, 16)], [(1, 3)]]);
    assert_eq!(scheduler.must_apply(tokens(&chunks[0], &[])), []);
    assert_eq!(scheduler.must_apply(tokens(&chunks[1], &[])), []);
    let events = scheduler.must_apply(tokens(&chunks[2], &[(1, 7)]));
    assert_eq!(events, [SequenceEvent::Token(id(1), token(7), None)]);
}

#[test]
fn decode_rows_come_first_and_take_nothing_from_the_prefill_budget() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks: 32,
        ..config()
    });
    scheduler.must_add(1, spec(0..20, 9));
    scheduler.must_add(2, spec(0..1, 9));
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 16)]);
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 4), (2, 1)]);
    scheduler.must_add(3, spec(0..30, 9));
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 1), (2, 1), (3, 16)]);
    scheduler.must_add(4, spec(0..1, 9));
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 1), (2, 1), (3, 14), (4, 1)]);
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 1), (2, 1), (3, 1), (4, 1)]);
}

#[test]
fn a_step_has_at_most_max_batch_size_rows() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_batch_size: 2,
        ..config()
    });
    for sequence_id in 1..=3 {
        scheduler.must_add(sequence_id, spec(0..2, 2));
    }
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 2), (2, 2)]);
    // The last tokens of 1 and 2 are in flight after this plan, so their rows are free in the next.
    scheduler.must_schedule();
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(3, 2)]);
}

#[test]
fn steps_are_planned_ahead_of_the_tokens_but_never_past_max_new_tokens() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..3, 3));
    let plans: Vec<_> = (0..3).map(|_| scheduler.must_schedule()).collect();
    assert_eq!(rows(&plans[1]), [(1, 1)]);
    assert_eq!(rows(&plans[2]), [(1, 1)]);
    assert_eq!(scheduler.schedule(), None);
    assert_eq!(scheduler.stats().num_outstanding_steps, 3);
    assert_eq!(scheduler.stats().num_tokens_in_flight, 5);
    for plan in &plans[..2] {
        scheduler.must_apply(tokens(plan, &[(1, 7)]));
    }
    let events = scheduler.must_apply(tokens(&plans[2], &[(1, 8)]));
    let last = SequenceEvent::Token(id(1), token(8), Some(FinishReason::Length));
    assert_eq!(events, [last]);
}

#[test]
fn new_blocks_are_sent_once_and_only_as_the_sequence_grows() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..7, 9));
    let num_new_blocks: Vec<usize> = (0..6)
        .map(|_| scheduler.must_schedule().rows[0].new_block_ids.len())
        .collect();
    assert_eq!(num_new_blocks, [2, 0, 1, 0, 0, 0]);
}

#[test]
fn an_end_token_wins_over_the_length_and_drops_the_token_in_flight() {
    let ends_at_9 = |max_new_tokens| SequenceSpec {
        end_token_ids: vec![9],
        ..spec(0..3, max_new_tokens)
    };
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, ends_at_9(5));
    scheduler.must_add(2, ends_at_9(1));
    let first = scheduler.must_schedule();
    let second = scheduler.must_schedule();
    let events = scheduler.must_apply(tokens(&first, &[(1, 9), (2, 9)]));
    let end =
        |sequence_id| SequenceEvent::Token(id(sequence_id), token(9), Some(FinishReason::EndToken));
    assert_eq!(events, [end(1), end(2)]);
    assert_eq!(scheduler.must_apply(tokens(&second, &[(1, 5)])), []);
}

#[test]
fn what_ended_is_forgotten_by_a_plan_of_its_own_once() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..3, 1));
    scheduler.step(&[(1, 7)]);
    assert!(!scheduler.is_idle());
    let plan = scheduler.must_schedule();
    assert_eq!((plan.forget.as_slice(), plan.rows.len()), (&[id(1)][..], 0));
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.schedule(), None);
    assert_eq!(scheduler.must_apply(tokens(&plan, &[])), []);
}

#[test]
fn cancelling_frees_the_blocks_at_once_though_a_step_still_writes_to_them() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..8, 4));
    let first = scheduler.must_schedule();
    assert_eq!(scheduler.stats().num_used_blocks, 2);
    assert!(scheduler.cancel(id(1)));
    invariants::check(&scheduler);
    assert_eq!(scheduler.stats().num_free_blocks, 16);

    scheduler.must_add(2, spec(0..8, 4));
    let second = scheduler.must_schedule();
    assert_eq!(second.forget, [id(1)]);
    assert_eq!(
        new_sequences(&second),
        [(2, 0)],
        "unconfirmed blocks are not shared"
    );
    assert_eq!(scheduler.must_apply(tokens(&first, &[(1, 7)])), []);
}

#[test]
fn cancelling_a_waiting_sequence_tells_the_shards_nothing() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..8, 4));
    assert!(scheduler.cancel(id(1)));
    assert!(!scheduler.cancel(id(1)));
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.schedule(), None);
}

#[test]
fn a_late_result_does_not_reach_a_new_sequence_of_the_same_id() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..8, 4));
    let first = scheduler.must_schedule();
    scheduler.cancel(id(1));
    scheduler.must_add(1, spec(8..12, 4));
    let second = scheduler.must_schedule();
    assert_eq!((second.forget.len(), second.new_sequences.len()), (1, 1));
    assert_eq!(scheduler.must_apply(tokens(&first, &[(1, 7)])), []);
    assert_eq!(scheduler.must_apply(tokens(&second, &[(1, 7)])).len(), 1);
}

#[test]
fn a_failed_row_ends_its_sequence_and_no_other() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..3, 5));
    scheduler.must_add(2, spec(0..3, 5));
    let first = scheduler.must_schedule();
    let second = scheduler.must_schedule();
    let mut result = tokens(&first, &[(1, 7), (2, 8)]);
    result.rows[0].outcome = Some(RowOutcome::Error(RowError::Numerical));
    let events = scheduler.must_apply(result);
    let failed = SequenceEvent::Failed(id(1), RowError::Numerical);
    assert_eq!(
        events,
        [failed, SequenceEvent::Token(id(2), token(8), None)]
    );
    let mut result = tokens(&second, &[(1, 0), (2, 8)]);
    result.rows[0].outcome = Some(RowOutcome::Error(RowError::Numerical));
    assert_eq!(scheduler.must_apply(result).len(), 1);
    assert_eq!(scheduler.must_schedule().forget, [id(1)]);
}

#[test]
fn prompt_logprobs_are_reported_per_chunk() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..20, 5));
    let plan = scheduler.must_schedule();
    let row = RowResult {
        sequence_id: id(1),
        outcome: None,
        prompt_logprobs: vec![-1.0; 15],
    };
    let events = scheduler.must_apply(StepResult {
        step_id: plan.step_id,
        rows: vec![row],
    });
    let expected = SequenceEvent::PromptLogprobs(id(1), vec![-1.0; 15]);
    assert_eq!(events, [expected]);
}

#[test]
fn a_paused_sequence_has_no_row_and_keeps_its_place() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_batch_size: 2,
        ..config()
    });
    for sequence_id in 1..=3 {
        scheduler.must_add(sequence_id, spec(0..2, 9));
    }
    let plan = scheduler.must_schedule();
    assert_eq!(rows(&plan), [(1, 2), (2, 2)]);
    scheduler.pause(id(1));
    let next = scheduler.must_schedule();
    assert_eq!(rows(&next), [(2, 1)], "nobody takes its place");
    let events = scheduler.must_apply(tokens(&plan, &[(1, 5), (2, 6)]));
    assert_eq!(events.len(), 2, "what is in flight arrives");
    scheduler.must_apply(tokens(&next, &[(2, 7)]));
    scheduler.unpause(id(1));
    assert_eq!(rows(&scheduler.must_schedule()), [(1, 1), (2, 1)]);
}

#[test]
fn with_all_sequences_paused_there_is_nothing_to_compute() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..2, 9));
    let plan = scheduler.must_schedule();
    scheduler.pause(id(1));
    assert_eq!(scheduler.schedule(), None);
    scheduler.must_apply(tokens(&plan, &[(1, 5)]));
    assert_eq!(scheduler.schedule(), None);
    assert!(!scheduler.is_idle());
    scheduler.cancel(id(1));
    scheduler.unpause(id(1));
    assert!(
        scheduler
            .schedule()
            .is_some_and(|plan| plan.rows.is_empty())
    );
    assert!(scheduler.is_idle());
}
