//! The client side of `proto/shard.proto`: the only place that knows tonic, prost and generated code.
//!
//! `ShardGroup` is every rank while it starts (connect, info, prepare); `RunStreams` is every rank while it serves. The rest of
//! the router sees plain types, and one error for whatever goes wrong outside.

mod group;
mod run;

mod codec;
mod convert;

use std::path::PathBuf;
use std::time::Duration;

use scheduler::plan::SequenceId;

pub use group::ShardGroup;
pub use run::{RunStreams, ShardStep};

use crate::types::TokenMask;

/// Generated from `proto/shard.proto`.
#[allow(clippy::all, missing_docs)]
mod proto {
    tonic::include_proto!("text_gen.shard.v1");
}

/// What the shards loaded; equal on every rank.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardInfo {
    pub server_version: String,
    pub model_fingerprint: String,
    pub architecture: String,
    /// "cpu", "cuda".
    pub device: String,
    pub device_name: String,
    /// "float32", "bfloat16", "float16".
    pub dtype: String,
    pub attention: String,
    pub world_size: usize,
    /// Rows of the logits; every token id is below it.
    pub vocab_size: u32,
    /// Longest sequence the positions allow, in tokens.
    pub max_model_len: u32,
}

/// What the shards need to know to size the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrepareParameters {
    pub max_batch_prefill_tokens: u32,
    pub max_batch_size: u32,
    /// 0 = `max_model_len`.
    pub max_total_tokens: u32,
    /// 0 = derived from free memory.
    pub max_batch_total_tokens: u64,
    /// 0 = the attention implementation's own.
    pub block_size: u32,
}

/// The KV cache; equal on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    pub num_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    /// On one rank.
    pub kv_cache_bytes: u64,
}

/// Which rows of a plan may sample only some tokens.
#[derive(Debug, Default)]
pub struct PlanMasks {
    /// What they may sample, where it is known already.
    pub known: Vec<(SequenceId, TokenMask)>,
    /// Those whose mask follows by `RunStreams::send_late_mask`. The shards wait for it.
    pub owed: Vec<SequenceId>,
}

impl PlanMasks {
    fn is_masked(&self, id: SequenceId) -> bool {
        self.owed.contains(&id) || self.known.iter().any(|(known, _)| *known == id)
    }
}

/// What can go wrong before the shards serve.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("shard {rank} did not answer on {} within {} s: {message}", socket.display(), waited.as_secs())]
    Unreachable {
        rank: usize,
        socket: PathBuf,
        waited: Duration,
        message: String,
    },
    #[error("shard {rank} failed in {call}: {message}")]
    Call {
        rank: usize,
        call: &'static str,
        message: String,
    },
    #[error("the shards do not fit together: {0}")]
    Mismatch(String),
}

/// A shard went away, or broke the contract, while it was serving. Nothing more comes from any rank.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("shard {rank}: {message}")]
pub struct ShardLost {
    pub rank: usize,
    pub message: String,
}

/// What the shard said, or the code's own words where it said nothing.
fn status_message(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().description().to_string(),
        message => message.to_string(),
    }
}
