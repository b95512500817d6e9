//! The engine: one task that owns the scheduler and drives the shards, one step ahead of them.
//!
//! The rest of the router talks to it through an `EngineHandle`: `submit` a sequence, read its `TokenStream`. Dropping the stream
//! cancels the sequence; there is no other way to cancel and no other event path. Text is unknown here.

mod step_loop;

mod constraints;
mod metrics;
mod sequences;
mod trace;

use std::future::poll_fn;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use scheduler::plan::SampledToken;
use scheduler::{FinishReason, SequenceSpec};
use tokio::sync::{Notify, mpsc, watch};

pub use step_loop::StepLoop;

use crate::grammar::{Constraint, GrammarError};

/// Of the first step of a kind nothing is known yet.
const FIRST_STEP_PATIENCE: Duration = Duration::from_secs(300);
const MIN_PATIENCE: Duration = Duration::from_secs(30);

/// What happens to one sequence, in this order: `Admitted`, then `PromptLogprobs` if asked for, then tokens, the last of which has
/// a finish reason. `Failed` can come at any point and is the last event. A closed stream without a last event means the engine died.
#[derive(Debug)]
pub enum TokenEvent {
    /// First scheduled. Sent once, even when the sequence is preempted and admitted again.
    Admitted {
        at: Instant,
        /// Prompt tokens that the prefix cache already held.
        num_cached_tokens: u32,
    },
    /// Of prompt tokens 1.., each given the tokens before it.
    PromptLogprobs(Vec<f32>),
    Token {
        token: SampledToken,
        finish_reason: Option<FinishReason>,
    },
    Failed(EngineError),
}

/// Why the engine refused or ended a sequence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("the engine's queue is full")]
    QueueFull,
    #[error("a sequence of {tokens} tokens cannot fit in the KV cache of {capacity} tokens")]
    TooLong { tokens: usize, capacity: usize },
    /// The caller broke the contract of `SequenceSpec`.
    #[error("the sequence is not valid: {0}")]
    Invalid(String),
    #[error("the model produced logits that are not finite")]
    Numerical,
    #[error("the grammar cannot go on: {0}")]
    Grammar(GrammarError),
    #[error("a shard was lost: {0}")]
    ShardLost(String),
    #[error("the engine has stopped")]
    Stopped,
}

/// A sequence on its way to the engine.
pub(crate) struct Submission {
    pub(crate) spec: SequenceSpec,
    pub(crate) constraint: Option<Constraint>,
    pub(crate) events: mpsc::Sender<TokenEvent>,
}

/// How far the engine is. Health is derived from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Sequences that wait for their first step, or for their next after a preemption.
    pub num_queued: usize,
    pub num_running: usize,
    /// KV blocks in the block tables of running sequences.
    pub num_used_blocks: u32,
    /// Steps that all shards have answered.
    pub num_steps: u64,
    /// When the shards were last heard of, while they owe an answer: the last answer, or the plan that ended a silence.
    pub waiting_since: Option<Instant>,
    /// How long steps like the one that is waited for took of late, if there were any.
    pub usual_step: Option<Duration>,
}

impl Progress {
    /// How long the shards have owed an answer; 0 while they owe none.
    pub fn waiting_for(&self) -> Duration {
        self.waiting_since
            .map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// How long the shards may owe an answer before something must be wrong with them.
    pub fn patience(&self) -> Duration {
        self.usual_step.map_or(FIRST_STEP_PATIENCE, |usual| {
            MIN_PATIENCE.max(usual.saturating_mul(20))
        })
    }
}

/// What the engine and its handles share besides the submissions.
#[derive(Default)]
struct Shared {
    /// Rung by every stream that is dropped before its last event.
    dropped: Notify,
    progress: watch::Sender<Progress>,
    /// Why the engine ended.
    end: OnceLock<EngineError>,
}

/// The way in, cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    submissions: mpsc::Sender<Submission>,
    shared: Arc<Shared>,
}

impl EngineHandle {
    /// The handle, and the engine's end of it, which holds at most `capacity` sequences.
    pub(crate) fn new(capacity: usize) -> (Self, mpsc::Receiver<Submission>) {
        let (submissions, receiver) = mpsc::channel(capacity);
        let shared = Arc::default();
        (
            Self {
                submissions,
                shared,
            },
            receiver,
        )
    }

    /// Hands a sequence, and what its tokens must obey, to the engine without waiting.
    pub fn submit(
        &self,
        spec: SequenceSpec,
        constraint: Option<Constraint>,
    ) -> Result<TokenStream, EngineError> {
        // Room for every event the sequence can have, so that the engine never waits for a slow reader.
        let (events, receiver) = mpsc::channel(spec.max_new_tokens as usize + 3);
        self.submissions
            .try_send(Submission {
                spec,
                constraint,
                events,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => EngineError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => self.end(),
            })?;
        Ok(TokenStream {
            receiver,
            shared: Arc::clone(&self.shared),
            ended: false,
        })
    }

    /// How far the engine is, right now.
    pub fn progress(&self) -> Progress {
        *self.shared.progress.borrow()
    }

    /// Follows `progress`.
    pub fn watch_progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    #[cfg(test)]
    pub(crate) fn show_progress(&self, progress: Progress) {
        self.shared.progress.send_replace(progress);
    }

    /// Why the engine takes no more sequences; `None` while it does.
    pub fn stopped(&self) -> Option<EngineError> {
        self.submissions.is_closed().then(|| self.end())
    }

    fn end(&self) -> EngineError {
        let end = self.shared.end.get();
        end.cloned().unwrap_or(EngineError::Stopped)
    }
}

/// The events of one sequence. Drop it to cancel the sequence.
pub struct TokenStream {
    receiver: mpsc::Receiver<TokenEvent>,
    shared: Arc<Shared>,
    /// The last event was read.
    ended: bool,
}

impl TokenStream {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As `next`.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let event = ready!(self.receiver.poll_recv(context));
        self.ended = match &event {
            Some(TokenEvent::Token { finish_reason, .. }) => finish_reason.is_some(),
            Some(TokenEvent::Failed(_)) | None => true,
            Some(_) => false,
        };
        Poll::Ready(event)
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        if !self.ended {
            // Closed first, so that the engine finds it closed when it is woken.
            self.receiver.close();
            self.shared.dropped.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_the_usual_step_and_is_never_short() {
        let patience = |usual_step| {
            let progress = Progress {
                usual_step,
                ..Progress::default()
            };
            progress.patience().as_secs()
        };
        assert_eq!(patience(None), 300);
        assert_eq!(patience(Some(Duration::from_millis(20))), 30);
        assert_eq!(patience(Some(Duration::from_secs(4))), 80);
    }
}
