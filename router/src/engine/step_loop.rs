//! The loop: one task that owns the scheduler, the streams to the shards and every open sequence.
//!
//! It keeps the shards one step ahead: plan N+1 is on its way while they compute step N, so that the device never waits for what
//! happens here. It never waits for a reader, and sleeps when nothing happens.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use scheduler::plan::SequenceId;
use scheduler::{AddError, Scheduler, SchedulerConfig, SequenceEvent};
use tokio::select;
use tokio::sync::mpsc;
use tokio::time::sleep_until;

use super::constraints::{Constraints, LateMask, Pushed};
use super::metrics::{EngineMetrics, SentPlan};
use super::sequences::OpenSequences;
use super::trace::StepTrace;
use super::{EngineError, EngineHandle, Progress, Shared, Submission, TokenEvent};
use crate::shard::{RunStreams, ShardStep};

/// Plans that the shards may have without having answered: the step they compute, and the one after.
const MAX_OUTSTANDING: usize = 2;

/// The engine before it runs.
pub struct StepLoop {
    scheduler: Scheduler,
    shards: RunStreams,
    submissions: mpsc::Receiver<Submission>,
    sequences: OpenSequences,
    constraints: Constraints,
    /// Sent and not answered, oldest first.
    outstanding: VecDeque<SentPlan>,
    next_id: u64,
    metrics: EngineMetrics,
    trace: StepTrace,
    shared: Arc<Shared>,
}

impl StepLoop {
    /// The engine and the way in, which holds at most `capacity` sequences between two steps.
    pub fn new(
        config: SchedulerConfig,
        shards: RunStreams,
        capacity: usize,
    ) -> (EngineHandle, Self) {
        let (handle, submissions) = EngineHandle::new(capacity);
        let step_loop = Self {
            scheduler: Scheduler::new(config),
            shards,
            submissions,
            sequences: OpenSequences::default(),
            constraints: Constraints::default(),
            outstanding: VecDeque::new(),
            next_id: 0,
            metrics: EngineMetrics::register(),
            trace: StepTrace::default(),
            shared: Arc::clone(&handle.shared),
        };
        (handle, step_loop)
    }

    /// Serves until `stop` gives a deadline and the work is done or the deadline has passed, or until a shard is lost. Every
    /// sequence that is still open then fails with the reason.
    pub async fn run(
        mut self,
        stop: impl Future<Output = tokio::time::Instant>,
    ) -> Result<(), EngineError> {
        let outcome = self.serve(stop).await;
        let reason = outcome.clone().err().unwrap_or(EngineError::Stopped);
        let _ = self.shared.end.set(reason.clone());
        self.submissions.close();
        while let Ok(submission) = self.submissions.try_recv() {
            let _ = submission
                .events
                .try_send(TokenEvent::Failed(reason.clone()));
        }
        self.sequences.fail_all(&reason);
        outcome
    }

    async fn serve(
        &mut self,
        stop: impl Future<Output = tokio::time::Instant>,
    ) -> Result<(), EngineError> {
        let mut stop = pin!(stop.fuse());
        let mut drain_until = None;
        loop {
            self.send_plans();
            self.report();
            if drain_until.is_some() && self.is_idle() {
                return Ok(());
            }
            select! {
                // Drops first, so that a sequence that nobody reads has no further row; steps last, so that a fast model
                // cannot keep newcomers waiting.
                biased;
                () = self.shared.dropped.notified() => self.cancel_dropped(),
                deadline = &mut stop => {
                    self.submissions.close();
                    drain_until = Some(deadline);
                }
                () = passed(drain_until) => return Ok(()),
                Some(submission) = self.submissions.recv() => self.accept(submission),
                pushed = self.constraints.next() => self.resume(pushed),
                step = self.shards.next_step() => self.apply(step.map_err(lost)?)?,
            }
        }
    }

    /// One step ahead: schedules on top of what the shards still compute.
    fn send_plans(&mut self) {
        while self.outstanding.len() < MAX_OUTSTANDING
            && let Some(plan) = self.scheduler.schedule()
        {
            let masks = self.constraints.of_plan(&plan);
            self.shards.send(&plan, &masks);
            for id in self.constraints.slow_rows(&plan) {
                self.scheduler.pause(id);
            }
            self.sequences.admit(&plan, Instant::now());
            self.outstanding.push_back(self.metrics.plan_sent(&plan));
        }
    }

