//! What holds after every call, whatever the calls were.

use crate::Scheduler;
use crate::sequence::Sequence;

pub(crate) fn check(scheduler: &Scheduler) {
    check_blocks(scheduler);
    check_order(scheduler);
    for sequence in scheduler.sequences.values() {
        check_sequence(scheduler, sequence);
    }
    check_rows_in_flight(scheduler);
}

fn check_blocks(scheduler: &Scheduler) {
    let mut num_users = vec![0; scheduler.config.num_blocks as usize];
    for id in scheduler.running.values() {
        let residence = scheduler.sequences[id].residence.as_ref().unwrap();
        let mut table = residence.block_table.clone();
        table.sort_unstable();
        table.dedup();
        assert_eq!(
            table.len(),
            residence.block_table.len(),
            "a table names a block once"
        );
        for block_id in table {
            num_users[block_id.0 as usize] += 1;
        }
    }
    scheduler.blocks.check(&num_users);

    let stats = scheduler.stats();
    let num_used = num_users.iter().filter(|&&num_users| num_users > 0).count();
    assert_eq!(stats.num_used_blocks as usize, num_used);
    assert_eq!(
        stats.num_free_blocks + stats.num_cached_blocks + stats.num_used_blocks,
        scheduler.config.num_blocks
    );
    if !scheduler.config.prefix_caching {
        assert_eq!(stats.num_cached_blocks, 0);
    }
}

fn check_order(scheduler: &Scheduler) {
    let youngest_running = scheduler.running.keys().next_back();
    let oldest_waiting = scheduler.waiting.keys().next();
    if let (Some(running), Some(waiting)) = (youngest_running, oldest_waiting) {
        assert!(
            running < waiting,
            "running sequences are older than waiting ones"
        );
    }
    assert_eq!(
        scheduler.sequences.len(),
        scheduler.running.len() + scheduler.waiting.len()
    );
    for (arrival, id) in scheduler.running.iter().chain(&scheduler.waiting) {
        assert_eq!(scheduler.sequences[id].arrival, *arrival);
    }
    let is_busy = |id: &&_| scheduler.sequences[*id].num_uncomputed_tokens() > 0;
    assert!(
        scheduler.running.values().filter(is_busy).count()
            <= scheduler.config.max_batch_size as usize,
        "every running sequence with something to compute finds a row"
    );
}

fn check_sequence(scheduler: &Scheduler, sequence: &Sequence) {
    let is_running = scheduler.running.contains_key(&sequence.arrival);
    assert_eq!(
        sequence.residence.is_some(),
        is_running,
        "exactly running sequences have blocks"
    );
    assert!(sequence.num_unknown_tokens <= sequence.num_rows_in_flight);
    if let Some(residence) = &sequence.residence {
        let num_computed = residence.num_computed_tokens;
        assert!(residence.num_confirmed_tokens <= num_computed);
        assert!(num_computed <= sequence.len());
        assert_eq!(
            residence.block_table.len(),
            scheduler.blocks.blocks_for(num_computed)
        );
        assert_eq!(residence.num_sent_blocks, residence.block_table.len());
        assert!(
            sequence.num_uncomputed_tokens() > 0 || sequence.num_rows_in_flight > 0,
            "a running sequence has something to do or to wait for"
        );
    }
}

fn check_rows_in_flight(scheduler: &Scheduler) {
    for sequence in scheduler.sequences.values() {
        let rows = scheduler
            .outstanding
            .iter()
            .flat_map(|issued| &issued.rows)
            .filter(|row| row.arrival == sequence.arrival);
        assert_eq!(rows.clone().count(), sequence.num_rows_in_flight);
        assert_eq!(
            rows.filter(|row| row.samples).count(),
            sequence.num_unknown_tokens
        );
    }
}
