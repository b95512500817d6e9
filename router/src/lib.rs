//! The router: speaks HTTP and SSE to clients, owns every sequence, and drives the shards over gRPC.
//!
//! Read `generation.rs` first (the road of one request), then `engine/step_loop.rs` (the loop).
//! Imports point down this list, and `input`, `engine` and `output` do not see each other; `tests/layers.rs` checks both.
//! `startup` and `supervision` belong to this file: they start the process and hold the line to its launcher.

mod startup;
mod supervision;

pub mod config;
pub mod engine;
pub mod generation;
pub mod grammar;
pub mod http;
pub mod input;
pub mod output;
pub mod shard;
pub mod telemetry;
pub mod tokenizer;
pub mod types;

use std::future::pending;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use tokio::io::{AsyncBufRead, BufReader};
use tokio::net::TcpListener;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use config::{Config, ConfigError};
use http::{ConnectionLimits, HttpConfig, Phase};
use supervision::Announced;
use telemetry::MetricsHandle;

/// For the last words of streams that the engine has ended.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the launcher writes, if there is one.
pub type LauncherLine = Box<dyn AsyncBufRead + Send + Unpin>;

/// Runs `text-gen-router` with the process's arguments.
pub fn main() -> ExitCode {
    let config = match Config::parse(std::env::args_os()) {
        Ok(config) => config,
        Err(ConfigError::Usage(error)) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(ConfigError::Invalid(mistakes)) => {
            mistakes
                .iter()
                .for_each(|mistake| eprintln!("error: {mistake}"));
            return ExitCode::from(2);
        }
    };
    telemetry::init_logging(&config.log_level, config.json_output);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| {
            let outcome = runtime.block_on(run_process(config));
            // Standard input may be waiting for a line for ever.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Gives `run` what belongs to the process: its port, its standard input and its signals.
async fn run_process(config: Config) -> anyhow::Result<()> {
    let listener = bind(&config.hostname, config.port).await?;
    let launcher = config.supervised.then(launcher_line).transpose()?;
    let (signals, receiver) = mpsc::channel(2);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut forwarding = JoinSet::new();
    forwarding.spawn(async move {
        loop {
            select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if signals.send(()).await.is_err() {
                return;
            }
        }
    });
    let process = Process {
        listener,
        launcher,
        signals: receiver,
        metrics: MetricsHandle::default(),
    };
    run(config, process).await
}

/// Standard input, whatever it is.
fn launcher_line() -> std::io::Result<LauncherLine> {
    let input = std::fs::File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    Ok(Box::new(BufReader::new(tokio::fs::File::from_std(input))))
}

/// Takes the port before any weight is read, so that a conflict shows at once.
async fn bind(hostname: &str, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((hostname, port))
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => {
                anyhow!("port {port} on {hostname} is already in use; choose another with --port")
            }
            _ => anyhow!("cannot listen on {hostname}, port {port}: {error}"),
        })
}

/// What a process has once, and hands to `run`.
pub struct Process {
    pub listener: TcpListener,
    /// `None`: nobody supervises this router.
    pub launcher: Option<LauncherLine>,
    /// The first message asks for a graceful end, the second for an end right now.
    pub signals: mpsc::Receiver<()>,
    pub metrics: MetricsHandle,
}