    /// Takes the step into account and hands every sequence what it meant for it.
    fn apply(&mut self, step: ShardStep) -> Result<(), EngineError> {
        let received_at = Instant::now();
        self.trace(&step, received_at);
        self.scheduler.observe(step.result.step_id, step.compute);
        let events = self.scheduler.apply(step.result).map_err(lost)?;
        let applied_at = Instant::now();
        for event in events {
            self.constrain(&event);
            self.sequences.dispatch(event);
        }
        if let Some(plan) = self.outstanding.pop_front() {
            self.metrics
                .step_done(&plan, step.compute, received_at, applied_at);
        }
        Ok(())
    }

    fn trace(&self, step: &ShardStep, received_at: Instant) {
        if StepTrace::is_wanted()
            && let Some(plan) = self.outstanding.front()
            && let Some(forecast) = self.scheduler.forecast()
        {
            self.trace.step(step, &forecast, plan.sent_at, received_at);
        }
    }

    /// What the event means for the tokens that its sequence may have next.
    fn constrain(&mut self, event: &SequenceEvent) {
        match event {
            SequenceEvent::Token(id, token, None) => self.constraints.push(*id, token.token_id),
            SequenceEvent::Token(id, _, Some(_)) | SequenceEvent::Failed(id, _) => {
                self.lift(*id);
            }
            SequenceEvent::PromptLogprobs(..) => {}
        }
    }

    /// A constraint has taken its token, or cannot: its sequence then ends.
    fn resume(&mut self, Pushed { id, outcome, took }: Pushed) {
        match outcome {
            Ok(constraint) => {
                let step = self.metrics.average_decode_step();
                match self.constraints.resume(id, constraint, took, step) {
                    // Another row is on its way, whose token will come here again.
                    Some(mask) => self.send_late(&mask),
                    None => self.scheduler.unpause(id),
                }
            }
            Err(error) => {
                self.scheduler.cancel(id);
                self.sequences.fail(id, EngineError::Grammar(error));
                self.lift(id);
            }
        }
    }

    /// Nobody reads a sequence's further tokens.
    fn lift(&mut self, id: SequenceId) {
        for mask in self.constraints.close(id) {
            self.send_late(&mask);
        }
    }

    fn send_late(&mut self, late: &LateMask) {
        self.shards.send_late_mask(late.step_id, &late.mask);
    }

    /// Queues what was submitted, all that is there, so that it can share the next step.
    fn accept(&mut self, submission: Submission) {
        let mut next = Some(submission);
        while let Some(Submission {
            spec,
            constraint,
            events,
        }) = next
        {
            let id = SequenceId(self.next_id);
            self.next_id += 1;
            let max_tokens = spec.prompt.len() + spec.max_new_tokens as usize;
            match self.scheduler.add(id, spec) {
                Ok(()) => {
                    self.sequences.open(id, max_tokens, events);
                    constraint
                        .into_iter()
                        .for_each(|constraint| self.constraints.open(id, constraint));
                }
                Err(error) => {
                    let _ = events.try_send(TokenEvent::Failed(refused(error)));
                }
            }
            next = self.submissions.try_recv().ok();
        }
        self.cancel_dropped();
    }

    /// A sequence whose stream is gone is cancelled, queued or running.
    fn cancel_dropped(&mut self) {
        for id in self.sequences.take_dropped() {
            self.scheduler.cancel(id);
            self.lift(id);
        }
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.outstanding.is_empty() && self.submissions.is_empty()
    }

    /// Tells metrics and handles how far the loop is.
    fn report(&mut self) {
        let stats = self.scheduler.stats();
        self.metrics
            .report(&stats, self.sequences.num_admitted_tokens());
        let oldest = self.outstanding.front();
        self.shared.progress.send_replace(Progress {
            num_queued: stats.num_waiting,
            num_running: stats.num_running,
            num_used_blocks: stats.num_used_blocks,
            num_steps: self.metrics.num_steps(),
            waiting_since: oldest.map(|plan| self.metrics.step_start(plan)),
            usual_step: oldest.and_then(|plan| self.metrics.usual_step(plan)),
        });
    }
}

/// Never, without a deadline.
async fn passed(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn refused(error: AddError) -> EngineError {
    match error {
        AddError::TooLong { tokens, capacity } => EngineError::TooLong { tokens, capacity },
        error => EngineError::Invalid(error.to_string()),
    }
}

fn lost(error: impl std::fmt::Display) -> EngineError {
    EngineError::ShardLost(error.to_string())
}
