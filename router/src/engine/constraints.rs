//! The constrained sequences, and the masks that the shards wait for.
//!
//! A mask depends on the token before it, which is learnt when the next step is on its way already. So a plan goes out without the mask,
//! and the mask follows while the shards compute. Masks are found on blocking threads, never in the loop. Every row that was announced
//! as masked gets exactly one mask: an empty one, if its sequence has ended meanwhile and nobody will read its token.
//!
//! All rows of a step wait for its last mask. So a sequence whose masks take longer than the others compute does not run a step ahead: it has
//! a row only when its mask is known.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use scheduler::plan::{SequenceId, StepPlan, TokenId};
use tokio::task::JoinSet;

use crate::grammar::{Constraint, GrammarError};
use crate::shard::PlanMasks;
use crate::types::TokenMask;

/// The others compute for at least as long.
const ALWAYS_FAST: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(super) struct Constraints {
    sequences: HashMap<SequenceId, Constrained>,
    /// Constraints that take a token.
    running: JoinSet<Pushed>,
}

/// What became of a constraint that took a token.
pub(super) struct Pushed {
    pub id: SequenceId,
    pub outcome: Result<Constraint, GrammarError>,
    /// From the token to the mask, with the time in which no thread was free.
    pub took: Duration,
}

struct Constrained {
    /// `None` while it takes a token.
    constraint: Option<Constraint>,
    /// The mask of the next token, until a plan takes it.
    unused: Option<TokenMask>,
    /// Steps that sample a token of this sequence and have no mask for it yet, in order. Empty while `unused` is not.
    owed: VecDeque<u64>,
    /// Its last mask would have kept others waiting.
    is_slow: bool,
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
            is_slow: false,
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

    /// The sequences of a plan that must not have a row in the next one before their mask is known.
    pub(super) fn slow_rows(&self, plan: &StepPlan) -> Vec<SequenceId> {
        let is_slow = |id: &SequenceId| self.sequences.get(id).is_some_and(|found| found.is_slow);
        let rows = plan.rows.iter().filter(|row| row.samples);
        rows.map(|row| row.sequence_id).filter(is_slow).collect()
    }

    /// A sequence goes on with a token: what may follow it is found elsewhere, and comes out of `next`.
    pub(super) fn push(&mut self, id: SequenceId, token_id: TokenId) {
        let constrained = self.sequences.get_mut(&id);
        // A token is sampled under the mask that the one before it made, so no constraint has two at once.
        let Some(mut constraint) = constrained.and_then(|found| found.constraint.take()) else {
            return;
        };
        let started = Instant::now();
        self.running.spawn_blocking(move || {
            let pushed = constraint.push(token_id);
            Pushed {
                id,
                outcome: pushed.map(|()| constraint),
                took: started.elapsed(),
            }
        });
    }

    /// The next constraint that has taken its token; never, while none is at it. Cancel safe.
    pub(super) async fn next(&mut self) -> Pushed {
        loop {
            match self.running.join_next().await {
                Some(Ok(done)) => return done,
                // A panic of the library is caught there; the sequence of any other would wait for ever, so this must not be lost.
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                None => std::future::pending().await,
            }
        }
    }

    /// Takes back a constraint and its new mask, which the oldest step that waits for it gets at once. `took` is compared with
    /// `step`, in which the others compute.
    pub(super) fn resume(
        &mut self,
        id: SequenceId,
        constraint: Constraint,
        took: Duration,
        step: Duration,
    ) -> Option<LateMask> {
        let constrained = self.sequences.get_mut(&id)?;
        constrained.is_slow = took > ALWAYS_FAST.max(step / 2);
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

#[cfg(test)]
mod tests {
    use scheduler::plan::Row;

    use super::*;
    use crate::grammar::GrammarCompiler;
    use crate::tokenizer::tests::compat;
    use crate::types::Grammar;

    const ID: SequenceId = SequenceId(3);
    const STEP: Duration = Duration::from_millis(10);

    fn plan() -> StepPlan {
        StepPlan {
            step_id: 1,
            forget: Vec::new(),
            new_sequences: Vec::new(),
            rows: vec![Row {
                sequence_id: ID,
                num_scheduled_tokens: 1,
                new_block_ids: Vec::new(),
                samples: true,
            }],
        }
    }

    async fn is_slow_after(took: Duration) -> bool {
        let grammar = Grammar::Regex("a{30}".to_owned());
        let constraint = GrammarCompiler::new(compat(), 2048)
            .compile(&grammar)
            .unwrap();
        let mut constraints = Constraints::default();
        constraints.open(ID, constraint);
        assert!(
            constraints.slow_rows(&plan()).is_empty(),
            "of the first nothing is known"
        );
        constraints.push(ID, compat().encode("a", false).unwrap()[0]);
        let pushed = constraints.next().await;
        let constraint = pushed.outcome.unwrap();
        constraints.resume(ID, constraint, took, STEP);
        constraints.slow_rows(&plan()) == [ID]
    }

    #[tokio::test]
    async fn a_sequence_is_slow_when_its_mask_takes_more_than_half_a_step() {
        assert!(!is_slow_after(STEP / 4).await);
        assert!(is_slow_after(STEP).await);
    }
}