/// Serves until a signal and then until the streams have finished, or until something that it cannot do without is gone.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let address = process.listener.local_addr()?;
    let (phase, phase_watch) = watch::channel(Phase::Loading("starting".to_string()));
    let phase = Arc::new(phase);
    let (drain, drain_watch) = watch::channel(None);
    let (stop_http, http_stopped) = oneshot::channel::<()>();
    let mut http = JoinSet::new();
    http.spawn(http::serve(
        process.listener,
        http_config(&config, &process.metrics),
        phase_watch,
        async { drop(http_stopped.await) },
    ));
    tracing::info!(event = "listening", %address, "listening on {address}");

    let drain_time = config.graceful_termination_timeout;
    let (announce, announced) = watch::channel(Announced::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(follow_launcher(process.launcher, announce, phase.clone()));
    tasks.spawn(upkeep(process.metrics.clone()));
    let core = load_and_serve(
        config,
        announced,
        phase.clone(),
        process.metrics,
        drain_watch,
    );
    tasks.spawn(core);

    let mut signals = process.signals;
    let outcome = loop {
        select! {
            Some(ended) = tasks.join_next() => match ended? {
                Ok(Ended::Drained) => break Ok(()),
                Ok(Ended::LauncherGone) => bail!("the launcher is gone"),
                Err(error) => break Err(error),
            },
            Some(ended) = http.join_next() => {
                ended?.context("the HTTP server failed")?;
                bail!("the HTTP server ended");
            }
            Some(()) = signals.recv() => {
                if drain.borrow().is_some() {
                    bail!("interrupted while requests were finishing");
                }
                tracing::info!("finishing requests for at most {} s", drain_time.as_secs());
                phase.send_replace(Phase::Stopping);
                drain.send_replace(Some(Instant::now() + drain_time));
            }
        }
    };

    // Clients still have to be told how their streams ended.
    phase.send_replace(Phase::Stopping);
    let _ = stop_http.send(());
    let _ = timeout(FLUSH_TIMEOUT, http.join_next()).await;
    outcome
}

/// How a task of `run` can end without an error.
enum Ended {
    /// The engine has no more work, after a signal.
    Drained,
    LauncherGone,
}

fn http_config(config: &Config, metrics: &MetricsHandle) -> HttpConfig {
    HttpConfig {
        cors_allow_origin: config.cors_allow_origin.clone(),
        api_key: config.api_key.clone(),
        payload_limit_bytes: config.limits.payload_limit_bytes,
        connections: ConnectionLimits::for_payload(config.limits.payload_limit_bytes),
        metrics: metrics.clone(),
    }
}

/// The core: load, then run the engine until it is drained or fails.
async fn load_and_serve(
    config: Config,
    announced: watch::Receiver<Announced>,
    phase: Arc<watch::Sender<Phase>>,
    metrics: MetricsHandle,
    drain: watch::Receiver<Option<Instant>>,
) -> anyhow::Result<Ended> {
    let show_phase = |text| show_phase(&phase, text);
    let loaded = select! {
        loaded = startup::load(&config, announced, show_phase, &metrics) => loaded?,
        _ = drained(drain.clone()) => return Ok(Ended::Drained),
    };
    let is_loading = |phase: &Phase| matches!(phase, Phase::Loading(_));
    phase.send_if_modified(|phase| {
        let ready = is_loading(phase);
        if ready {
            *phase = Phase::Ready(Arc::new(loaded.app));
        }
        ready
    });
    tracing::info!(event = "ready", "ready");
    loaded.step_loop.run(drained(drain)).await?;
    Ok(Ended::Drained)
}

/// When the streams must have finished; never, before a signal.
async fn drained(mut drain: watch::Receiver<Option<Instant>>) -> Instant {
    let deadline = drain
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|seen| *seen);
    match deadline {
        Some(deadline) => deadline,
        None => pending().await,
    }
}

fn show_phase(phase: &watch::Sender<Phase>, text: String) {
    phase.send_if_modified(|phase| {
        let is_loading = matches!(phase, Phase::Loading(_));
        if is_loading {
            tracing::info!("{text}");
            *phase = Phase::Loading(text);
        }
        is_loading
    });
}

async fn follow_launcher(
    launcher: Option<LauncherLine>,
    announce: watch::Sender<Announced>,
    phase: Arc<watch::Sender<Phase>>,
) -> anyhow::Result<Ended> {
    let Some(launcher) = launcher else {
        return pending().await;
    };
    supervision::follow(launcher, announce, |text| show_phase(&phase, text)).await?;
    Ok(Ended::LauncherGone)
}

async fn upkeep(metrics: MetricsHandle) -> anyhow::Result<Ended> {
    match metrics.upkeep().await {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_a_way_out() {
        let first = bind("127.0.0.1", 0).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let error = bind("127.0.0.1", port).await.unwrap_err();
        let expected =
            format!("port {port} on 127.0.0.1 is already in use; choose another with --port");
        assert_eq!(error.to_string(), expected);
    }
}
