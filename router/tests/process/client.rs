//! A plain HTTP/1.1 client: one connection per request, and the body as it is once the server has closed.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub struct Client {
    address: SocketAddr,
}

/// A request whose answer is awaited. Dropping it hangs up.
pub struct Running(TcpStream);

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\n"), "")
            .await
            .answer()
            .await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, String) {
        self.start_post(path, body).await.answer().await
    }

    /// `head` is one more header.
    pub async fn post_with(&self, path: &str, head: &str, body: &Value) -> (u16, String) {
        let head = format!("POST {path} HTTP/1.1\r\ncontent-type: application/json\r\n{head}\r\n");
        self.send(&head, &body.to_string()).await.answer().await
    }

    pub async fn start_post(&self, path: &str, body: &Value) -> Running {
        let head = format!("POST {path} HTTP/1.1\r\ncontent-type: application/json\r\n");
        self.send(&head, &body.to_string()).await
    }

    /// Asks for the health until it is as wanted. The server answers each time, so this waits for nothing but progress.
    pub async fn until_health(&self, is_wanted: impl Fn(u16, &str) -> bool) {
        loop {
            let (status, body) = self.get("/health").await;
            if is_wanted(status, &body) {
                return;
            }
        }
    }

    async fn send(&self, head: &str, body: &str) -> Running {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        let length = body.len();
        let request = format!(
            "{head}host: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        connection.write_all(request.as_bytes()).await.unwrap();
        Running(connection)
    }
}

impl Running {
    pub async fn answer(mut self) -> (u16, String) {
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap();
        (status.parse().unwrap(), body.to_string())
    }
}
