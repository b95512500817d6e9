//! Starts, watches and stops processes: one router, and one shard per device. Knows no model and no HTTP.
//!
//! Exit codes, as TGI's launcher has them: 0 after a signal (everything was stopped in order) and for `--help`; 1 when something
//! failed (a process could not start or ended, the model was not found, a second signal cut the shutdown short), with the reason
//! as an ERROR line; 2 when the flags are wrong, with the reasons on standard error.

mod supervisor;

mod child;
mod commands;
mod resolve;
mod router_state;
mod signals;
mod socket_dir;

mod environment;
mod logs;

pub mod args;
pub mod config;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use config::{Config, LogConfig};
use logs::{Logs, Sink, Style};
use signals::Signals;

const FAILED: u8 = 1;
const WRONG_FLAGS: u8 = 2;

/// How long the last lines of the log may take to be written.
const FLUSH_DEADLINE: Duration = Duration::from_secs(1);

/// Runs `text-gen-launcher` with the process's arguments.
pub fn main() -> ExitCode {
    ExitCode::from(launch(std::env::args_os()))
}

/// Runs the launcher with this command line, the program's name first, and gives its exit code.
fn launch(argv: impl IntoIterator<Item = OsString>) -> u8 {
    let args = match args::parse(argv) {
        Ok(args) => args,
        Err(error) => {
            // A closed terminal is no reason to fail in another way.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(WRONG_FLAGS);
        }
    };
    match Config::check(&args) {
        Ok((config, log)) => run(&config, log).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            FAILED
        }),
        Err(errors) => {
            for error in errors {
                eprintln!("error: {error}");
            }
            WRONG_FLAGS
        }
    }
}

fn run(config: &Config, log: LogConfig) -> anyhow::Result<u8> {
    let style = match (log.json, std::io::stdout().is_terminal()) {
        (true, _) => Style::Json,
        (false, true) => Style::Colored,
        (false, false) => Style::Text,
    };
    let sink = Sink::new(std::io::stdout())?;
    let logs = Logs::new(sink.clone(), style, log.level);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = tracing::dispatcher::with_default(&logs.dispatch(), || {
        runtime.block_on(serve(config, &logs))
    });
    sink.flush(FLUSH_DEADLINE);
    outcome
}

async fn serve(config: &Config, logs: &Logs) -> anyhow::Result<u8> {
    let mut signals = Signals::listen()?;
    if config.print_environment {
        tracing::info!("{}", environment::describe().await);
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        "Serving {} on {} {}",
        config.model.name(),
        config.num_shards,
        if config.num_shards == 1 {
            "shard"
        } else {
            "shards"
        },
    );
    let outcome = supervisor::supervise(config, logs, &mut signals).await;
    Ok(if outcome.is_ok() { 0 } else { FAILED })
}
