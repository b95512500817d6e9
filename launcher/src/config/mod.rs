//! The checked configuration: what `args` holds, with every mistake found at once. A pure function of the arguments.
//!
//! The launcher understands what it needs to start and stop processes; the rest it checks and hands on as flags.

mod check;
mod http;
mod limits;
mod shards;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::args::{Args, DeviceArgs, ModelArgs, legacy};
use check::Check;

/// What the launcher was told to do. Can only be made by `Config::check`.
#[derive(Debug)]
pub struct Config {
    pub model: ModelSource,
    pub num_shards: usize,
    /// Flags for the router and the shards, in the order in which they are passed.
    pub router_flags: Vec<OsString>,
    pub shard_flags: Vec<OsString>,
    pub api_key: Option<Secret>,
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

/// Where the model comes from.
#[derive(Debug)]
pub struct ModelSource {
    /// None: the demo model.
    pub model_id: Option<String>,
    pub revision: Option<String>,
    pub cache_dir: Option<PathBuf>,
    /// A directory to take in place of `model_id`, which stays the model's name.
    pub directory: Option<PathBuf>,
    pub hub_token: Option<Secret>,
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

impl ModelSource {
    /// The name that clients use.
    pub fn name(&self) -> &str {
        self.model_id.as_deref().unwrap_or("demo")
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
        let level = log.level.as_str().to_lowercase();

        let mut router_flags = Vec::new();
        http::add_flags(args, &mut check, &mut router_flags);
        limits::add_flags(flags, &mut check, &mut router_flags);
        add(&mut router_flags, "--log-level", &level);
        let mut shard_flags = Vec::new();
        add_shard_flags((&flags.model, &flags.devices), &mut check, &mut shard_flags);
        add(&mut shard_flags, "--log-level", &level);

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
            model: model_source(&flags.model, &mut check),
            num_shards: shards::num_shards(&flags.devices, &args.surroundings, &mut check),
            router_flags,
            shard_flags,
            api_key: api_key(args, &mut check),
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

fn add_shard_flags(
    (model, devices): (&ModelArgs, &DeviceArgs),
    check: &mut Check,
    flags: &mut Vec<OsString>,
) {
    let dtype = model.dtype.as_deref().unwrap_or("auto");
    if check.one_of(
        "--dtype",
        dtype,
        &["auto", "float16", "bfloat16", "float32"],
    ) {
        add(flags, "--dtype", dtype);
    }
    if check.one_of("--device", &devices.device, &["auto", "cpu", "cuda"]) {
        add(flags, "--device", &devices.device);
    }
    if let Some(fraction) =
        check.positive("--cuda-memory-fraction", &devices.cuda_memory_fraction, 1.0)
    {
        add(flags, "--cuda-memory-fraction", &fraction.to_string());
    }
    if let Some(attention) = attention(devices, check) {
        add(flags, "--attention", attention);
    }
    let factor = model
        .rope_factor
        .as_ref()
        .and_then(|text| check.positive("--rope-factor", text, f64::MAX));
    let scaling = model.rope_scaling.as_deref().or(factor.map(|_| "linear"));
    if let Some(scaling) = scaling
        && check.one_of("--rope-scaling", scaling, &["linear", "dynamic"])
    {
        add(flags, "--rope-scaling", scaling);
        add(flags, "--rope-factor", &factor.unwrap_or(1.0).to_string());
    }
}

fn attention<'a>(devices: &'a DeviceArgs, check: &mut Check) -> Option<&'a str> {
    let name = devices.attention.as_deref()?;
    if ["flashinfer", "flashdecoding", "flashdecoding-ipex", "paged"].contains(&name) {
        check.warnings.push(format!("--attention {name} has no effect: it is an implementation of TGI; the fastest one is used"));
        return None;
    }
    Some(name)
}

fn model_source(model: &ModelArgs, check: &mut Check) -> ModelSource {
    let weights = model.weights_cache_override.as_ref().map(PathBuf::from);
    let holds_a_model = weights
        .as_ref()
        .is_some_and(|dir| dir.join("config.json").is_file());
    let (directory, cache_dir) = if holds_a_model {
        (weights, None)
    } else {
        (None, weights)
    };
    for (flag, value) in [
        ("--model-id", &model.model_id),
        ("--revision", &model.revision),
    ] {
        if value
            .as_ref()
            .is_some_and(|value| value.is_empty() || value.chars().any(char::is_control))
        {
            check.errors.push(format!("{flag} is empty or holds control characters: give a name or a path, or leave it out"));
        }
    }
    ModelSource {
        model_id: model.model_id.clone(),
        revision: model.revision.clone(),
        cache_dir: cache_dir.or_else(|| model.huggingface_hub_cache.as_ref().map(PathBuf::from)),
        directory,
        hub_token: model.hf_api_token.clone().map(Secret),
    }
}

fn api_key(args: &Args, check: &mut Check) -> Option<Secret> {
    let key = args.flags.http.api_key.clone()?;
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
        check.errors.push("--api-key is empty or holds characters that a header cannot carry: use letters and digits".into());
    }
    if args.typed.contains("api_key") {
        check.warnings.push(
            "--api-key can be read by every user of this machine; set the variable API_KEY instead"
                .into(),
        );
    }
    Some(Secret(key))
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
