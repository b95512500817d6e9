//! Logs to standard error, as text for people or as one JSON object per line.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// Sets the process's subscriber. `level` is a filter such as `info` or `warn,text_gen_router=debug`; the caller has checked it.
pub fn init_logging(level: &str, json: bool) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(stderr);
    if json {
        builder.json().init();
    } else {
        builder.with_ansi(stderr().is_terminal()).init();
    }
}
