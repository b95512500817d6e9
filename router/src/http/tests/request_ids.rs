//! The id of a request: on every answer, and in the line that a failed one leaves in the log.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::engine::EngineError;
use crate::generation::scripted::{admitted, token};

fn with_id(mut request: Request<Body>, id: &str) -> Request<Body> {
    let id = axum::http::HeaderValue::from_bytes(id.as_bytes()).unwrap();
    request.headers_mut().insert("x-request-id", id);
    request
}

#[tokio::test]
async fn the_clients_id_comes_back_and_one_that_is_unfit_is_replaced() {
    let server = greedy();
    let get = || Request::get("/info").body(Body::empty()).unwrap();
    let longest = "x".repeat(128);
    for id in ["a", "{}~!\"", &longest] {
        let reply = server.send(with_id(get(), id)).await;
        assert_eq!(reply.header("x-request-id"), Some(id));
    }
    let mut seen = std::collections::BTreeSet::new();
    for id in ["", "a b", "é", "a\tb", &"x".repeat(129)] {
        let reply = server.send(with_id(get(), id)).await;
        let made = reply.header("x-request-id").unwrap().to_owned();
        assert!(made.starts_with("req-") && made != id, "{id}: {made}");
        assert!(seen.insert(made));
    }
}

#[tokio::test]
async fn errors_of_every_layer_have_an_id() {
    let server = greedy_with(Options {
        api_keys: vec![("one", "k")],
        cors: vec!["http://good.example"],
        ..Options::default()
    });
    let with_key = |mut request: Request<Body>| {
        let key = axum::http::HeaderValue::from_static("Bearer k");
        request.headers_mut().insert("authorization", key);
        request
    };
    let empty = |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path);
        request.body(Body::empty()).unwrap()
    };
    for (request, status) in [
        (empty("GET", "/info"), 401),
        (with_key(empty("GET", "/nowhere")), 404),
        (with_key(empty("GET", "/generate")), 405),
        (with_key(empty("POST", "/generate")), 415),
        (with_key(post("/generate", &json!({"inputs": 1}))), 422),
        (with_key(post("/generate", &json!({"inputs": ""}))), 422),
        (empty("OPTIONS", "/generate"), 200),
    ] {
        let reply = server.send(with_id(request, "mine")).await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("x-request-id"), Some("mine"), "{status}");
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_request_that_fails_leaves_one_line_with_its_id_and_without_its_text() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let server = scripted(|_| {
        let failed = TokenEvent::Failed(EngineError::Numerical);
        vec![admitted(0), token(323, None), failed]
    });
    // Tests beside this one have no subscriber, and who meets a log line first decides whether it is of interest. So each line is met
    // once before it counts.
    let refused = json!({"inputs": "very private", "parameters": {"temperature": -1.0}});
    let body = json!({"inputs": "very private", "parameters": {"max_new_tokens": 4}});
    server.send(post("/generate", &refused)).await;
    server.send(post("/generate", &body)).await;
    tracing::callsite::rebuild_interest_cache();
    log.0.lock().unwrap().clear();

    server
        .send(with_id(post("/generate", &body), "first"))
        .await;
    server
        .send(with_id(post("/generate_stream", &body), "second"))
        .await;
    server
        .send(with_id(post("/generate", &refused), "third"))
        .await;
    server
        .send(with_id(post("/very-private", &refused), "fourth"))
        .await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines.len(), 4, "{log}");
    for (line, words) in lines.iter().zip([
        ["WARN", "first", "424", "numerical"],
        ["WARN", "second", "424", "numerical"],
        ["INFO", "third", "422", "validation"],
        ["INFO", "fourth", "404", "refused"],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
    assert!(!log.contains("private"), "{log}");
}

#[tokio::test]
async fn who_asks_again_and_again_whether_the_server_is_ready_does_not_fill_the_log() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let server = greedy();
    let loading = Phase::Loading("reading weights".into());
    server.phase.send_replace(loading);
    for _ in 0..2 {
        for path in ["/", "/health", "/ping", "/readyz"] {
            assert_eq!(server.get(path).await.status, 503);
        }
        // The first round is not counted, see above.
        tracing::callsite::rebuild_interest_cache();
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log, "");
}
