//! A server on a socket: how it ends, and what it does with clients that are slow, silent or too many.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::generation::scripted::{admitted, token};

const SHORT: Duration = Duration::from_millis(50);

/// How long these tests wait for a server that does what it should.
const PATIENCE: Duration = Duration::from_secs(20);

struct Socket {
    address: SocketAddr,
    held: mpsc::Receiver<Held>,
    stop: oneshot::Sender<()>,
    /// Ends with the server.
    task: JoinSet<std::io::Result<()>>,
    _phase: watch::Sender<Phase>,
}

impl Socket {
    /// With limits as they are in service, but for those changed here.
    async fn start(change: impl Fn(&mut ConnectionLimits)) -> Self {
        let mut options = Options::default();
        change(&mut options.connections);
        let (handle, held) = engine(|_| vec![admitted(0), token(323, None)]);
        let ready = Phase::Ready(Arc::new(app(handle, options.limits)));
        let (phase, receiver) = watch::channel(ready);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let mut task = JoinSet::new();
        task.spawn(super::super::serve(
            listener,
            config(options),
            receiver,
            async { drop(stopped.await) },
        ));
        Self {
            address,
            held,
            stop,
            task,
            _phase: phase,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Everything that is answered to some bytes, until the server closes.
    async fn answer_to(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        rest_of(stream).await
    }

    async fn ended(mut self) {
        let _ = self.stop.send(());
        let ended = timeout(PATIENCE, self.task.join_next()).await.unwrap();
        ended.unwrap().unwrap().unwrap();
    }
}

/// What is read before the other side closes, with or without a reset.
async fn rest_of(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("the connection stays open");
    String::from_utf8(answer).unwrap()
}

/// A head that announces `length` bytes of JSON.
fn head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

fn whole(path: &str, body: &Value) -> String {
    let body = body.to_string();
    format!("{}{body}", head(path, body.len()))
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn a_server_ends_after_its_running_stream() {
    let mut server = Socket::start(|_| ()).await;
    let mut client = server.connect().await;
    let request = whole("/generate_stream", &json!({"inputs": "a"}));
    client.write_all(request.as_bytes()).await.unwrap();
    let running = server.held.recv().await.unwrap();
    let idle = server.connect().await;
    let finish = async {
        let last = token(387, Some(scheduler::FinishReason::Length));
        running.events.try_send(last).unwrap();
        rest_of(client).await
    };
    let ((), answer) = tokio::join!(server.ended(), finish);
    assert!(answer.contains("data: {\"index\":1,"), "{answer}");
    assert!(answer.contains("\"generated_text\":\" return None\""));
    assert_eq!(rest_of(idle).await, "");
}

#[tokio::test]
async fn a_client_without_a_whole_request_is_closed() {
    let server = Socket::start(|limits| limits.head_timeout = SHORT).await;
    for begun in [
        "",
        "PRI * HTTP/2.0\r\n",
        "GET /health",
        "GET /health HTTP/1.1\r\nhost: a\r\nx: ",
    ] {
        assert_eq!(server.answer_to(begun.as_bytes()).await, "", "{begun:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_answer() {
    let server = Socket::start(|limits| limits.head_timeout = SHORT).await;
    let answer = server.answer_to(HEALTH.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_answered_with_408_and_closed() {
    let server = Socket::start(|limits| limits.body_timeout = SHORT).await;
    let begun = format!("{}{{\"inputs\": \"", head("/generate", 100));
    let answer = server.answer_to(begun.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"error_type\":\"timeout\""), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_not_waited_for() {
    let server = Socket::start(|_| ()).await;
    let begun = head("/generate", 3_000_000);
    let answer = server.answer_to(begun.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn a_connection_whose_body_was_refused_unread_says_that_it_ends() {
    let server = Socket::start(|_| ()).await;
    for path in ["/health", "/nothing"] {
        let request = whole(path, &json!({"inputs": "a"}));
        let answer = server.answer_to(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_whose_body_was_read_stays_open() {
    let server = Socket::start(|_| ()).await;
    let mut client = server.connect().await;
    for body in [json!({"inputs": "a"}), json!({"inputs": 3})] {
        let request = whole("/tokenize", &body);
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 4096];
        let len = client.read(&mut answer).await.unwrap();
        let answer = std::str::from_utf8(&answer[..len]).unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let server = Socket::start(|_| ()).await;
    let long = format!("GET /health HTTP/1.1\r\nx: {}", "a".repeat(70_000));
    let answer = server.answer_to(long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed() {
    let server = Socket::start(|limits| limits.write_timeout = SHORT).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    // The answer, one object for every letter, is larger than what the system buffers.
    let request = whole("/tokenize", &json!({"inputs": "a b ".repeat(100_000)}));
    client.write_all(request.as_bytes()).await.unwrap();
    // The answer has begun.
    client.readable().await.unwrap();
    server.ended().await;
}

#[tokio::test]
async fn a_connection_too_many_waits_for_another_to_end() {
    let server = Socket::start(|limits| limits.max_connections = 1).await;
    let mut first = server.connect().await;
    first.write_all(HEALTH.as_bytes()).await.unwrap();
    first.readable().await.unwrap();
    let mut second = server.connect().await;
    second.write_all(HEALTH.as_bytes()).await.unwrap();
    // The server has answered once more, and the second still waits.
    let mut answer = [0; 1024];
    let _ = first.read(&mut answer).await.unwrap();
    first.write_all(HEALTH.as_bytes()).await.unwrap();
    first.readable().await.unwrap();
    assert!(second.try_read(&mut answer).is_err());
    drop(first);
    second.readable().await.unwrap();
    assert!(second.try_read(&mut answer).unwrap() > 0);
}
