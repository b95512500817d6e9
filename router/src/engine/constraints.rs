//! The constrained sequences, and the masks that the shards wait for.
//!
//! A mask depends on the token before it, which is learnt when the next step is on its way already. So a plan goes out without the mask,
//! and the mask follows while the shards compute. Masks are found on blocking threads, never in the loop. Every row that was announced
//! as masked gets exactly one mask: an empty one, if its sequence has ended meanwhile and nobody will read its token.

use std::collections::{HashMap, VecDeque};

use scheduler::plan::{SequenceId, StepPlan, TokenId};
use tokio::task::JoinSet;

use crate::grammar::{Constraint, GrammarError};
use crate::shard::PlanMasks;
use crate::types::TokenMask;

#[derive(Default)]
pub(super) struct Constraints {
    sequences: HashMap<SequenceId, Constrained>,
    /// Constraints that take a token.
    running: JoinSet<(SequenceId, Result<Constraint, GrammarError>)>,
}

struct Constrained {
    /// `None` while it takes a token.
    constraint: Option<Constraint>,
    /// The mask of the next token, until a plan takes it.
    unused: Option<TokenMask>,
    /// Steps that sample a token of this sequence and have no mask for it yet, in order. Empty while `unused` is not.
    owed: VecDeque<u64>,
}

/// A mask for a row of a plan that was sent without it.
#[derive(Debug)]
pub(super) struct LateMask {
    pub step_id: u64,
    pub mask: (SequenceId, TokenMask),
}

impl Constraints {
    pub(super) fn open(&mut self, id: SequenceId, constraint: Constraint) {
        let constrained = Constrained {
            unused: Some(constraint.mask()),
            constraint: Some(constraint),
            owed: VecDeque::new(),
        };
        self.sequences.insert(id, constrained);
    }

    /// The masks of a plan that is about to be sent.
    pub(super) fn of_plan(&mut self, plan: &StepPlan) -> PlanMasks {
        let mut masks = PlanMasks::default();
        if self.sequences.is_empty() {
            return masks;
        }
        for row in plan.rows.iter().filter(|row| row.samples) {
            let id = row.sequence_id;
            let Some(constrained) = self.sequences.get_mut(&id) else {
                continue;
            };
            match constrained.unused.take() {
                Some(mask) => masks.known.push((id, mask)),
                None => {
                    constrained.owed.push_back(plan.step_id);
                    masks.owed.push(id);
                }
            }
        }
        masks
    }

    /// A sequence goes on with a token: what may follow it is found elsewhere, and comes out of `next`.
    pub(super) fn push(&mut self, id: SequenceId, token_id: TokenId) {
        let constrained = self.sequences.get_mut(&id);
        // A token is sampled under the mask that the one before it made, so no constraint has two at once.
        let Some(mut constraint) = constrained.and_then(|found| found.constraint.take()) else {
            return;
        };
        self.running.spawn_blocking(move || {
            let pushed = constraint.push(token_id);
            (id, pushed.map(|()| constraint))
        });
    }

    /// The next constraint that has taken its token; never, while none is at it. Cancel safe.
    pub(super) async fn next(&mut self) -> (SequenceId, Result<Constraint, GrammarError>) {
        loop {
            match self.running.join_next().await {
                Some(Ok(done)) => return done,
                // A panic of the library is caught there; the sequence of any other would wait for ever, so this must not be lost.
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                None => std::future::pending().await,
            }
        }
    }

    /// Takes back a constraint and its new mask, which the oldest step that waits for it gets at once.
    pub(super) fn resume(&mut self, id: SequenceId, constraint: Constraint) -> Option<LateMask> {
        let constrained = self.sequences.get_mut(&id)?;
        let mask = constraint.mask();
        constrained.constraint = Some(constraint);
        match constrained.owed.pop_front() {
            Some(step_id) => Some(LateMask {
                step_id,
                mask: (id, mask),
            }),
            None => {
                constrained.unused = Some(mask);
                None
            }
        }
    }

    /// Forgets a sequence that has ended, and frees the steps that wait for its masks.
    pub(super) fn close(&mut self, id: SequenceId) -> impl Iterator<Item = LateMask> + use<> {
        let closed = self.sequences.remove(&id);
        let owed = closed.map(|constrained| constrained.owed);
        owed.into_iter().flatten().map(move |step_id| LateMask {
            step_id,
            mask: (id, TokenMask::any()),
        })
    }
}
