//! Flags and their environment twins, as typed (`Arguments`), and the checked configuration made from them (`Config`).
//! The environment is read here and nowhere else. All mistakes are reported together, one line each.

pub mod keys;
pub mod limits;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::FalseyValueParser;

use keys::KeySource;
use limits::LimitFlags;

use crate::types::{ApiKey, Watermark};

/// Everything the router was told, checked as far as it can be before a model is loaded.
#[derive(Debug)]
pub struct Config {
    /// `None`: the launcher names the folder later.
    pub model_dir: Option<PathBuf>,
    /// `None`: named after the model folder.
    pub model_id: Option<String>,
    pub revision: Option<String>,
    /// The model is the one that comes with the program.
    pub demo_model: bool,
    pub tokenizer_config_path: Option<PathBuf>,
    /// In rank order; at least one.
    pub shard_sockets: Vec<PathBuf>,
    pub hostname: String,
    pub port: u16,
    pub limits: LimitFlags,
    pub prefix_caching: bool,
    pub cors_allow_origin: Vec<String>,
    /// Empty: nobody needs a key.
    pub api_keys: Vec<ApiKey>,
    /// Where they came from.
    pub key_source: KeySource,
    /// What can be read without a key, besides health.
    pub public_routes: Vec<String>,
    pub log_level: String,
    pub json_output: bool,
    pub graceful_termination_timeout: Duration,
    pub shard_connect_timeout: Duration,
    /// A launcher holds the other end of standard input.
    pub supervised: bool,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum ConfigError {
    /// A flag that does not parse, or a request for help or the version.
    Usage(clap::Error),
    /// What does not fit, one line each.
    Invalid(Vec<String>),
}

/// The flags as typed. Each has an environment twin in capitals, but for `--hostname`.
#[derive(Debug, Parser)]
#[command(
    name = "text-gen-router",
    version,
    about = "Speaks HTTP to clients and drives the shards of one model"
)]
struct Arguments {
    /// Folder with the model's configuration and tokenizer
    #[arg(long, env)]
    model_dir: Option<PathBuf>,
    /// Name under which the model is served [default: the folder's name]
    #[arg(long, env)]
    model_id: Option<String>,
    /// Commit of the model, shown in /info
    #[arg(long, env)]
    revision: Option<String>,
    /// Say in /info that this is the demo model, and how to serve another
    // No environment twin: only a launcher knows it.
    #[arg(long, hide = true)]
    demo_model: bool,
    /// Unix socket of a shard; repeat in rank order
    #[arg(long = "shard-socket", env = "SHARD_SOCKET", value_name = "PATH")]
    shard_sockets: Vec<PathBuf>,
    /// Address to listen on
    // No environment twin: HOSTNAME is the machine's name in every container.
    #[arg(long, default_value = "0.0.0.0")]
    hostname: String,
    /// Port to listen on
    #[arg(long, short, env, default_value_t = 3000)]
    port: u16,
    /// Most requests that are served or queued at the same time
    #[arg(long, env, default_value_t = 128)]
    max_concurrent_requests: usize,
    /// Most sequences of one request
    #[arg(long, env, default_value_t = 2)]
    max_best_of: usize,
    /// Most stop strings of one request
    #[arg(long, env, default_value_t = 4)]
    max_stop_sequences: usize,
    /// Most alternatives returned with each token
    #[arg(long, env, default_value_t = 5)]
    max_top_n_tokens: u32,
    /// Longest prompt, in tokens [default: --max-total-tokens - 1]
    #[arg(long, alias = "max-input-length", env)]
    max_input_tokens: Option<u32>,
    /// Longest prompt plus generated tokens [default: what the model's positions and the KV cache allow]
    #[arg(long, env)]
    max_total_tokens: Option<u32>,
    /// Most prompt tokens computed in one step [default: --max-input-tokens + 50, at most 8192; on a CPU 512]
    #[arg(long, env)]
    max_batch_prefill_tokens: Option<u32>,
    /// KV capacity, in tokens [default: from free memory]
    #[arg(long, env)]
    max_batch_total_tokens: Option<u32>,
    /// Most sequences computed in one step [default: 256; on a CPU 64]
    #[arg(long, env)]
    max_batch_size: Option<u32>,
    /// Most prompts in one request
    #[arg(long, env, default_value_t = 4)]
    max_client_batch_size: usize,
    /// Largest request body, in bytes
    #[arg(long, env, default_value_t = 2_000_000)]
    payload_limit: usize,
    /// Threads that template and tokenize
    #[arg(long, env, default_value_t = 2)]
    validation_workers: usize,
    /// Allow requests for the log-probabilities of their prompt
    #[arg(long, env, value_parser = FalseyValueParser::new())]
    enable_prefill_logprobs: bool,
    /// Share of the vocabulary that is green in a watermarked text
    #[arg(long, env, default_value_t = 0.5)]
    watermark_gamma: f32,
    /// What is added to the logits of green tokens in a watermarked text
    #[arg(long, env, default_value_t = 2.0)]
    watermark_delta: f32,
    /// Refuse requests with a grammar
    #[arg(long, env, value_parser = FalseyValueParser::new())]
    disable_grammar_support: bool,
    /// A tokenizer_config.json to use instead of the model folder's
    #[arg(long, env)]
    tokenizer_config_path: Option<PathBuf>,
    /// Origin that browsers may call from; repeat for several
    #[arg(long, env, value_delimiter = ',')]
    cors_allow_origin: Vec<String>,
    /// Key that clients must send as a bearer token; repeat for several
    #[arg(long = "api-key", env = "API_KEY", hide_env_values = true)]
    plain_keys: Vec<String>,
    /// Further keys, one per line, as in the file
    #[arg(long, env, hide = true, hide_env_values = true)]
    api_keys: Option<String>,
    /// File of further keys, one per line: `key`, `name:key` or `name key`; read again when it changes
    #[arg(long, env, value_name = "PATH")]
    api_key_file: Option<PathBuf>,
    /// Route that can be read without a key; repeat for several
    #[arg(long, env, value_delimiter = ',', value_name = "PATH")]
    public_routes: Vec<String>,
    /// Reuse the KV blocks of equal prefixes
    #[arg(long, env, default_value_t = true, action = clap::ArgAction::Set)]
    prefix_caching: bool,
    /// Tokens per KV block [default: the attention implementation's own]
    #[arg(long, env)]
    block_size: Option<u32>,
    /// Log filter, such as `info` or `warn,text_gen_router=debug`
    #[arg(long, env, default_value = "info")]
    log_level: String,
    /// Log in JSON, one object per line
    #[arg(long, env, value_parser = FalseyValueParser::new())]
    json_output: bool,
    /// Seconds that running requests have to finish after SIGTERM
    #[arg(long, env, value_name = "SECS", default_value_t = 90)]
    graceful_termination_timeout: u64,
    /// Seconds that the shards have to load the model
    #[arg(long, env, value_name = "SECS", default_value_t = 1800)]
    shard_connect_timeout_secs: u64,
    /// Take the model folder and the loading phase from standard input, and exit when it closes
    #[arg(long, env, value_parser = FalseyValueParser::new())]
    supervised: bool,
}

