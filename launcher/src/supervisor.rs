//! The heart of the launcher: start, watch, stop.
//!
//! The router comes first, because it holds the port: a conflict is found before any weight is read, and health is answered while
//! the model loads. It also goes first, because it is the entry: the shards serve until its last stream is done. The shards live
//! and die as a group.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::child::{Child, Exit, SpawnError};
use crate::commands;
use crate::config::Config;
use crate::logs::{Logs, Source};
use crate::resolve::{Model, ResolveError, resolve};
use crate::router_state::{RouterState, RouterWatch};
use crate::signals::Signals;
use crate::socket_dir::{SocketDir, SocketDirError};

/// Binding a port takes milliseconds, on a busy machine seconds.
const LISTEN_DEADLINE: Duration = Duration::from_secs(60);
/// What the router may take on top of the time that its streams have.
const ROUTER_MARGIN: Duration = Duration::from_secs(5);
/// After a failure nobody can be served; the router only tells its clients so.
const FAILURE_GRACE: Duration = Duration::from_secs(5);
const SHARD_GRACE: Duration = Duration::from_secs(5);

/// Why the launcher ended without being asked to, or not as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    SocketDir(#[from] SocketDirError),
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    #[error("Router failed to listen within {} s", LISTEN_DEADLINE.as_secs())]
    NotListening,
    #[error("{} {}: it {exit}", name(*process), if *is_ready { "crashed" } else { "failed to start" })]
    Exited {
        process: Source,
        exit: Exit,
        is_ready: bool,
    },
    #[error("a second signal cut the shutdown short; what was running was killed")]
    CutShort,
}

fn name(source: Source) -> String {
    match source {
        Source::Launcher => "Launcher".to_owned(),
        Source::Router => "Router".to_owned(),
        Source::Resolver => "Download process".to_owned(),
        Source::Shard { rank } => format!("Shard {rank}"),
    }
}

/// Serves until a signal comes or something fails, then stops everything. A failure has been logged when this returns.
pub async fn supervise(config: &Config, logs: &Logs, signals: &mut Signals) -> Result<(), Failure> {
    let sockets = SocketDir::create(&config.temp_dir, config.num_shards)
        .map_err(|error| logged(error.into()))?;
    // Declared after the directory, and so gone before it; what is still running then is killed.
    let mut processes = Processes::default();
    let outcome = tokio::select! {
        Err(failure) = start_and_watch(config, logs, &sockets, &mut processes) => Err(logged(failure)),
        signal = signals.next() => {
            tracing::info!("Received {signal}: finishing what is running; a second signal ends it now");
            Ok(())
        }
    };
    let drain = outcome
        .is_ok()
        .then_some(config.graceful_termination_timeout);
    tokio::select! {
        stopped = processes.stop(drain) => outcome.and(stopped),
        _ = signals.next() => Err(logged(Failure::CutShort)),
    }
}

impl Failure {
    /// The program that failed has said why, in an error line of its own; one such line is enough. The server's commands end with 2
    /// only then, the router with any code of its own.
    fn is_explained(&self) -> bool {
        match self {
            Self::Resolve(ResolveError::Failed(exit)) => exit.code() == Some(2),
            Self::Exited {
                process: Source::Shard { .. },
                exit,
                is_ready: false,
            } => exit.code() == Some(2),
            Self::Exited {
                process: Source::Router,
                exit,
                is_ready: false,
            } => matches!(exit.code(), Some(1 | 2)),
            _ => false,
        }
    }
}

fn logged(failure: Failure) -> Failure {
    if failure.is_explained() {
        tracing::info!("{failure}");
    } else {
        tracing::error!("{failure}");
    }
    failure
}

/// Returns only when something has failed.
async fn start_and_watch(
    config: &Config,
    logs: &Logs,
    sockets: &SocketDir,
    processes: &mut Processes,
) -> Result<Infallible, Failure> {
    let started = Instant::now();
    tracing::info!("Starting router");
    let mut router = processes.start_router(config, logs, sockets)?;
    let listening = tokio::time::timeout(LISTEN_DEADLINE, router.reached(RouterState::Listening));
    processes
        .until(listening)
        .await?
        .map_err(|_| Failure::NotListening)?;

    processes
        .tell_router(&format!("phase resolving model {}", config.model.name()))
        .await;
    let model = processes
        .until(resolve(config, commands::resolve(config), logs))
        .await??;
    processes
        .tell_router(&format!("model {}", model.model_dir.display()))
        .await;
    if let Some(revision) = &model.revision {
        processes.tell_router(&format!("revision {revision}")).await;
    }

    processes.start_shards(config, logs, sockets, &model)?;
    processes.tell_router("phase loading weights").await;
    processes.until(router.reached(RouterState::Ready)).await?;
    processes.is_ready = true;
    tracing::info!(
        "Ready: serving {} after {:.1} s",
        config.model.name(),
        started.elapsed().as_secs_f64()
    );
    if config.model.is_demo() {
        tracing::info!(
            "This is the small demo model, made to try the server: serve a real one with --model-id, a name on the Hugging Face hub or a folder"
        );
    }
    Err(processes.failed().await)
}

