//! A child process as a type: dropping it kills it, with everything it started.
//!
//! Its standard input is its life line: a pipe that only the launcher holds. When the launcher dies, even by SIGKILL, the child
//! reads the end of it and exits. Its output goes to the log.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child as Process, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::logs::{Logs, Source, Stream};

/// How long the rest of a dead child's output may take to arrive; something it started can hold the pipe open.
const LAST_LINES_DEADLINE: Duration = Duration::from_secs(1);
/// A child that does not read its life line is not waited for.
const TELL_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
#[error("cannot start {program}: {source}")]
pub struct SpawnError {
    program: PathBuf,
    source: io::Error,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(ExitStatus);

impl Exit {
    pub fn is_success(self) -> bool {
        self.0.success()
    }

    pub fn code(self) -> Option<i32> {
        self.0.code()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exited with code {code}"),
            (None, Some(9)) => write!(
                f,
                "was killed by signal 9 (SIGKILL; the machine may be out of memory)"
            ),
            (None, signal) => write!(f, "was killed by signal {}", signal.unwrap_or_default()),
        }
    }
}

pub struct Child {
    source: Source,
    process: Process,
    /// Of the process group, which the child leads.
    pid: Option<Pid>,
    life_line: Option<ChildStdin>,
    logs: JoinSet<()>,
}

impl Child {
    /// Starts a command and forwards its standard error. Its output must be taken by `forward_stdout` or `take_stdout`.
    ///
    /// It gets a process group of its own: a Ctrl-C of the terminal reaches the launcher alone, which stops its children in order.
    pub fn spawn<F>(
        mut command: Command,
        source: Source,
        logs: &Logs,
        observe: F,
    ) -> Result<Self, SpawnError>
    where
        F: FnMut(&Map<String, Value>) + Send + 'static,
    {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let program = PathBuf::from(command.as_std().get_program());
        let mut process = command
            .spawn()
            .map_err(|source| SpawnError { program, source })?;
        let mut forwarders = JoinSet::new();
        if let Some(stderr) = process.stderr.take() {
            forwarders.spawn(
                logs.clone()
                    .forward(source, (Stream::Stderr, stderr), observe),
            );
        }
        Ok(Self {
            source,
            pid: process
                .id()
                .and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)),
            life_line: process.stdin.take(),
            process,
            logs: forwarders,
        })
    }

    pub fn forward_stdout<F>(&mut self, logs: &Logs, observe: F)
    where
        F: FnMut(&Map<String, Value>) + Send + 'static,
    {
        if let Some(stdout) = self.take_stdout() {
            self.logs.spawn(
                logs.clone()
                    .forward(self.source, (Stream::Stdout, stdout), observe),
            );
        }
    }

    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.process.stdout.take()
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// Writes a line to the child's standard input. That it could not be written is no error here: a child that is gone is seen by
    /// `exited`.
    pub async fn tell(&mut self, line: &str) {
        if let Some(life_line) = &mut self.life_line {
            let _ = timeout(
                TELL_DEADLINE,
                life_line.write_all(format!("{line}\n").as_bytes()),
            )
            .await;
        }
    }

    /// Waits for the child's end and for its last lines. Can be dropped and called again.
    pub async fn exited(&mut self) -> Exit {
        let status = match self.process.wait().await {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(%error, "cannot wait for a child");
                ExitStatus::from_raw(1 << 8)
            }
        };
        // What it started and left behind. The id stays taken for as long as its group has members.
        self.kill_group();
        let last_lines = async { while self.logs.join_next().await.is_some() {} };
        let _ = timeout(LAST_LINES_DEADLINE, last_lines).await;
        Exit(status)
    }

    /// Asks the child to end (SIGTERM).
    pub fn terminate(&self) {
        if let (Some(pid), Some(_)) = (self.pid, self.process.id()) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits for the child's end, and kills it when `grace` is over. None: it had to be killed.
    pub async fn exited_within(&mut self, grace: Duration) -> Option<Exit> {
        if let Ok(exit) = timeout(grace, self.exited()).await {
            return Some(exit);
        }
        self.kill();
        self.exited().await;
        None
    }

    pub fn kill(&mut self) {
        if self.process.id().is_some() {
            self.kill_group();
        }
    }

    fn kill_group(&self) {
        if let Some(pid) = self.pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
