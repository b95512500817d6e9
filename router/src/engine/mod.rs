//! The engine: one task that owns the scheduler and drives the shards, one step ahead of them.
//!
//! The rest of the router talks to it through an `EngineHandle`: `submit` a sequence, read its `TokenStream`. Dropping the stream
//! cancels the sequence; there is no other way to cancel and no other event path. Text is unknown here.

use std::time::Instant;

use scheduler::plan::SampledToken;
use scheduler::{FinishReason, SequenceSpec};
use tokio::sync::mpsc;

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
    #[error("the model produced logits that are not finite")]
    Numerical,
    #[error("a shard was lost: {0}")]
    ShardLost(String),
    #[error("the engine has stopped")]
    Stopped,
}

/// A sequence on its way to the engine.
pub(crate) struct Submission {
    pub(crate) spec: SequenceSpec,
    pub(crate) events: mpsc::Sender<TokenEvent>,
}

/// The way in, cheap to clone.
#[derive(Clone)]
pub struct EngineHandle {
    submissions: mpsc::Sender<Submission>,
}

impl EngineHandle {
    /// The handle, and the engine's end of it, which holds at most `capacity` sequences.
    pub(crate) fn new(capacity: usize) -> (Self, mpsc::Receiver<Submission>) {
        let (submissions, receiver) = mpsc::channel(capacity);
        (Self { submissions }, receiver)
    }

    /// Hands a sequence to the engine without waiting.
    pub fn submit(&self, spec: SequenceSpec) -> Result<TokenStream, EngineError> {
        // Room for every event the sequence can have, so that the engine never waits for a slow reader.
        let (events, receiver) = mpsc::channel(spec.max_new_tokens as usize + 3);
        self.submissions
            .try_send(Submission { spec, events })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => EngineError::QueueFull,
                mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
            })?;
        Ok(TokenStream { receiver })
    }
}

/// The events of one sequence. Drop it to cancel the sequence.
pub struct TokenStream {
    receiver: mpsc::Receiver<TokenEvent>,
}

impl TokenStream {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<TokenEvent> {
        self.receiver.recv().await
    }
}
