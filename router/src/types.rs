//! Plain types that several modules of the router share. No logic, no JSON, no protobuf.

/// The loaded model, as the shards and the model folder describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The name clients use: what was given as `--model-id`.
    pub model_id: String,
    /// Commit of the hub snapshot, where the model came from the hub.
    pub revision: Option<String>,
    /// "float32", "bfloat16", "float16".
    pub dtype: String,
    /// "cpu", "cuda".
    pub device: String,
    /// Rows of the logits; every token id is below it.
    pub vocab_size: u32,
    /// Longest sequence the positions allow, in tokens.
    pub max_model_len: u32,
    pub num_shards: usize,
}

/// What a request may ask for. Every number is final: defaults and memory limits are already applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_concurrent_requests: usize,
    /// Most sequences of one request (`best_of`, `n`).
    pub max_best_of: usize,
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    /// Longest prompt, in tokens.
    pub max_input_tokens: usize,
    /// Longest prompt plus generated tokens, in tokens.
    pub max_total_tokens: usize,
    pub max_client_batch_size: usize,
    pub payload_limit_bytes: usize,
    pub max_batch_prefill_tokens: u32,
    pub max_batch_total_tokens: u32,
    pub max_batch_size: u32,
    pub enable_prefill_logprobs: bool,
    pub validation_workers: usize,
}
