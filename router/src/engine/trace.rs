//! A line in the log for each step, for those who ask for it with `--log-level info,text_gen_router::engine::trace=trace`. Read by
//! `tools/bench/timeline.py`. Otherwise it costs nothing.

use std::time::Instant;

use scheduler::Forecast;

use crate::shard::ShardStep;

/// Times in the log count from here.
pub(super) struct StepTrace {
    begun_at: Instant,
}

impl Default for StepTrace {
    fn default() -> Self {
        Self {
            begun_at: Instant::now(),
        }
    }
}

impl StepTrace {
    pub(super) fn is_wanted() -> bool {
        tracing::enabled!(tracing::Level::TRACE)
    }

    /// All times in microseconds.
    pub(super) fn step(
        &self,
        step: &ShardStep,
        forecast: &Forecast,
        sent_at: Instant,
        received_at: Instant,
    ) {
        let since_begin = |at: Instant| at.duration_since(self.begun_at).as_micros() as u64;
        tracing::trace!(
            step = step.result.step_id,
            decode_rows = forecast.num_decode_rows,
            prefill_tokens = forecast.num_prefill_tokens,
            sent = since_begin(sent_at),
            received = since_begin(received_at),
            compute = step.compute.as_micros() as u64,
            foreseen = forecast
                .foreseen
                .map_or(0, |foreseen| foreseen.as_micros() as u64),
            "a step"
        );
    }
}
