//! `schedule`: what the next step computes, within the budgets and the blocks.

use crate::plan::{BlockId, MIN_PREFILL_TOKENS, NewSequence, Row, SequenceId, StepPlan};
use crate::sequence::Sequence;
use crate::step_times::{Room, StepShape, StepTimes, num_pairs};
use crate::{Scheduler, SchedulerConfig};

/// What `apply` must know of a plan.
pub(crate) struct IssuedPlan {
    pub(crate) step_id: u64,
    pub(crate) rows: Vec<IssuedRow>,
    pub(crate) shape: StepShape,
}

pub(crate) struct IssuedRow {
    pub(crate) sequence_id: SequenceId,
    pub(crate) arrival: u64,
    pub(crate) num_tokens: usize,
    /// The row leaves no token uncomputed, so it samples one.
    pub(crate) samples: bool,
}

/// A plan under construction.
struct Step {
    prefill_budget: usize,
    /// What is left for prefill.
    room: Room,
    shape: StepShape,
    max_rows: usize,
    /// Running sequences without a row that must find a place in a later step.
    num_paused: usize,
    new_sequences: Vec<NewSequence>,
    decode_rows: Vec<(Row, IssuedRow)>,
    prefill_rows: Vec<(Row, IssuedRow)>,
}

impl Scheduler {
    /// The next plan, or `None` when there is nothing to compute and nothing to forget. Each plan must be executed after the one
    /// before it, and answered by one call of `apply`.
    pub fn schedule(&mut self) -> Option<StepPlan> {
        let room = self.prefill_room();
        let mut step = Step::new(&self.config, room);

        // Oldest first, so that what is short is short for the youngest.
        let mut next_arrival = 0;
        while let Some((&arrival, &id)) = self.running.range(next_arrival..).next() {
            next_arrival = arrival + 1;
            if self.sequences[&id].is_paused {
                step.num_paused += 1;
                continue;
            }
            let num_tokens = step.num_tokens_for(&self.sequences[&id], &self.step_times);
            if num_tokens > 0 && self.make_room(id, num_tokens) {
                self.push_row(id, num_tokens, &mut step);
            }
        }

        // Oldest first too, and nobody overtakes one that does not fit.
        while step.can_admit()
            && let Some((_, &id)) = self.waiting.first_key_value()
            && self.admit(id, &mut step)
        {
            let num_tokens = step.num_tokens_for(&self.sequences[&id], &self.step_times);
            self.push_row(id, num_tokens, &mut step);
        }

        self.issue(step)
    }

    /// How much prefill the next step may have.
    fn prefill_room(&mut self) -> Room {
        let running = self.running.values().map(|id| &self.sequences[id]);
        let num_decode_rows = running.filter(|sequence| sequence.is_decode()).count();
        let num_free_rows =
            (self.config.max_batch_size as usize).saturating_sub(self.running.len());
        let num_admissible = self.waiting.len().min(num_free_rows);
        let num_waiting = self.running.len() - num_decode_rows + num_admissible;
        self.step_times.room(num_decode_rows, num_waiting)
    }

    /// Preempts the youngest until there are blocks for more tokens of a running sequence. False: it was the youngest itself. Older
    /// sequences are never touched, so no row of this step is taken back.
    fn make_room(&mut self, id: SequenceId, num_tokens: usize) -> bool {
        let residence = self.sequences[&id].residence.as_ref();
        let num_missing = residence
            .expect("`id` is running")
            .num_missing_blocks(&self.blocks, num_tokens);
        while self.blocks.num_available() < num_missing {
            let (_, &youngest) = self.running.last_key_value().expect("`id` is running");
            self.preempt(youngest);
            if youngest == id {
                return false;
            }
        }
        true
    }

    /// Admits the oldest waiting sequence if there are blocks for all its tokens. One more block must be left over, so that it is
    /// not preempted right away when an older one grows; but alone it may have them all.
    fn admit(&mut self, id: SequenceId, step: &mut Step) -> bool {
        let block_size = self.block_size();
        let sequence = self.sequences.get_mut(&id).expect("`id` is waiting");
        if sequence.num_rows_in_flight > 0 {
            return false;
        }
        // The last token is always computed, because the logits that follow it are needed.
        let reads_cache = self.config.prefix_caching && sequence.read_prefix_cache;
        let num_reusable = if reads_cache { sequence.len() - 1 } else { 0 };
        let cached = self
            .blocks
            .find_prefix(sequence.cache_salt, &sequence.tokens[..num_reusable]);
        let num_missing = self.blocks.blocks_for(sequence.len()) - cached.len();
        let num_taken = num_missing + self.blocks.num_unused(&cached);
        let num_spare = usize::from(!self.running.is_empty());
        if self.blocks.num_available() < num_taken + num_spare {
            return false;
        }

        for node in &cached {
            self.blocks.take(node.block_id);
        }
        sequence.admit(&cached, block_size);
        self.waiting.remove(&sequence.arrival);
        self.running.insert(sequence.arrival, id);
        step.new_sequences.push(NewSequence {
            sequence_id: id,
            token_ids: sequence.tokens.clone(),
            prompt_len: sequence.prompt_len as u32,
            num_cached_tokens: (cached.len() * block_size) as u32,
            sampling: sequence.sampling.clone(),
        });
        if reads_cache {
            self.num_prefix_cache_query_tokens += sequence.len() as u64;
            self.num_prefix_cache_hit_tokens += (cached.len() * block_size) as u64;
        }
        true
    }

