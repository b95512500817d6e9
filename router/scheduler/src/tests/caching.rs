//! What is shared through the prefix cache, and what is not.

use super::{config, id, invariants, new_sequences, spec, tokens};
use crate::plan::{RowError, RowOutcome};
use crate::{Scheduler, SchedulerConfig, SequenceSpec};

/// A scheduler in which the prompt 0..10 was computed and finished; eight of its tokens are in two full blocks.
fn warm() -> Scheduler {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..10, 1));
    scheduler.step(&[(1, 70)]);
    scheduler.step(&[]);
    assert_eq!(scheduler.stats().num_cached_blocks, 2);
    scheduler
}

/// Tokens that this sequence finds in the cache.
fn num_cached_tokens(scheduler: &mut Scheduler, spec: SequenceSpec) -> u32 {
    scheduler.must_add(2, spec);
    let plan = scheduler.must_schedule();
    plan.new_sequences[0].num_cached_tokens
}

#[test]
fn a_prompt_with_the_same_beginning_reads_whole_blocks_from_the_cache() {
    let mut scheduler = warm();
    scheduler.must_add(2, spec((0..9).chain(50..60), 1));
    let plan = scheduler.must_schedule();
    assert_eq!(new_sequences(&plan), [(2, 8)]);
    assert_eq!(plan.rows[0].num_scheduled_tokens, 11);
    assert_eq!(
        plan.rows[0].new_block_ids.len(),
        5,
        "the cached blocks come first in the table"
    );
    let stats = scheduler.stats();
    assert_eq!(
        (
            stats.num_prefix_cache_query_tokens,
            stats.num_prefix_cache_hit_tokens
        ),
        (10 + 19, 8)
    );
}

#[test]
fn the_last_token_is_always_computed() {
    assert_eq!(num_cached_tokens(&mut warm(), spec(0..8, 1)), 4);
    assert_eq!(num_cached_tokens(&mut warm(), spec(0..9, 1)), 8);
}

#[test]
fn a_block_is_found_only_after_the_same_prefix() {
    assert_eq!(num_cached_tokens(&mut warm(), spec(4..12, 1)), 0);
    let other_beginning = [99].into_iter().chain(1..12);
    assert_eq!(num_cached_tokens(&mut warm(), spec(other_beginning, 1)), 0);
}

#[test]
fn another_salt_finds_nothing() {
    let salted = SequenceSpec {
        cache_salt: 1,
        ..spec(0..10, 1)
    };
    assert_eq!(num_cached_tokens(&mut warm(), salted), 0);
}

#[test]
fn a_sequence_that_does_not_read_the_cache_computes_everything() {
    let mut scheduler = warm();
    let unread = SequenceSpec {
        read_prefix_cache: false,
        ..spec(0..10, 1)
    };
    assert_eq!(num_cached_tokens(&mut scheduler, unread), 0);
    assert_eq!(scheduler.stats().num_prefix_cache_query_tokens, 10);
}

#[test]
fn without_prefix_caching_nothing_is_kept() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        prefix_caching: false,
        ..config()
    });
    scheduler.must_add(1, spec(0..10, 1));
    scheduler.step(&[(1, 70)]);
    assert_eq!(scheduler.stats().num_free_blocks, 16);
    assert_eq!(num_cached_tokens(&mut scheduler, spec(0..10, 1)), 0);
}

#[test]
fn the_next_turn_of_a_chat_finds_the_answer_to_the_last() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..6, 7));
    for token_id in 70..77 {
        scheduler.step(&[(1, token_id)]);
    }
    // 6 prompt tokens and 6 of 7 generated ones were computed: three blocks of four.
    let next_turn = (0..6).chain(70..77).chain(20..25);
    assert_eq!(num_cached_tokens(&mut scheduler, spec(next_turn, 1)), 12);
}

#[test]
fn what_was_computed_after_a_cached_prefix_is_found_behind_it() {
    let mut scheduler = warm();
    scheduler.must_add(3, spec(0..18, 1));
    assert_eq!(scheduler.step(&[(3, 70)]).len(), 1);
    assert_eq!(num_cached_tokens(&mut scheduler, spec(0..18, 1)), 16);
}

#[test]
fn a_running_sequence_shares_what_was_confirmed() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..10, 9));
    let first = scheduler.must_schedule();
    scheduler.must_add(2, spec(0..10, 9));
    let second = scheduler.must_schedule();
    assert_eq!(new_sequences(&second), [(2, 0)], "not yet confirmed");
    scheduler.must_apply(tokens(&first, &[(1, 70)]));
    scheduler.must_apply(tokens(&second, &[(1, 71), (2, 70)]));
    let num_used = scheduler.stats().num_used_blocks;
    scheduler.must_add(3, spec(0..10, 9));
    assert_eq!(new_sequences(&scheduler.must_schedule()), [(3, 8)]);
    assert_eq!(
        scheduler.stats().num_used_blocks,
        num_used + 1,
        "two of its three blocks are shared"
    );
}

#[test]
fn a_copy_takes_the_place_of_an_evicted_block_when_its_sequence_ends() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks: 8,
        ..config()
    });
    // Both compute the same prompt; the blocks of 1 are the registered ones.
    scheduler.must_add(1, spec(0..8, 1));
    scheduler.must_add(2, spec(0..8, 5));
    scheduler.step(&[(1, 70), (2, 70)]);
    // 3 needs everything that 2 does not use, also what 1 left behind.
    scheduler.must_add(3, spec(100..116, 1));
    scheduler.step(&[(2, 71), (3, 70)]);
    assert!(scheduler.stats().num_evictions > 0);
    for token_id in 72..75 {
        scheduler.step(&[(2, token_id)]);
    }
    let next_turn = (0..8).chain(70..75);
    scheduler.must_add(4, spec(next_turn, 1));
    assert_eq!(new_sequences(&scheduler.must_schedule()), [(4, 12)]);
}

#[test]
fn nothing_of_a_failed_sequence_is_read_again() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..20, 5));
    scheduler.step(&[]);
    let plan = scheduler.must_schedule();
    let mut result = tokens(&plan, &[(1, 0)]);
    result.rows[0].outcome = Some(RowOutcome::Error(RowError::Numerical));
    scheduler.must_apply(result);
    assert_eq!(scheduler.stats().num_free_blocks, 16);
    assert_eq!(num_cached_tokens(&mut scheduler, spec(0..20, 5)), 0);
}

#[test]
fn nothing_of_a_sequence_that_fails_in_the_queue_is_read_again() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..20, 5));
    scheduler.step(&[]);
    let plan = scheduler.must_schedule();
    scheduler.preempt(id(1));
    assert_eq!(scheduler.stats().num_cached_blocks, 4);
    let mut result = tokens(&plan, &[(1, 0)]);
    result.rows[0].outcome = Some(RowOutcome::Error(RowError::Numerical));
    scheduler.must_apply(result);
    assert_eq!(scheduler.stats().num_cached_blocks, 0);
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    let mut scheduler = Scheduler::new(config());
    scheduler.must_add(1, spec(0..10, 5));
    scheduler.step(&[(1, 70)]);
    scheduler.preempt(id(1));
    invariants::check(&scheduler);
    assert_eq!(new_sequences(&scheduler.must_schedule()), [(1, 8)]);
}
