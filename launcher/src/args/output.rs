//! Flags about what the launcher writes.

use clap::builder::BoolishValueParser;

/// As typed; see `config`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Write the log as JSON, one object per line
    #[arg(long, env, value_parser = BoolishValueParser::new())]
    pub json_output: bool,

    /// Least important level to log: error, warn, info, debug, trace
    #[arg(long, env, default_value = "info")]
    pub log_level: String,

    /// Log what this machine is like before starting
    #[arg(long, short)]
    pub env: bool,
}