/// Everything that runs. Dropping it kills what is left.
#[derive(Default)]
struct Processes {
    router: Option<Child>,
    shards: Vec<Child>,
    is_ready: bool,
}

impl Processes {
    fn start_router(
        &mut self,
        config: &Config,
        logs: &Logs,
        sockets: &SocketDir,
    ) -> Result<RouterWatch, SpawnError> {
        let watch = RouterWatch::new();
        let mut router = Child::spawn(
            commands::router(config, sockets),
            Source::Router,
            logs,
            watch.observer(),
        )?;
        router.forward_stdout(logs, watch.observer());
        self.router = Some(router);
        Ok(watch)
    }

    fn start_shards(
        &mut self,
        config: &Config,
        logs: &Logs,
        sockets: &SocketDir,
        model: &Model,
    ) -> Result<(), SpawnError> {
        for rank in 0..config.num_shards {
            tracing::info!(rank, "Starting shard");
            let command = commands::shard(config, sockets, model, rank);
            let mut shard = Child::spawn(command, Source::Shard { rank }, logs, |_| {})?;
            shard.forward_stdout(logs, |_| {});
            self.shards.push(shard);
        }
        Ok(())
    }

    async fn tell_router(&mut self, line: &str) {
        if let Some(router) = &mut self.router {
            router.tell(line).await;
        }
    }

    /// Waits for an event, but not beyond the end of any process.
    async fn until<T>(&mut self, event: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            failure = self.failed() => Err(failure),
            value = event => Ok(value),
        }
    }

    /// Waits for the first process that ends by itself.
    async fn failed(&mut self) -> Failure {
        let (process, exit) = first_exit(self.router.iter_mut().chain(&mut self.shards)).await;
        Failure::Exited {
            process,
            exit,
            is_ready: self.is_ready,
        }
    }

    /// Stops everything in order. With a time to drain, the streams of the router are served until then; without, nobody can be
    /// served any more, and the shards, which may hang in an operation with a dead one, are killed at once.
    async fn stop(&mut self, drain: Option<Duration>) -> Result<(), Failure> {
        let drained = match drain {
            Some(drain) => self.drain_router(drain + ROUTER_MARGIN).await,
            None => Ok(()),
        };
        if drain.is_none() || drained.is_err() {
            self.shards.iter_mut().for_each(Child::kill);
            if let Some(router) = &mut self.router {
                router.terminate();
                warn_if_killed("router", router.exited_within(FAILURE_GRACE).await);
            }
        }
        if !self.shards.is_empty() {
            tracing::info!("Terminating shards");
        }
        self.shards.iter().for_each(Child::terminate);
        for shard in &mut self.shards {
            warn_if_killed("shard", shard.exited_within(SHARD_GRACE).await);
        }
        tracing::info!("Terminated");
        drained
    }

    async fn drain_router(&mut self, grace: Duration) -> Result<(), Failure> {
        let Some(router) = &mut self.router else {
            return Ok(());
        };
        tracing::info!("Terminating router");
        router.terminate();
        tokio::select! {
            exit = router.exited_within(grace) => warn_if_killed("router", exit),
            (process, exit) = first_exit(self.shards.iter_mut()) => {
                return Err(logged(Failure::Exited { process, exit, is_ready: self.is_ready }));
            }
        }
        Ok(())
    }
}

fn warn_if_killed(what: &str, exit: Option<Exit>) {
    if exit.is_none() {
        tracing::warn!("the {what} did not end in time and was killed");
    }
}

/// Waits until one of several children has ended; for ever if there are none.
async fn first_exit<'a>(children: impl Iterator<Item = &'a mut Child>) -> (Source, Exit) {
    let mut exits: Vec<_> = children
        .map(|child| Box::pin(async { (child.source(), child.exited().await) }))
        .collect();
    poll_fn(|context| {
        for exit in &mut exits {
            if let Poll::Ready(ended) = exit.as_mut().poll(context) {
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    })
    .await
}
