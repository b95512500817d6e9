//! One response from its first event to its last: the steps of its answer, written down by the builder, until it ends, is cancelled, or
//! nobody wants it any more. What became of it is in the store before its last event is sent.

use std::future::pending;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::select;
use tokio::sync::oneshot;

use super::super::answer::{Step, Usage};
use super::super::errors::ApiError;
use super::events::{Builder, Event};
use super::object::ResponseObject;
use super::store::Tracked;
use crate::generation::Progress;

pub struct Run {
    builder: Builder,
    stage: Stage,
    steps: BoxStream<'static, Result<Step, ApiError>>,
    /// `None`: it is not stored.
    stored: Option<Stored>,
    /// What the answer took, if it was finished.
    pub usage: Option<Usage>,
    /// Why it failed.
    pub error: Option<ApiError>,
}

pub struct Stored {
    pub tracked: Tracked,
    pub cancelled: Option<oneshot::Receiver<()>>,
    /// Nobody but the store can ask for it.
    pub background: bool,
}

#[derive(PartialEq)]
enum Stage {
    Begins,
    Runs,
    Ended,
}

impl Run {
    pub fn new(
        builder: Builder,
        steps: BoxStream<'static, Result<Step, ApiError>>,
        stored: Option<Stored>,
    ) -> Self {
        Self {
            builder,
            stage: Stage::Begins,
            steps,
            stored,
            usage: None,
            error: None,
        }
    }

    /// The next events, perhaps none; `None` after the last.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        match self.stage {
            Stage::Ended => return None,
            Stage::Begins => {
                self.stage = Stage::Runs;
                return Some(self.builder.begun());
            }
            Stage::Runs => {}
        }
        let step = select! {
            biased;
            () = cancelled(&mut self.stored) => None,
            step = self.steps.next() => Some(step),
        };
        let events = match step {
            None => {
                self.stage = Stage::Ended;
                self.builder.cancelled()
            }
            Some(Some(Ok(Step::Progress(_, progress)))) => return Some(self.progress(progress)),
            Some(Some(Ok(Step::Done(usage)))) => {
                self.stage = Stage::Ended;
                let events = self.builder.done(&usage);
                self.usage = Some(usage);
                events
            }
            Some(Some(Err(error))) => {
                self.stage = Stage::Ended;
                let events = self.builder.failed(&error);
                self.error = Some(error);
                events
            }
            // The steps of an answer end with `Done` or an error.
            Some(None) => {
                self.stage = Stage::Ended;
                Vec::new()
            }
        };
        self.ended();
        Some(events)
    }

    /// The response as it is now.
    pub fn response(&self) -> &ResponseObject {
        self.builder.response()
    }

    /// Runs to the end without anybody listening.
    pub async fn finish(&mut self) {
        while self.next().await.is_some() {}
    }

    /// The events of a stream.
    pub fn into_events(self) -> impl stream::Stream<Item = Event> + Send + 'static {
        let batches = stream::unfold(self, |mut run| async move {
            let events = run.next().await?;
            Some((stream::iter(events), run))
        });
        batches.flatten()
    }

    fn progress(&mut self, progress: Progress) -> Vec<Event> {
        match progress {
            Progress::Text(delta) => self.builder.delta(delta),
            Progress::Admitted { .. } => {
                if let Some(stored) = &self.stored {
                    stored.tracked.started();
                }
                Vec::new()
            }
            Progress::PromptLogprobs(_) => Vec::new(),
        }
    }

    fn ended(&mut self) {
        // Cancels what is left of the answer.
        self.steps = stream::empty().boxed();
        if let Some(mut stored) = self.stored.take() {
            stored.tracked.finish(self.builder.response().clone());
        }
    }
}

/// Returns when the response shall end. A client that still waits keeps its answer though the store has forgotten it.
async fn cancelled(stored: &mut Option<Stored>) {
    let Some(stored) = stored else {
        return pending().await;
    };
    let Some(receiver) = &mut stored.cancelled else {
        return pending().await;
    };
    let asked = receiver.await.is_ok();
    stored.cancelled = None;
    if !asked && !stored.background {
        pending().await
    }
}
