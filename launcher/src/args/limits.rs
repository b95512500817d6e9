//! Flags that limit what a request, and all requests together, may take, and that say what its options mean.

use clap::builder::BoolishValueParser;

/// As typed; see `config`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests in the server at once; more are refused with 429
    #[arg(long, env, default_value = "128")]
    pub max_concurrent_requests: String,

    /// Largest `best_of` and `n` of a request
    #[arg(long, env, default_value = "2")]
    pub max_best_of: String,

    /// Stop sequences of a request
    #[arg(long, env, default_value = "4")]
    pub max_stop_sequences: String,

    /// Largest `top_n_tokens` of a request
    #[arg(long, env, default_value = "5")]
    pub max_top_n_tokens: String,

    /// Longest prompt, in tokens [default: --max-total-tokens - 1]
    #[arg(long, env)]
    pub max_input_tokens: Option<String>,

    /// Old name of --max-input-tokens
    #[arg(long, env)]
    pub max_input_length: Option<String>,

    /// Longest prompt with its answer, in tokens [default: what the model allows, at most 4096]
    #[arg(long, env)]
    pub max_total_tokens: Option<String>,

    /// Prompt tokens computed in one step [default: --max-input-tokens + 50]
    #[arg(long, env)]
    pub max_batch_prefill_tokens: Option<String>,

    /// Tokens of all running sequences [default: what fits into the free memory of the device]
    #[arg(long, env)]
    pub max_batch_total_tokens: Option<String>,

    /// Sequences in one step
    #[arg(long, env)]
    pub max_batch_size: Option<String>,

    /// Inputs in one request
    #[arg(long, env, default_value = "4")]
    pub max_client_batch_size: String,

    /// Threads that tokenize and check requests
    #[arg(long, env, default_value = "2")]
    pub validation_workers: String,

    /// Let requests ask for the log-probabilities of their prompt
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub enable_prefill_logprobs: bool,

    /// Share of the vocabulary that is green in a text whose request asks for a watermark, above 0 and below 1
    #[arg(long, env, default_value = "0.5")]
    pub watermark_gamma: String,

    /// What is added to the logits of green tokens in such a text, above 0 and at most 100
    #[arg(long, env, default_value = "2.0")]
    pub watermark_delta: String,

    /// Refuse requests that constrain their answer by a grammar
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub disable_grammar_support: bool,
}
