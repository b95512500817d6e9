//! Flags of the HTTP side, handed on to the router.

/// As typed; see `config`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// IP address to listen on
    #[arg(long, env, default_value = "0.0.0.0")]
    pub hostname: String,

    /// Port to listen on
    #[arg(long, short, env, default_value = "3000")]
    pub port: String,

    /// Largest request body, in bytes
    #[arg(long, env, default_value = "2000000")]
    pub payload_limit: String,

    /// Origin that browsers may call from; can be given several times, or as a list with commas
    #[arg(long, env, value_delimiter = ',')]
    pub cors_allow_origin: Vec<String>,

    /// Key that clients must send as `Authorization: Bearer KEY`; can be given several times, and is better set as the variable, which
    /// other users cannot see
    #[arg(long, env, hide_env_values = true)]
    pub api_key: Vec<String>,

    /// Further keys, one per line, as in the file
    #[arg(long, env, hide = true, hide_env_values = true)]
    pub api_keys: Option<String>,

    /// File of further keys, one per line: `key`, `name:key` or `name key`. Metrics show the names. Read again when it changes
    #[arg(long, env, value_name = "PATH")]
    pub api_key_file: Option<String>,

    /// Route that can be read without a key, such as /metrics or /info; can be given several times, or as a list with commas
    #[arg(long, env, value_delimiter = ',', value_name = "PATH")]
    pub public_routes: Vec<String>,

    /// File to use in place of the model's tokenizer_config.json, for its chat template
    #[arg(long, env)]
    pub tokenizer_config_path: Option<String>,

    /// Seconds that running requests get to finish after SIGTERM
    #[arg(long, short, env, default_value = "90")]
    pub graceful_termination_timeout: String,
}
