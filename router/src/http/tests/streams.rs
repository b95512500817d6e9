//! How streams end, and what a client that leaves causes.

use serde_json::json;

use super::*;
use crate::engine::EngineError;
use crate::generation::scripted::{admitted, token};

fn chat(stream: bool) -> Value {
    json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "temperature": 0, "stream": stream})
}

fn failing() -> Server {
    scripted(|_| {
        vec![
            admitted(0),
            token(323, None),
            TokenEvent::Failed(EngineError::Numerical),
        ]
    })
}

#[tokio::test]
async fn an_error_is_the_last_event_of_a_native_stream() {
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 5}});
    let events = failing().post("/generate_stream", &body).await.events();
    assert_eq!(events.len(), 2);
    let error: Value = serde_json::from_str(&events[1]).unwrap();
    assert_eq!(error["error_type"], "numerical");
}

#[tokio::test]
async fn done_is_not_sent_after_an_error() {
    for (path, body) in [
        ("/v1/chat/completions", chat(true)),
        (
            "/v1/completions",
            json!({"prompt": ["a", "b"], "stream": true, "max_tokens": 5}),
        ),
    ] {
        let events = failing().post(path, &body).await.events();
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["http_status_code"], 424);
        let errors = events.iter().filter(|event| event.contains("\"error\""));
        assert_eq!(errors.count(), 1, "{path}");
    }
}

#[tokio::test]
async fn an_error_of_a_whole_answer_is_its_status() {
    let reply = failing().post("/v1/chat/completions", &chat(false)).await;
    assert_eq!(reply.status, 424);
    let lost = scripted(|_| vec![TokenEvent::Failed(EngineError::ShardLost("gone".into()))]);
    let reply = lost.post("/v1/chat/completions", &chat(false)).await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["error_type"], "shard_lost");
}

#[tokio::test]
async fn an_engine_that_dies_is_told_as_an_incomplete_generation() {
    let mut server = scripted(|_| vec![admitted(0)]);
    let body = json!({"inputs": "a"});
    let (reply, ()) = tokio::join!(
        async {
            server
                .router
                .clone()
                .oneshot(post("/generate", &body))
                .await
                .unwrap()
        },
        async { drop(server.held.recv().await.unwrap()) },
    );
    assert_eq!(reply.status(), 500);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_every_sequence_of_its_request() {
    let mut server = scripted(|_| vec![admitted(0), token(323, None)]);
    let bodies = [
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "stream": true, "n": 2}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ["a", "b"], "stream": true}),
        ),
    ];
    for (path, body) in bodies {
        let response = server.open(post(path, &body)).await;
        assert_eq!(response.status(), 200, "{path}");
        let held = [
            server.held.recv().await.unwrap(),
            server.held.recv().await.unwrap(),
        ];
        assert!(held.iter().all(|held| !held.events.is_closed()));
        drop(response);
        for held in held {
            held.events.closed().await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_a_whole_answer_cancels_it() {
    let mut server = scripted(|_| vec![admitted(0)]);
    let router = server.router.clone();
    let waiting = router.oneshot(post("/v1/chat/completions", &chat(false)));
    let held = tokio::select! {
        _ = waiting => panic!("there is no answer yet"),
        held = server.held.recv() => held.unwrap(),
    };
    held.events.closed().await;
}

#[tokio::test]
async fn streamed_and_whole_answers_have_the_same_text() {
    let server = greedy();
    for stop in [json!(null), json!("ure"), json!(["e '", "zz"])] {
        let mut body = chat(false);
        body["max_tokens"] = json!(40);
        body["messages"][0]["content"] = json!("Hello there");
        body["stop"] = stop;
        let whole = server.post("/v1/chat/completions", &body).await.json();
        body["stream"] = json!(true);
        let events = server.post("/v1/chat/completions", &body).await.events();
        let chunks: Vec<Value> = events[..events.len() - 1]
            .iter()
            .map(|event| serde_json::from_str(event).unwrap())
            .collect();
        let text: String = chunks
            .iter()
            .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap())
            .collect();
        assert_eq!(json!(text), whole["choices"][0]["message"]["content"]);
        let last = &chunks.last().unwrap()["choices"][0];
        assert_eq!(last["finish_reason"], whole["choices"][0]["finish_reason"]);
        assert_eq!(events.last().unwrap(), "[DONE]");
    }
}
