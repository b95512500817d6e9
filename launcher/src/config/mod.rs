//! The checked configuration: what `args` holds, with every mistake found at once. A pure function of the arguments.
//!
//! The launcher understands what it needs to start and stop processes; the rest it checks and hands on as flags.

mod check;
mod http;
mod limits;
mod model;
mod shard_flags;
mod shards;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{Args, legacy};
use check::Check;
pub use model::ModelSource;

/// What the launcher was told to do. Can only be made by `Config::check`.
#[derive(Debug)]
pub struct Config {
    pub model: ModelSource,
    pub num_shards: usize,
    /// Flags for the router and the shards, in the order in which they are passed.
    pub router_flags: Vec<OsString>,
    pub shard_flags: Vec<OsString>,
    /// One per line, each behind a name; `None`: nobody needs a key.
    pub api_keys: Option<Secret>,
    /// How long running requests may take to finish once the launcher was told to stop.
    pub graceful_termination_timeout: Duration,
    pub print_environment: bool,
    pub programs: Programs,
    /// Sockets go into a new directory in this one.
    pub temp_dir: PathBuf,
    /// Variables that children do not inherit, because they get flags.
    pub twins: Vec<OsString>,
    /// One line each, to be logged once.
    pub warnings: Vec<String>,
}

/// How the log is written.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    pub json: bool,
    pub level: tracing::Level,
}

/// The executables of the other processes: a path, or a name to be found in PATH.
#[derive(Debug)]
pub struct Programs {
    pub router: PathBuf,
    pub server: PathBuf,
}

/// A string that does not show itself in logs.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Config {
    /// The configuration, or everything that is wrong with it: one line each, with what to do.
    pub fn check(args: &Args) -> Result<(Self, LogConfig), Vec<String>> {
        let mut check = Check::default();
        let flags = &args.flags;
        check_legacy(args, &mut check);
        let log = LogConfig {
            json: flags.output.json_output,
            level: log_level(&flags.output.log_level, &mut check),
        };
        // The router says in INFO lines how far it is. Lines that nobody wants end in the launcher.
        let router_level = log.level.max(tracing::Level::INFO).as_str().to_lowercase();

        let mut router_flags = Vec::new();
        http::add_flags(args, &mut check, &mut router_flags);
        limits::add_flags(flags, &mut check, &mut router_flags);
        add(&mut router_flags, "--log-level", &router_level);
        let mut shard_flags = Vec::new();
        shard_flags::add_flags((&flags.model, &flags.devices), &mut check, &mut shard_flags);

        let timeout = &flags.http.graceful_termination_timeout;
        let timeout = check
            .number(
                "--graceful-termination-timeout",
                timeout,
                0..=MAX_TERMINATION_SECS,
            )
            .unwrap_or(0);
        add(
            &mut router_flags,
            "--graceful-termination-timeout",
            &timeout.to_string(),
        );
        let config = Self {
            model: model::model_source(&flags.model, &mut check),
            num_shards: shards::num_shards(&flags.devices, &args.surroundings, &mut check),
            router_flags,
            shard_flags,
            api_keys: api_keys(args, &mut check),
            graceful_termination_timeout: Duration::from_secs(timeout),
            print_environment: flags.output.env,
            programs: programs(args),
            temp_dir: args.surroundings.temp_dir.clone(),
            twins: args.twins.clone(),
            warnings: std::mem::take(&mut check.warnings),
        };
        if check.errors.is_empty() {
            Ok((config, log))
        } else {
            Err(check.errors)
        }
    }
}

/// A week: longer is a typing error, and it keeps sums of durations small.
const MAX_TERMINATION_SECS: u64 = 7 * 24 * 3600;

fn add(flags: &mut Vec<OsString>, flag: &str, value: &str) {
    flags.extend([flag.into(), value.into()]);
}

fn check_legacy(args: &Args, check: &mut Check) {
    for (flag, value) in &args.legacy {
        match &flag.verdict {
            _ if flag.harmless == Some(value.as_str()) => {}
            legacy::Verdict::Warn(text) => check
                .warnings
                .push(format!("--{} has no effect: {text}", flag.name)),
            legacy::Verdict::Refuse(text) => check
                .errors
                .push(format!("--{} {value}: {text}", flag.name)),
        }
    }
}

fn log_level(text: &str, check: &mut Check) -> tracing::Level {
    // TGI takes filter directives here too, which name modules that do not exist any more.
    text.parse().unwrap_or_else(|_| {
        let warning = format!(
            "--log-level '{text}' is not one of error, warn, info, debug, trace; info is used"
        );
        check.warnings.push(warning);
        tracing::Level::INFO
    })
}

fn api_keys(args: &Args, check: &mut Check) -> Option<Secret> {
    let http = &args.flags.http;
    let is_sendable = |key: &String| !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
    if !http.api_key.iter().all(is_sendable) {
        check.errors.push("--api-key is empty or holds characters that a header cannot carry: use letters and digits".into());
    }
    for (id, flag, variable) in [
        ("api_key", "--api-key", "API_KEY"),
        ("api_keys", "--api-keys", "API_KEYS"),
    ] {
        if args.typed.contains(id) {
            check.warnings.push(format!(
                "{flag} can be read by every user of this machine; set the variable {variable} or give --api-key-file instead"
            ));
        }
    }
    let numbered = http.api_key.iter().enumerate();
    let mut lines: Vec<String> = numbered
        .map(|(idx, key)| format!("key-{}:{key}", idx + 1))
        .collect();
    lines.extend(http.api_keys.clone());
    (!lines.is_empty()).then(|| Secret(lines.join("\n")))
}

fn programs(args: &Args) -> Programs {
    let devices = &args.flags.devices;
    let find = |given: &Option<PathBuf>, name: &str| {
        let beside = args
            .surroundings
            .program_dir
            .as_deref()
            .map(|dir: &Path| dir.join(name))
            .filter(|path| path.is_file());
        given.clone().or(beside).unwrap_or_else(|| name.into())
    };
    Programs {
        router: find(&devices.router_program, "text-gen-router"),
        server: find(&devices.server_program, "text-gen-server"),
    }
}