impl Config {
    /// From the arguments of a process, program name first, and the environment.
    pub fn parse(
        arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, ConfigError> {
        let arguments = Arguments::try_parse_from(arguments).map_err(ConfigError::Usage)?;
        let mut mistakes = mistakes(&arguments);
        let (key_source, wrong_keys) = KeySource::new(
            &arguments.plain_keys,
            arguments.api_keys.as_deref().unwrap_or_default(),
            arguments.api_key_file.clone(),
        );
        mistakes.extend(wrong_keys);
        let api_keys = key_source.read().unwrap_or_else(|wrong| {
            mistakes.extend(wrong);
            Vec::new()
        });
        if !mistakes.is_empty() {
            return Err(ConfigError::Invalid(mistakes));
        }
        Ok(checked(arguments, key_source, api_keys))
    }
}

fn mistakes(arguments: &Arguments) -> Vec<String> {
    let mut mistakes = Vec::new();
    let mut check = |holds: bool, mistake: String| {
        if !holds {
            mistakes.push(mistake);
        }
    };
    check(
        arguments.supervised || arguments.model_dir.is_some(),
        "--model-dir is missing; only a supervised router may be told later".to_string(),
    );
    check(
        !arguments.shard_sockets.is_empty(),
        "--shard-socket is missing; give one for each rank".to_string(),
    );
    for route in &arguments.public_routes {
        check(
            route.starts_with('/'),
            format!("--public-routes {route:?} does not begin with '/'"),
        );
    }
    check(
        arguments
            .log_level
            .parse::<tracing_subscriber::EnvFilter>()
            .is_ok(),
        format!("--log-level {:?} is not a log filter", arguments.log_level),
    );
    let positive = [
        (
            "max-concurrent-requests",
            Some(arguments.max_concurrent_requests),
        ),
        ("max-best-of", Some(arguments.max_best_of)),
        (
            "max-client-batch-size",
            Some(arguments.max_client_batch_size),
        ),
        ("payload-limit", Some(arguments.payload_limit)),
        ("validation-workers", Some(arguments.validation_workers)),
        (
            "max-input-tokens",
            arguments.max_input_tokens.map(|n| n as usize),
        ),
        (
            "max-total-tokens",
            arguments.max_total_tokens.map(|n| n as usize),
        ),
        (
            "max-batch-prefill-tokens",
            arguments.max_batch_prefill_tokens.map(|n| n as usize),
        ),
        (
            "max-batch-total-tokens",
            arguments.max_batch_total_tokens.map(|n| n as usize),
        ),
        (
            "max-batch-size",
            arguments.max_batch_size.map(|n| n as usize),
        ),
        ("block-size", arguments.block_size.map(|n| n as usize)),
    ];
    for (flag, value) in positive {
        check(value != Some(0), format!("--{flag} must be at least 1"));
    }
    mistakes.extend(limits::mistakes(&limit_flags(arguments)));
    mistakes
}

fn limit_flags(arguments: &Arguments) -> LimitFlags {
    LimitFlags {
        max_concurrent_requests: arguments.max_concurrent_requests,
        max_best_of: arguments.max_best_of,
        max_stop_sequences: arguments.max_stop_sequences,
        max_top_n_tokens: arguments.max_top_n_tokens,
        max_input_tokens: arguments.max_input_tokens,
        max_total_tokens: arguments.max_total_tokens,
        max_batch_prefill_tokens: arguments.max_batch_prefill_tokens,
        max_batch_total_tokens: arguments.max_batch_total_tokens,
        max_batch_size: arguments.max_batch_size,
        max_client_batch_size: arguments.max_client_batch_size,
        payload_limit_bytes: arguments.payload_limit,
        block_size: arguments.block_size,
        enable_prefill_logprobs: arguments.enable_prefill_logprobs,
        grammar_support: !arguments.disable_grammar_support,
        validation_workers: arguments.validation_workers,
        watermark: Watermark {
            gamma: arguments.watermark_gamma,
            delta: arguments.watermark_delta,
        },
    }
}

fn checked(arguments: Arguments, key_source: KeySource, api_keys: Vec<ApiKey>) -> Config {
    Config {
        limits: limit_flags(&arguments),
        model_dir: arguments.model_dir,
        model_id: arguments.model_id,
        revision: arguments.revision,
        demo_model: arguments.demo_model,
        tokenizer_config_path: arguments.tokenizer_config_path,
        shard_sockets: arguments.shard_sockets,
        hostname: arguments.hostname,
        port: arguments.port,
        prefix_caching: arguments.prefix_caching,
        cors_allow_origin: arguments.cors_allow_origin,
        api_keys,
        key_source,
        public_routes: arguments.public_routes,
        log_level: arguments.log_level,
        json_output: arguments.json_output,
        graceful_termination_timeout: Duration::from_secs(arguments.graceful_termination_timeout),
        shard_connect_timeout: Duration::from_secs(arguments.shard_connect_timeout_secs),
        supervised: arguments.supervised,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENOUGH: [&str; 5] = [
        "router",
        "--model-dir",
        "/models/tiny",
        "--shard-socket",
        "/run/0",
    ];

    fn parse(more: &[&str]) -> Result<Config, ConfigError> {
        Config::parse(ENOUGH.iter().chain(more))
    }

    fn mistakes_of(more: &[&str]) -> Vec<String> {
        match parse(more) {
            Err(ConfigError::Invalid(mistakes)) => mistakes,
            other => panic!("expected mistakes, got {other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_tgi() {
        let config = parse(&[]).unwrap();
        assert_eq!((config.hostname.as_str(), config.port), ("0.0.0.0", 3000));
        assert_eq!(config.limits.max_concurrent_requests, 128);
        assert_eq!(config.limits.max_best_of, 2);
        assert_eq!(config.limits.max_stop_sequences, 4);
        assert_eq!(config.limits.max_top_n_tokens, 5);
        assert_eq!(config.limits.max_client_batch_size, 4);
        assert_eq!(config.limits.payload_limit_bytes, 2_000_000);
        assert!(config.prefix_caching && config.limits.grammar_support);
        assert_eq!(config.graceful_termination_timeout.as_secs(), 90);
    }

    #[test]
    fn sockets_keep_their_order_and_prefix_caching_takes_a_value() {
        let more = ["--shard-socket", "/run/1", "--prefix-caching", "false"];
        let config = parse(&more).unwrap();
        assert_eq!(
            config.shard_sockets,
            [PathBuf::from("/run/0"), "/run/1".into()]
        );
        assert!(!config.prefix_caching);
    }

    #[test]
    fn max_input_length_is_another_name_of_max_input_tokens() {
        let config = parse(&["--max-input-length", "17"]).unwrap();
        assert_eq!(config.limits.max_input_tokens, Some(17));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let more = [
            "--max-best-of",
            "0",
            "--api-key",
            "",
            "--log-level",
            "a=b=c",
        ];
        let mistakes = mistakes_of(&more);
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        let more = ["--max-input-tokens", "8", "--max-total-tokens", "8"];
        assert_eq!(
            mistakes_of(&more),
            ["--max-input-tokens 8 must be less than --max-total-tokens 8"]
        );
        let more = ["--watermark-gamma", "1", "--watermark-delta", "NaN"];
        assert_eq!(mistakes_of(&more).len(), 2);
    }

    #[test]
    fn only_a_supervised_router_may_do_without_a_model_folder() {
        let arguments = ["router", "--shard-socket", "/run/0"];
        assert!(matches!(
            Config::parse(arguments),
            Err(ConfigError::Invalid(_))
        ));
        let supervised = arguments.iter().chain(&["--supervised"]);
        assert!(Config::parse(supervised).is_ok());
    }
}
