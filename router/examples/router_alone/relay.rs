//! What the way itself takes, without a router: a process in the router's place that hands a fixed event to every client whenever a
//! byte comes from the shard's side. It parses nothing, so that only sockets and wake-ups are measured.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Builder;

use crate::clients::Load;
use crate::router::cpu_time;

/// The first argument of the other role.
pub const ROLE: &str = "relay";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
/// As long as an event of the router's, without its chunk.
const EVENT_BYTES: usize = 220;
/// As long as a result of 32 rows.
const RESULT_BYTES: usize = 460;

/// Relays until the shard's side hangs up. Arguments: the socket of that side, and how many clients there will be.
pub fn serve(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    let socket = PathBuf::from(arguments.next().context("no socket")?);
    let clients = arguments.next().context("no number of clients")?;
    let clients: usize = clients.to_str().context("no number")?.parse()?;
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut results = UnixStream::connect(socket).await?;
        results.write_u16(listener.local_addr()?.port()).await?;
        let mut connections = Vec::new();
        for _ in 0..clients {
            let (mut connection, _) = listener.accept().await?;
            connection.set_nodelay(true)?;
            // The request, which comes in one piece.
            let count = connection.read(&mut [0; 8192]).await?;
            ensure!(count > 0, "a client hung up");
            connection.write_all(HEAD).await?;
            connections.push(connection);
        }
        results.write_u16(0).await?;
        relay(results, connections).await
    })
}

async fn relay(mut results: UnixStream, mut connections: Vec<TcpStream>) -> anyhow::Result<()> {
    let mut event = vec![b'x'; EVENT_BYTES];
    event.extend(b"\n\n");
    let mut result = [0; RESULT_BYTES];
    while results.read_exact(&mut result).await.is_ok() {
        for connection in &mut connections {
            connection.write_all(&event).await?;
        }
    }
    Ok(())
}

/// What a relay took.
pub struct Taken {
    /// From a result to the event at each client.
    pub times: Vec<Duration>,
    /// Of all steps.
    pub cpu: Duration,
}

/// Relays so many steps at an even pace.
pub async fn run(
    socket: PathBuf,
    clients: u32,
    steps: u32,
    step: Duration,
) -> anyhow::Result<Taken> {
    let listener = UnixListener::bind(&socket)?;
    let mut process = start(&socket, clients)?;
    let (mut results, _) = listener.accept().await?;
    let address = ([127, 0, 0, 1], results.read_u16().await?).into();
    let mut load = Load::start(address, clients, steps);
    results.read_u16().await?;
    let cpu = cpu_time(process.id())?;
    let mut sent_at = Vec::new();
    // One more, because the last event of an answer is not a token's.
    for _ in 0..=steps {
        tokio::time::sleep(step).await;
        sent_at.push(Instant::now());
        results.write_all(&[0; RESULT_BYTES]).await?;
    }
    tokio::time::sleep(step).await;
    let cpu = cpu_time(process.id())? - cpu;
    drop(results);
    let answers = load.answers().await?;
    process.wait()?;
    let pairs = answers
        .iter()
        .flat_map(|answer| answer.event_at.iter().zip(&sent_at));
    let times = pairs.map(|(event_at, sent_at)| event_at.duration_since(*sent_at));
    Ok(Taken {
        times: times.collect(),
        cpu,
    })
}

fn start(socket: &std::path::Path, clients: u32) -> anyhow::Result<Child> {
    Command::new("taskset")
        .args(["-c", "0"])
        .arg(std::env::current_exe()?)
        .arg(ROLE)
        .arg(socket)
        .arg(clients.to_string())
        .stdin(Stdio::null())
        .spawn()
        .context("taskset does not run")
}
