//! What is measured of requests, under TGI's names so that its dashboards keep working, and our latency histograms beside them.
//! Every request that is counted ends as exactly one of succeeded, failed or cancelled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Histogram, counter, describe_counter, describe_histogram, histogram};

use super::answer::Usage;
use super::errors::ApiError;
use crate::generation::GenerationStream;
use crate::types::Tenant;

const FIRST_TOKEN: &str = "text_gen_time_to_first_token_seconds";
const INTER_TOKEN: &str = "text_gen_inter_token_latency_seconds";
const CANCELLED: &str = "text_gen_request_cancelled";
const TENANT_REQUESTS: &str = "text_gen_tenant_requests_total";
const TENANT_PROMPT_TOKENS: &str = "text_gen_tenant_prompt_tokens_total";
const TENANT_GENERATED_TOKENS: &str = "text_gen_tenant_generated_tokens_total";

/// Registers every series of a request, so that the first scrape has them.
pub fn describe() {
    describe_counter!("tgi_request_count", "Total number of requests");
    describe_counter!("tgi_request_success", "Number of successful requests");
    describe_counter!(
        "tgi_request_failure",
        "Number of failed requests by error type"
    );
    describe_counter!(
        CANCELLED,
        "Requests whose client left before the answer was complete"
    );
    for (name, text) in [
        ("tgi_request_duration", "Request duration"),
        (
            "tgi_request_validation_duration",
            "Request validation duration",
        ),
        ("tgi_request_queue_duration", "Request queue duration"),
        (
            "tgi_request_inference_duration",
            "Request inference duration",
        ),
        (
            "tgi_request_mean_time_per_token_duration",
            "Mean time per token per request",
        ),
        ("tgi_request_input_length", "Input token length per request"),
        (
            "tgi_request_max_new_tokens",
            "Maximum new tokens per request",
        ),
        (
            "tgi_request_generated_tokens",
            "Generated tokens per request",
        ),
        (
            "tgi_request_skipped_tokens",
            "Speculated tokens per request",
        ),
        (
            FIRST_TOKEN,
            "Time from a request to its first token, in seconds",
        ),
        (
            INTER_TOKEN,
            "Time between two tokens of a sequence, in seconds",
        ),
    ] {
        describe_histogram!(name.to_owned(), text);
        let _ = histogram!(name);
    }
    describe_counter!(TENANT_REQUESTS, "Requests by the name of their API key");
    describe_counter!(
        TENANT_PROMPT_TOKENS,
        "Prompt tokens of accepted requests by the name of their API key"
    );
    describe_counter!(
        TENANT_GENERATED_TOKENS,
        "Generated tokens, also of unfinished answers, by the name of their API key"
    );
    for name in ["tgi_request_count", "tgi_request_success", CANCELLED] {
        counter!(name).absolute(0);
    }
}

/// One request from its arrival to its end.
pub struct RequestMetrics {
    started: Instant,
    /// By sequence.
    last_token: Vec<Option<Instant>>,
    /// Looked up once, not with every token.
    inter_token: Histogram,
    num_generated_tokens: u64,
    tenant: Option<Arc<str>>,
    ended: bool,
}

impl RequestMetrics {
    pub fn started(tenant: &Tenant) -> Self {
        counter!("tgi_request_count").increment(1);
        let metrics = Self {
            started: Instant::now(),
            last_token: Vec::new(),
            inter_token: histogram!(INTER_TOKEN),
            num_generated_tokens: 0,
            tenant: tenant.name.clone(),
            ended: false,
        };
        metrics.count_for_tenant(TENANT_REQUESTS, 1);
        metrics
    }

    fn count_for_tenant(&self, name: &'static str, count: u64) {
        if let Some(tenant) = &self.tenant {
            counter!(name, "tenant" => tenant.clone()).increment(count);
        }
    }

    pub fn accepted(&mut self, stream: &GenerationStream) {
        self.last_token = vec![None; stream.seeds.len()];
        self.count_for_tenant(TENANT_PROMPT_TOKENS, stream.prompt_ids.len() as u64);
        histogram!("tgi_request_input_length").record(stream.prompt_ids.len() as f64);
        histogram!("tgi_request_max_new_tokens").record(f64::from(stream.max_new_tokens));
    }

    pub fn token(&mut self, sequence_idx: usize) {
        self.num_generated_tokens += 1;
        let now = Instant::now();
        match self.last_token[sequence_idx].replace(now) {
            Some(last) => self.inter_token.record(now - last),
            None => histogram!(FIRST_TOKEN).record(now - self.started),
        }
    }

    pub fn succeeded(&mut self, usage: &Usage) {
        self.ended = true;
        counter!("tgi_request_success").increment(1);
        let tokens = u32::try_from(usage.generated_tokens).unwrap_or(u32::MAX);
        let per_token: Duration = usage.inference / tokens.max(1);
        histogram!("tgi_request_duration").record(usage.total);
        histogram!("tgi_request_validation_duration").record(usage.validation);
        histogram!("tgi_request_queue_duration").record(usage.queue);
        histogram!("tgi_request_inference_duration").record(usage.inference);
        histogram!("tgi_request_mean_time_per_token_duration").record(per_token);
        histogram!("tgi_request_generated_tokens").record(f64::from(tokens));
        histogram!("tgi_request_skipped_tokens").record(0.0);
    }

    pub fn failed(&mut self, error: &ApiError) {
        self.ended = true;
        counter!("tgi_request_failure", "err" => error.error_type).increment(1);
    }
}

impl Drop for RequestMetrics {
    fn drop(&mut self) {
        self.count_for_tenant(TENANT_GENERATED_TOKENS, self.num_generated_tokens);
        if !self.ended {
            counter!(CANCELLED).increment(1);
        }
    }
}

/// Counts a request that was refused before it could be started, which is no tenant's use.
pub fn refused(error: impl Into<ApiError>) -> ApiError {
    let error = error.into();
    RequestMetrics::started(&Tenant::default()).failed(&error);
    error
}
