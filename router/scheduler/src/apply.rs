//! `apply`: what the result of a step means for each sequence. A result is checked as a whole before anything changes.

use std::time::Duration;

use crate::plan::{RowOutcome, RowResult, SequenceId, StepResult};
use crate::schedule::{IssuedPlan, IssuedRow};
use crate::{Forecast, ProtocolError, Scheduler, SequenceEvent};

impl Scheduler {
    /// Takes the result of the oldest outstanding plan. Events come in row order; sequences that ended meanwhile have none.
    pub fn apply(&mut self, result: StepResult) -> Result<Vec<SequenceEvent>, ProtocolError> {
        let issued = self.matching_plan(&result)?;
        self.check_rows(issued, &result)?;

        let mut events = Vec::new();
        let mut row_results = result.rows.into_iter().peekable();
        for row in self
            .outstanding
            .pop_front()
            .into_iter()
            .flat_map(|issued| issued.rows)
        {
            let row_result = row_results.next_if(|next| next.sequence_id == row.sequence_id);
            self.apply_row(&row, row_result, &mut events);
        }
        Ok(events)
    }

    /// How long the shards took for the oldest outstanding plan; to be told before its result is applied, or not at all. Without
    /// these times `schedule` knows only `max_batch_prefill_tokens`.
    pub fn observe(&mut self, step_id: u64, time: Duration) {
        if let Some(issued) = self.outstanding.front()
            && issued.step_id == step_id
        {
            self.step_times.observe(issued.shape, time.as_secs_f64());
        }
    }

    /// What the oldest outstanding plan computes, and how long that is foreseen to take; for logs.
    pub fn forecast(&self) -> Option<Forecast> {
        let shape = self.outstanding.front()?.shape;
        let foreseen = self.step_times.foresee(shape);
        Some(Forecast {
            num_decode_rows: shape.num_decode_rows,
            num_prefill_tokens: shape.num_prefill_tokens,
            foreseen: foreseen.map(Duration::from_secs_f64),
        })
    }

    fn matching_plan(&self, result: &StepResult) -> Result<&IssuedPlan, ProtocolError> {
        let issued = self.outstanding.front();
        issued
            .filter(|issued| issued.step_id == result.step_id)
            .ok_or(ProtocolError::UnexpectedStep {
                step_id: result.step_id,
                expected: issued.map(|issued| issued.step_id),
            })
    }

    /// Every row of the result is a row of the plan, in the same order, and says what the plan makes it say.
    fn check_rows(&self, issued: &IssuedPlan, result: &StepResult) -> Result<(), ProtocolError> {
        let mut row_results = result.rows.iter().peekable();
        for row in &issued.rows {
            let row_result = row_results.next_if(|next| next.sequence_id == row.sequence_id);
            self.check_row(issued.step_id, row, row_result)?;
        }
        match row_results.next() {
            None => Ok(()),
            Some(row_result) => Err(ProtocolError::UnexpectedRow {
                step_id: issued.step_id,
                sequence_id: row_result.sequence_id,
            }),
        }
    }

    fn check_row(
        &self,
        step_id: u64,
        row: &IssuedRow,
        row_result: Option<&RowResult>,
    ) -> Result<(), ProtocolError> {
        let sequence_id = row.sequence_id;
        let sequence = match self.sequences.get(&sequence_id) {
            Some(sequence) if sequence.arrival == row.arrival => sequence,
            _ => return Ok(()),
        };
        let num_logprobs = row_result.map_or(0, |row_result| row_result.prompt_logprobs.len());
        if sequence.num_received_logprobs + num_logprobs >= sequence.prompt_len {
            return Err(ProtocolError::TooManyPromptLogprobs {
                step_id,
                sequence_id,
            });
        }
        match row_result.and_then(|row_result| row_result.outcome.as_ref()) {
            None if row.samples => Err(ProtocolError::MissingToken {
                step_id,
                sequence_id,
            }),
            Some(RowOutcome::Token(_)) if !row.samples => Err(ProtocolError::UnexpectedToken {
                step_id,
                sequence_id,
            }),
            _ => Ok(()),
        }
    }

    /// A sequence that is gone drops its result; the arrival tells it from another one of the same id. One that waits was preempted
    /// after the plan was issued: its token counts, its blocks are gone.
    fn apply_row(
        &mut self,
        row: &IssuedRow,
        row_result: Option<RowResult>,
        events: &mut Vec<SequenceEvent>,
    ) {
        let id = row.sequence_id;
        let block_size = self.block_size();
        let sequence = match self.sequences.get_mut(&id) {
            Some(sequence) if sequence.arrival == row.arrival => sequence,
            _ => return,
        };
        sequence.num_rows_in_flight -= 1;
        sequence.num_unknown_tokens -= usize::from(row.samples);

        let (outcome, logprobs) = match row_result {
            Some(row_result) => (row_result.outcome, row_result.prompt_logprobs),
            None => (None, Vec::new()),
        };
        if let Some(RowOutcome::Error(error)) = outcome {
            self.fail(id);
            events.push(SequenceEvent::Failed(id, error));
            return;
        }
        let new_logprobs = sequence.new_logprobs(logprobs);
        if !new_logprobs.is_empty() {
            events.push(SequenceEvent::PromptLogprobs(id, new_logprobs));
        }
        if let Some(residence) = &mut sequence.residence {
            residence.num_confirmed_tokens += row.num_tokens;
            if self.config.prefix_caching {
                sequence.register_blocks(&mut self.blocks, block_size);
            }
        }
        if let Some(RowOutcome::Token(token)) = outcome {
            let finish_reason = sequence.push_token(token.token_id);
            if finish_reason.is_some() {
                self.end(id);
            }
            events.push(SequenceEvent::Token(id, token, finish_reason));
        }
    }

    /// Ends a sequence whose logits were not finite. Its K/V may be broken from an earlier chunk on, so its content leaves the
    /// prefix cache: a second try must not read it.
    fn fail(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        if let Some(residence) = &mut sequence.residence {
            residence.num_confirmed_tokens = 0;
        }
        self.blocks
            .forget_prefix(sequence.cache_salt, &sequence.tokens);
        self.end(id);
    }
}
