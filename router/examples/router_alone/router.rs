//! The router's process: this program in another role, on the first CPU, and what the system says about it.

use std::ffi::OsString;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use text_gen_router::config::Config;
use text_gen_router::telemetry::MetricsHandle;
use text_gen_router::{Process, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

/// The first argument of the other role.
pub const ROLE: &str = "serve";
pub const MAX_NEW_TOKENS: u32 = 4000;
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Serves as `text-gen-router` does, until it is killed.
pub fn serve(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let arguments = std::iter::once(OsString::from("router")).chain(arguments);
    let config = Config::parse(arguments).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    text_gen_router::telemetry::init_logging("info", true);
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = (config.hostname.clone(), config.port);
        let listener = tokio::net::TcpListener::bind(address).await?;
        let (_signals, receiver) = mpsc::channel(1);
        let process = Process {
            listener,
            launcher: None,
            signals: receiver,
            metrics: MetricsHandle::default(),
        };
        run(config, process).await
    })
}

/// Keeps this process off the CPU that the router has to itself. Must be called while there is one thread.
pub fn leave_first_cpu() -> anyhow::Result<()> {
    let cpus = std::thread::available_parallelism()?;
    if cpus.get() == 1 {
        eprintln!("there is one CPU: the router shares it with its clients");
        return Ok(());
    }
    let others = format!("1-{}", cpus.get() - 1);
    let pid = std::process::id().to_string();
    let status = Command::new("taskset")
        .args(["-pc", &others, &pid])
        .stdout(Stdio::null())
        .status()
        .context("taskset does not run")?;
    ensure!(status.success(), "taskset failed");
    Ok(())
}

/// A running router. Dropping it kills it.
pub struct RouterProcess {
    child: Child,
    address: SocketAddr,
}

impl RouterProcess {
    pub fn start(shard_socket: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/compat");
        let child = Command::new("taskset")
            .args(["-c", "0"])
            .arg(std::env::current_exe()?)
            .args([ROLE, "--hostname", "127.0.0.1", "--port", &port.to_string()])
            .arg("--model-dir")
            .arg(model)
            .arg("--shard-socket")
            .arg(shard_socket)
            .args(["--max-concurrent-requests", "1024"])
            .args(["--max-batch-size", "512"])
            .args(["--max-batch-prefill-tokens", "100000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("taskset does not run")?;
        Ok(Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Once it answers `/health` with 200.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let started = Instant::now();
        while started.elapsed() < START_DEADLINE {
            if let Some(status) = self.child.try_wait()? {
                bail!("the router ended: {status}");
            }
            if self.is_healthy().await.unwrap_or(false) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the router is not ready")
    }

    async fn is_healthy(&self) -> anyhow::Result<bool> {
        let mut connection = TcpStream::connect(self.address).await?;
        let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        connection.write_all(request).await?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    }

    /// Memory that it has to itself.
    pub fn memory_kib(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no RssAnon")?.parse()?)
    }

    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        cpu_time(self.child.id())
    }
}

impl Drop for RouterProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Of all threads of a process.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has just ended took next to nothing.
        if let Ok(times) = fs::read_to_string(thread?.path().join("schedstat")) {
            let on_cpu = times.split_whitespace().next().context("no time")?;
            nanoseconds += on_cpu.parse::<u64>()?;
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}
