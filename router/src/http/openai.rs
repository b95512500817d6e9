//! What the OpenAI routes share: parameters, ids, usage, finish reasons.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::answer;
use crate::output::Finish;
use crate::types::SamplingMode;

/// Clients of TGI send this name for whatever model is loaded.
const ANY_MODEL: &str = "tgi";

#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct StreamOptions {
    /// A last chunk without choices says how many tokens were used.
    pub include_usage: Option<bool>,
}

/// Tokens of an answer, over all its choices.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    /// Only where the prefix cache helped, so that an answer without it looks like TGI's.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptTokensDetails>,
    /// Only where the model marked reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionTokensDetails>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
struct PromptTokensDetails {
    /// Of the prompt, found in the prefix cache.
    cached_tokens: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
struct CompletionTokensDetails {
    reasoning_tokens: usize,
}

impl Usage {
    pub fn new(usage: &answer::Usage) -> Self {
        let cached_tokens = usage.num_cached_tokens;
        let reasoning_tokens = usage.reasoning_tokens;
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.generated_tokens,
            total_tokens: usage.prompt_tokens + usage.generated_tokens,
            prompt_tokens_details: (cached_tokens > 0)
                .then_some(PromptTokensDetails { cached_tokens }),
            completion_tokens_details: (reasoning_tokens > 0)
                .then_some(CompletionTokensDetails { reasoning_tokens }),
        }
    }
}

/// The fields that every object of one answer repeats.
#[derive(Clone)]
pub struct Identity {
    pub id: String,
    pub created: u64,
    pub model: String,
}

pub const SYSTEM_FINGERPRINT: &str = concat!(env!("CARGO_PKG_VERSION"), "-native");

impl Identity {
    /// `prefix` is "chatcmpl" or "cmpl".
    pub fn new(app: &App, prefix: &str, asked_model: Option<String>) -> Self {
        Self {
            id: unique_id(prefix),
            created: now(),
            model: answering_model(app, asked_model),
        }
    }
}

/// Such as "cmpl-4f21".
pub fn unique_id(prefix: &str) -> String {
    format!("{prefix}-{}", unique_suffix())
}

/// Such as "msg_4f21", as newer routes write them.
pub fn underscored_id(prefix: &str) -> String {
    format!("{prefix}_{}", unique_suffix())
}

/// Unique in this process by the counter, and across restarts by the random part.
fn unique_suffix() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let random = std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish();
    format!("{random:016x}{count:08x}")
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.map_or(0, |time| time.as_secs())
}

/// The name that an answer gives its model. The name of an unknown model is repeated, although this model answers.
pub fn answering_model(app: &App, asked: Option<String>) -> String {
    asked
        .filter(|name| name != ANY_MODEL)
        .unwrap_or_else(|| app.info.model_id.clone())
}

/// Of a call of a tool.
pub fn call_id() -> String {
    unique_id("call").replacen('-', "_", 1)
}

/// OpenAI samples unless the temperature is 0.
pub fn sampling(temperature: Option<f64>) -> (SamplingMode, Option<f64>) {
    match temperature {
        Some(0.0) => (SamplingMode::Greedy, None),
        other => (SamplingMode::Sample, other),
    }
}

pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Length => "length",
        Finish::EndToken | Finish::StopString(_) => "stop",
    }
}