    /// Schedules tokens of a running sequence for which there are blocks.
    fn push_row(&mut self, id: SequenceId, num_tokens: usize, step: &mut Step) {
        let sequence = self.sequences.get_mut(&id).expect("`id` is running");
        let is_decode = sequence.is_decode();
        let samples = num_tokens == sequence.num_uncomputed_tokens();
        let residence = sequence.residence.as_mut().expect("`id` is running");
        let num_missing = residence.num_missing_blocks(&self.blocks, num_tokens);
        residence
            .block_table
            .extend((0..num_missing).map(|_| self.blocks.allocate()));
        let new_block_ids: Vec<BlockId> =
            residence.block_table[residence.num_sent_blocks..].to_vec();
        residence.num_sent_blocks = residence.block_table.len();
        let num_computed_tokens = residence.num_computed_tokens;
        residence.num_computed_tokens += num_tokens;
        sequence.num_rows_in_flight += 1;
        sequence.num_unknown_tokens += usize::from(samples);

        let row = Row {
            sequence_id: id,
            num_scheduled_tokens: num_tokens as u32,
            new_block_ids,
            samples,
        };
        let issued = IssuedRow {
            sequence_id: id,
            arrival: sequence.arrival,
            num_tokens,
            samples,
        };
        if is_decode {
            step.shape.num_decode_rows += 1;
            step.decode_rows.push((row, issued));
        } else {
            step.take_prefill(num_tokens, num_computed_tokens, &self.step_times);
            step.prefill_rows.push((row, issued));
        }
    }

    fn issue(&mut self, step: Step) -> Option<StepPlan> {
        let forget = std::mem::take(&mut self.forget);
        let (rows, issued_rows): (Vec<Row>, Vec<IssuedRow>) = step
            .decode_rows
            .into_iter()
            .chain(step.prefill_rows)
            .unzip();
        if rows.is_empty() && forget.is_empty() {
            return None;
        }
        let step_id = self.next_step_id;
        self.next_step_id += 1;
        self.outstanding.push_back(IssuedPlan {
            step_id,
            rows: issued_rows,
            shape: step.shape,
        });
        Some(StepPlan {
            step_id,
            forget,
            new_sequences: step.new_sequences,
            rows,
        })
    }
}

impl Step {
    fn new(config: &SchedulerConfig, room: Room) -> Self {
        let prefill_budget = match room {
            Room::Nothing => 0,
            _ => config.max_batch_prefill_tokens as usize,
        };
        Self {
            prefill_budget,
            room,
            shape: StepShape::default(),
            max_rows: config.max_batch_size as usize,
            num_paused: 0,
            new_sequences: Vec::new(),
            decode_rows: Vec::new(),
            prefill_rows: Vec::new(),
        }
    }

    /// Tokens of a running sequence that this step computes; 0 when all of them are in flight or the prefill budget is spent.
    fn num_tokens_for(&self, sequence: &Sequence, times: &StepTimes) -> usize {
        if sequence.is_decode() {
            return 1;
        }
        let num_computed_tokens = sequence.num_computed_tokens();
        let fitting = match self.room {
            Room::Seconds(seconds) => times.tokens_within(seconds, num_computed_tokens),
            _ => usize::MAX,
        };
        let budget = self.prefill_budget.min(fitting);
        sequence.num_uncomputed_tokens().min(budget)
    }

    /// Takes a chunk out of the budget, which is spent, too, when there is no time for another.
    fn take_prefill(&mut self, num_tokens: usize, num_computed_tokens: usize, times: &StepTimes) {
        self.shape.num_prefill_tokens += num_tokens;
        self.shape.num_prefill_pairs += num_pairs(num_tokens, num_computed_tokens);
        self.prefill_budget -= num_tokens;
        if let Room::Seconds(seconds) = &mut self.room {
            *seconds -= times.chunk_secs(num_tokens, num_computed_tokens);
            if *seconds < times.chunk_secs(MIN_PREFILL_TOKENS as usize, 0) {
                self.prefill_budget = 0;
            }
        }
    }

    /// Whether another sequence may start in this step. While prefill budget is left, each running sequence that has something to
    /// compute has a row, so `max_batch_size` holds for later steps too.
    fn can_admit(&self) -> bool {
        let num_rows = self.decode_rows.len() + self.prefill_rows.len() + self.num_paused;
        num_rows < self.max_rows && self.prefill_budget > 0
    }
}
