//! An engine for tests that computes nothing: every sequence gets the events that a script gives it.

use std::sync::Arc;
use std::time::Instant;

use scheduler::plan::SampledToken;
use scheduler::{FinishReason, SequenceSpec};
use tokio::sync::mpsc;

use crate::engine::{EngineHandle, TokenEvent};

/// A sequence that the script did not end. Its client is gone when `events` is closed.
pub(crate) struct Held {
    pub(crate) spec: SequenceSpec,
    pub(crate) events: mpsc::Sender<TokenEvent>,
}

/// The engine, and the sequences that its script leaves open. Must be called inside a runtime.
pub(crate) fn engine(
    script: impl Fn(&SequenceSpec) -> Vec<TokenEvent> + Send + 'static,
) -> (EngineHandle, mpsc::Receiver<Held>) {
    let (handle, mut submissions) = EngineHandle::new(64);
    let (held_sender, held) = mpsc::channel(64);
    #[allow(clippy::disallowed_methods)] // Ends with the test's runtime.
    tokio::spawn(async move {
        while let Some(submission) = submissions.recv().await {
            let script = script(&submission.spec);
            let ended = script.last().is_some_and(is_last);
            for event in script {
                // The client may be gone by now, which is what some tests are about.
                let _ = submission.events.try_send(event);
            }
            if !ended {
                let _ = held_sender
                    .send(Held {
                        spec: submission.spec,
                        events: submission.events,
                    })
                    .await;
            }
        }
    });
    (handle, held)
}

fn is_last(event: &TokenEvent) -> bool {
    matches!(
        event,
        TokenEvent::Failed(_)
            | TokenEvent::Token {
                finish_reason: Some(_),
                ..
            }
    )
}

pub(crate) fn admitted(num_cached_tokens: u32) -> TokenEvent {
    TokenEvent::Admitted {
        at: Instant::now(),
        num_cached_tokens,
    }
}

pub(crate) fn token(token_id: u32, finish_reason: Option<FinishReason>) -> TokenEvent {
    TokenEvent::Token {
        token: SampledToken {
            token_id,
            logprob: -1.0,
            top_tokens: Vec::new(),
        },
        finish_reason,
    }
}

/// The test model's greedy answers. Its most likely token depends on the last token only, so a table of successors is the model.
#[derive(Clone)]
pub(crate) struct Greedy(Arc<Vec<u32>>);

impl Greedy {
    pub(crate) fn compat() -> Self {
        let path = crate::tokenizer::tests::compat_folder().join("successors.json");
        let text = std::fs::read_to_string(path).unwrap();
        Self(Arc::new(serde_json::from_str(&text).unwrap()))
    }

    /// Everything that happens to a sequence.
    pub(crate) fn events(&self, spec: &SequenceSpec) -> Vec<TokenEvent> {
        let mut events = vec![admitted(0)];
        if spec.sampling.prompt_logprobs {
            events.push(TokenEvent::PromptLogprobs(vec![
                -2.0;
                spec.prompt.len() - 1
            ]));
        }
        let mut last = *spec.prompt.last().unwrap();
        for count in 1..=spec.max_new_tokens {
            last = self.0[last as usize];
            let finish = if spec.end_token_ids.contains(&last) {
                Some(FinishReason::EndToken)
            } else {
                (count == spec.max_new_tokens).then_some(FinishReason::Length)
            };
            events.push(self.sampled(last, spec, finish));
            if finish.is_some() {
                break;
            }
        }
        events
    }

    fn sampled(
        &self,
        token_id: u32,
        spec: &SequenceSpec,
        finish_reason: Option<FinishReason>,
    ) -> TokenEvent {
        let alternatives = (0..spec.sampling.num_top_tokens)
            .map(|idx| ((token_id + idx) % 2048, -1.0 - idx as f32));
        TokenEvent::Token {
            token: SampledToken {
                token_id,
                logprob: -1.0,
                top_tokens: alternatives.collect(),
            },
            finish_reason,
        }
    }
}
