//! What the engine counts. Handles are made once, so that a step costs a few atomic stores. Names and labels with `tgi_` are a
//! promise to TGI's dashboards.
//!
//! A step counts as `prefill` when it computes a part of any prompt, else as `decode`.

use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use scheduler::Stats;
use scheduler::plan::StepPlan;

pub(super) struct EngineMetrics {
    prefill: MethodMetrics,
    decode: MethodMetrics,
    queue_size: Gauge,
    batch_size: Gauge,
    batch_max_tokens: Gauge,
    batch_next_size: Histogram,
    blocks_free: Gauge,
    blocks_used: Gauge,
    blocks_cached: Gauge,
    preemptions: Counter,
    prefix_query_tokens: Counter,
    prefix_hit_tokens: Counter,
    num_steps: u64,
    last_step_at: Option<Instant>,
}

/// One value of the label `method`.
struct MethodMetrics {
    count: Counter,
    success: Counter,
    inference: Histogram,
    forward: Histogram,
    decode: Histogram,
    filter: Histogram,
    step: Histogram,
    /// The longest step of late: an older one counts for less with every step.
    usual_step: Option<Duration>,
    /// Of the last few; zero before the first.
    average_step: Duration,
}

/// A plan that the shards have not answered.
pub(super) struct SentPlan {
    pub(super) sent_at: Instant,
    is_prefill: bool,
    /// Nothing to compute; not an inference.
    only_forgets: bool,
}

impl EngineMetrics {
    /// Makes every series, so that all are there from the first scrape.
    pub(super) fn register() -> Self {
        describe();
        counter!("tgi_batch_inference_failure", "method" => "prefill").absolute(0);
        counter!("tgi_batch_inference_failure", "method" => "decode").absolute(0);
        Self {
            prefill: MethodMetrics::register("prefill"),
            decode: MethodMetrics::register("decode"),
            queue_size: gauge!("tgi_queue_size"),
            batch_size: gauge!("tgi_batch_current_size"),
            batch_max_tokens: gauge!("tgi_batch_current_max_tokens"),
            batch_next_size: histogram!("tgi_batch_next_size"),
            blocks_free: gauge!("text_gen_kv_blocks", "state" => "free"),
            blocks_used: gauge!("text_gen_kv_blocks", "state" => "used"),
            blocks_cached: gauge!("text_gen_kv_blocks", "state" => "cached"),
            preemptions: counter!("text_gen_preemptions_total"),
            prefix_query_tokens: counter!("text_gen_prefix_cache_query_tokens_total"),
            prefix_hit_tokens: counter!("text_gen_prefix_cache_hit_tokens_total"),
            num_steps: 0,
            last_step_at: None,
        }
    }

    pub(super) fn plan_sent(&mut self, plan: &StepPlan) -> SentPlan {
        let is_prefill = !plan.new_sequences.is_empty()
            || plan.rows.iter().any(|row| row.num_scheduled_tokens > 1);
        if !plan.new_sequences.is_empty() {
            self.batch_next_size.record(plan.rows.len() as f64);
        }
        if !plan.rows.is_empty() {
            self.method(is_prefill).count.increment(1);
        }
        SentPlan {
            sent_at: Instant::now(),
            is_prefill,
            only_forgets: plan.rows.is_empty(),
        }
    }

    pub(super) fn step_done(
        &mut self,
        plan: &SentPlan,
        compute: Duration,
        received_at: Instant,
        applied_at: Instant,
    ) {
        let started_at = self.step_start(plan);
        self.num_steps += 1;
        self.last_step_at = Some(received_at);
        if plan.only_forgets {
            return;
        }
        let step = received_at.duration_since(started_at);
        let method = match plan.is_prefill {
            true => &mut self.prefill,
            false => &mut self.decode,
        };
        let faded = method
            .usual_step
            .map_or(Duration::ZERO, |usual| usual / 100 * 99);
        method.usual_step = Some(faded.max(step));
        method.average_step = (method.average_step * 7 + step) / 8;
        method.success.increment(1);
        method.step.record(step);
        method
            .inference
            .record(applied_at.duration_since(started_at));
        method.forward.record(compute);
        method.decode.record(applied_at.duration_since(received_at));
        method.filter.record(applied_at.elapsed());
    }

