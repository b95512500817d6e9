//! The open sequences and the way back to their readers. A reader that is slow or gone never holds anything up: every stream
//! has room for all its events.

use std::collections::HashMap;
use std::time::Instant;

use scheduler::SequenceEvent;
use scheduler::plan::{RowError, SequenceId, StepPlan};
use tokio::sync::mpsc;

use super::{EngineError, TokenEvent};

/// Every sequence between its submission and its last event.
#[derive(Default)]
pub(super) struct OpenSequences {
    open: HashMap<SequenceId, OpenSequence>,
    num_admitted_tokens: usize,
}

struct OpenSequence {
    events: mpsc::Sender<TokenEvent>,
    /// Prompt and all new tokens.
    max_tokens: usize,
    admitted: bool,
    /// Collected over the chunks of the prompt; sent in one piece before the first token.
    prompt_logprobs: Vec<f32>,
}

impl OpenSequences {
    pub(super) fn open(
        &mut self,
        id: SequenceId,
        max_tokens: usize,
        events: mpsc::Sender<TokenEvent>,
    ) {
        let sequence = OpenSequence {
            events,
            max_tokens,
            admitted: false,
            prompt_logprobs: Vec::new(),
        };
        self.open.insert(id, sequence);
    }

    /// Tells the sequences that this plan is the first of.
    pub(super) fn admit(&mut self, plan: &StepPlan, at: Instant) {
        for new in &plan.new_sequences {
            let Some(sequence) = self.open.get_mut(&new.sequence_id) else {
                continue;
            };
            if !sequence.admitted {
                sequence.admitted = true;
                self.num_admitted_tokens += sequence.max_tokens;
                sequence.send(TokenEvent::Admitted {
                    at,
                    num_cached_tokens: new.num_cached_tokens,
                });
            }
        }
    }

    /// Hands an event on, and closes the sequence with its last one.
    pub(super) fn dispatch(&mut self, event: SequenceEvent) {
        match event {
            SequenceEvent::PromptLogprobs(id, logprobs) => {
                if let Some(sequence) = self.open.get_mut(&id) {
                    sequence.prompt_logprobs.extend(logprobs);
                }
            }
            SequenceEvent::Token(id, token, finish_reason) => {
                let Some(sequence) = self.open.get_mut(&id) else {
                    return;
                };
                if !sequence.prompt_logprobs.is_empty() {
                    let logprobs = std::mem::take(&mut sequence.prompt_logprobs);
                    sequence.send(TokenEvent::PromptLogprobs(logprobs));
                }
                sequence.send(TokenEvent::Token {
                    token,
                    finish_reason,
                });
                if finish_reason.is_some() {
                    self.close(id);
                }
            }
            SequenceEvent::Failed(id, RowError::Numerical) => {
                self.fail(id, EngineError::Numerical);
            }
        }
    }

    /// Ends a sequence for a reason of its own.
    pub(super) fn fail(&mut self, id: SequenceId, reason: EngineError) {
        if let Some(sequence) = self.close(id) {
            sequence.send(TokenEvent::Failed(reason));
        }
    }

    /// Closes the sequences whose readers are gone.
    pub(super) fn take_dropped(&mut self) -> Vec<SequenceId> {
        let is_dropped = |sequence: &OpenSequence| sequence.events.is_closed();
        let dropped = self
            .open
            .iter()
            .filter(|(_, sequence)| is_dropped(sequence));
        let dropped: Vec<SequenceId> = dropped.map(|(&id, _)| id).collect();
        for &id in &dropped {
            self.close(id);
        }
        dropped
    }

    /// Ends every sequence.
    pub(super) fn fail_all(&mut self, reason: &EngineError) {
        for (_, sequence) in self.open.drain() {
            sequence.send(TokenEvent::Failed(reason.clone()));
        }
        self.num_admitted_tokens = 0;
    }

    /// Tokens that the admitted sequences can grow to.
    pub(super) fn num_admitted_tokens(&self) -> usize {
        self.num_admitted_tokens
    }

    fn close(&mut self, id: SequenceId) -> Option<OpenSequence> {
        let sequence = self.open.remove(&id)?;
        if sequence.admitted {
            self.num_admitted_tokens -= sequence.max_tokens;
        }
        Some(sequence)
    }
}

impl OpenSequence {
    fn send(&self, event: TokenEvent) {
        let sent = self.events.try_send(event);
        debug_assert!(
            !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
            "more events than the stream has room for"
        );
    }
}
