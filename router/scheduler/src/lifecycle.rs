//! How sequences come and go: `add`, `cancel`, and the steps out of the shards that finishing, failing and preemption share.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::blocks::BlockPool;
use crate::plan::SequenceId;
use crate::sequence::Sequence;
use crate::step_times::StepTimes;
use crate::{AddError, Scheduler, SchedulerConfig, SequenceSpec, Stats};

impl Scheduler {
    /// # Panics
    /// If a budget is 0, or the blocks hold more tokens than a `u32` counts.
    pub fn new(config: SchedulerConfig) -> Self {
        assert!(config.num_blocks > 0, "num_blocks is 0");
        assert!(config.block_size > 0, "block_size is 0");
        assert!(
            config.max_batch_prefill_tokens > 0,
            "max_batch_prefill_tokens is 0"
        );
        assert!(config.max_batch_size > 0, "max_batch_size is 0");
        assert!(
            config.num_blocks.checked_mul(config.block_size).is_some(),
            "{} blocks of {} tokens are too many",
            config.num_blocks,
            config.block_size
        );
        Self {
            blocks: BlockPool::new(config.num_blocks as usize, config.block_size as usize),
            config,
            sequences: HashMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            forget: Vec::new(),
            outstanding: VecDeque::new(),
            step_times: StepTimes::default(),
            next_arrival: 0,
            next_step_id: 1,
            num_preemptions: 0,
            num_prefix_cache_query_tokens: 0,
            num_prefix_cache_hit_tokens: 0,
        }
    }

    /// Queues a sequence behind all others.
    pub fn add(&mut self, id: SequenceId, spec: SequenceSpec) -> Result<(), AddError> {
        let tokens = spec.prompt.len() + spec.max_new_tokens as usize;
        let capacity = (self.config.num_blocks * self.config.block_size) as usize;
        if spec.prompt.is_empty() {
            return Err(AddError::EmptyPrompt);
        }
        if spec.max_new_tokens == 0 {
            return Err(AddError::ZeroTokens);
        }
        if tokens > capacity {
            return Err(AddError::TooLong { tokens, capacity });
        }
        if self.sequences.contains_key(&id) {
            return Err(AddError::DuplicateId(id));
        }
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        self.sequences.insert(id, Sequence::new(arrival, spec));
        self.waiting.insert(arrival, id);
        Ok(())
    }

    /// Ends a sequence, waiting or running, without an event; its blocks are free now. False: there is no such sequence, or no longer.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let known = self.sequences.contains_key(&id);
        self.end(id);
        known
    }

    /// Gives a running sequence no further row until `unpause`: what it may say next is not known yet. It keeps its blocks and its place
    /// among the `max_batch_size`. One that is not running is not kept from its admission.
    pub fn pause(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.is_paused = true;
        }
    }

    /// Ends `pause`.
    pub fn unpause(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.is_paused = false;
        }
    }

    /// No sequence, and the shards were told so. Results may still be outstanding.
    pub fn is_idle(&self) -> bool {
        self.sequences.is_empty() && self.forget.is_empty()
    }

    pub fn stats(&self) -> Stats {
        let num_free_blocks = self.blocks.num_free() as u32;
        let num_cached_blocks = self.blocks.num_cached() as u32;
        let rows_in_flight = self.outstanding.iter().flat_map(|issued| &issued.rows);
        Stats {
            num_waiting: self.waiting.len(),
            num_running: self.running.len(),
            num_blocks: self.config.num_blocks,
            num_free_blocks,
            num_cached_blocks,
            num_used_blocks: self.config.num_blocks - num_free_blocks - num_cached_blocks,
            num_outstanding_steps: self.outstanding.len(),
            num_tokens_in_flight: rows_in_flight.map(|row| row.num_tokens).sum(),
            num_preemptions: self.num_preemptions,
            num_evictions: self.blocks.num_evictions(),
            num_prefix_cache_query_tokens: self.num_prefix_cache_query_tokens,
            num_prefix_cache_hit_tokens: self.num_prefix_cache_hit_tokens,
        }
    }

    pub(crate) fn block_size(&self) -> usize {
        self.config.block_size as usize
    }

    /// Removes a sequence that finished, failed or was cancelled.
    pub(crate) fn end(&mut self, id: SequenceId) {
        self.leave_shards(id);
        if let Some(sequence) = self.sequences.remove(&id) {
            self.waiting.remove(&sequence.arrival);
        }
    }

    /// Sends a running sequence back to the queue, where its arrival puts it in front of all that never ran.
    pub(crate) fn preempt(&mut self, id: SequenceId) {
        self.leave_shards(id);
        self.waiting.insert(self.sequences[&id].arrival, id);
        self.num_preemptions += 1;
    }

    /// Takes a sequence out of `running` and gives back its blocks, at once even if a row of it is in flight (invariant 3).
    /// Does nothing to a waiting one: the shards do not hold it.
    fn leave_shards(&mut self, id: SequenceId) {
        let block_size = self.block_size();
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if self.config.prefix_caching {
            sequence.register_copies(&mut self.blocks, block_size);
        }
        if let Some(residence) = sequence.residence.take() {
            self.blocks.release(&residence.block_table);
            self.running.remove(&sequence.arrival);
            self.forget.push(id);
        }
    }
}