    /// Sets the gauges.
    pub(super) fn report(&self, stats: &Stats, num_admitted_tokens: usize) {
        self.queue_size.set(stats.num_waiting as f64);
        self.batch_size.set(stats.num_running as f64);
        self.batch_max_tokens.set(num_admitted_tokens as f64);
        self.blocks_free.set(f64::from(stats.num_free_blocks));
        self.blocks_used.set(f64::from(stats.num_used_blocks));
        self.blocks_cached.set(f64::from(stats.num_cached_blocks));
        self.preemptions.absolute(stats.num_preemptions);
        self.prefix_query_tokens
            .absolute(stats.num_prefix_cache_query_tokens);
        self.prefix_hit_tokens
            .absolute(stats.num_prefix_cache_hit_tokens);
    }

    /// Steps that were answered.
    pub(super) fn num_steps(&self) -> u64 {
        self.num_steps
    }

    /// When the shards could begin with this plan, the oldest one: when it was sent, or when they had finished the one before.
    pub(super) fn step_start(&self, plan: &SentPlan) -> Instant {
        self.last_step_at
            .map_or(plan.sent_at, |last| last.max(plan.sent_at))
    }

    /// How long such steps took of late; `None` before the first.
    pub(super) fn usual_step(&self, plan: &SentPlan) -> Option<Duration> {
        self.method(plan.is_prefill).usual_step
    }

    /// How long the last steps took in which nothing but next tokens was computed; zero before the first.
    pub(super) fn average_decode_step(&self) -> Duration {
        self.decode.average_step
    }

    fn method(&self, is_prefill: bool) -> &MethodMetrics {
        if is_prefill {
            &self.prefill
        } else {
            &self.decode
        }
    }
}

impl MethodMetrics {
    fn register(method: &'static str) -> Self {
        Self {
            count: counter!("tgi_batch_inference_count", "method" => method),
            success: counter!("tgi_batch_inference_success", "method" => method),
            inference: histogram!("tgi_batch_inference_duration", "method" => method),
            forward: histogram!("tgi_batch_forward_duration", "method" => method),
            decode: histogram!("tgi_batch_decode_duration", "method" => method),
            filter: histogram!("tgi_batch_filter_duration", "method" => method),
            step: histogram!("text_gen_step_duration", "method" => method),
            usual_step: None,
            average_step: Duration::ZERO,
        }
    }
}

/// The help texts; those of `tgi_` are TGI's.
fn describe() {
    describe_gauge!("tgi_queue_size", "Current queue size");
    describe_gauge!("tgi_batch_current_size", "Current batch size");
    describe_gauge!(
        "tgi_batch_current_max_tokens",
        "Maximum tokens for the current batch"
    );
    describe_histogram!("tgi_batch_next_size", "Batch size of the next batch");
    describe_counter!(
        "tgi_batch_inference_count",
        "Inference calls per method (prefill or decode)"
    );
    describe_counter!(
        "tgi_batch_inference_success",
        "Number of successful inference calls per method (prefill or decode)"
    );
    let seconds = Unit::Seconds;
    describe_histogram!(
        "tgi_batch_inference_duration",
        seconds,
        "Batch inference duration"
    );
    describe_histogram!(
        "tgi_batch_forward_duration",
        seconds,
        "Batch forward duration per method (prefill or decode)"
    );
    describe_histogram!(
        "tgi_batch_decode_duration",
        seconds,
        "Time spent decoding a batch per method (prefill or decode)"
    );
    describe_histogram!(
        "tgi_batch_filter_duration",
        seconds,
        "Time spent filtering batches and sending generated tokens per method (prefill or decode)"
    );
    describe_histogram!(
        "text_gen_step_duration",
        seconds,
        "Time the shards took for a step, seen from the router, in seconds"
    );
    describe_gauge!("text_gen_kv_blocks", "KV blocks by state");
    describe_counter!(
        "text_gen_preemptions_total",
        "Sequences that lost their blocks and are recomputed"
    );
    describe_counter!(
        "text_gen_prefix_cache_query_tokens_total",
        "Tokens that admitted sequences looked up in the prefix cache"
    );
    describe_counter!(
        "text_gen_prefix_cache_hit_tokens_total",
        "Tokens that admitted sequences found in the prefix cache"
    );
}
