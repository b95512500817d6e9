//! When and from where the server can be asked: phases, CORS, limits. Keys are in `keys.rs`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::engine::Progress;
use crate::generation::scripted::{admitted, token};

fn small() -> Value {
    json!({"inputs": "x self", "parameters": {"max_new_tokens": 2}})
}

#[tokio::test]
async fn nothing_but_life_and_metrics_answers_while_the_model_loads() {
    let server = greedy();
    server
        .phase
        .send_replace(Phase::Loading("reading weights".into()));
    for path in ["/health", "/readyz", "/ping", "/", "/info", "/v1/models"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 503, "{path}");
        assert!(reply.text.contains("reading weights"), "{path}");
    }
    let refused = server.post("/generate_stream", &small()).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error_type"], "loading");
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.get("/metrics").await.status, 200);
}

#[tokio::test]
async fn a_running_stream_goes_on_while_the_server_stops_and_new_ones_are_refused() {
    let mut server = scripted(|_| vec![admitted(0), token(323, None)]);
    let running = server.open(post("/generate_stream", &small())).await;
    let held = server.held.recv().await.unwrap();
    server.phase.send_replace(Phase::Stopping);
    assert_eq!(server.post("/generate", &small()).await.status, 503);
    assert_eq!(server.get("/health").await.status, 503);
    let last = token(387, Some(scheduler::FinishReason::Length));
    held.events.try_send(last).unwrap();
    drop(held);
    let bytes = axum::body::to_bytes(running.into_body(), usize::MAX)
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("\"generated_text\":\" return None\""));
}

#[tokio::test]
async fn a_step_that_takes_far_too_long_is_a_matter_of_health() {
    let (engine, _submissions) = EngineHandle::new(1);
    let server = ready(app(engine.clone(), limits()), Options::default());
    let began = |seconds| Progress {
        waiting_since: Instant::now().checked_sub(Duration::from_secs(seconds)),
        usual_step: Some(Duration::from_secs(2)),
        ..Progress::default()
    };
    engine.show_progress(began(39));
    assert_eq!(server.get("/health").await.status, 200);
    engine.show_progress(began(41));
    for path in ["/", "/health", "/ping", "/readyz"] {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 503, "{path}");
        assert_eq!(reply.json()["error_type"], "healthcheck");
        let told = reply.json()["error"].to_string();
        assert!(told.contains("has been running for 41 s"), "{told}");
    }
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn an_engine_that_has_stopped_is_a_matter_of_health() {
    let (engine, submissions) = EngineHandle::new(1);
    let server = ready(app(engine, limits()), Options::default());
    assert_eq!(server.get("/health").await.status, 200);
    drop(submissions);
    let reply = server.get("/health").await;
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["error"], "the engine has stopped");
}

#[tokio::test]
async fn a_wrong_method_is_told_what_is_allowed_also_without_the_key() {
    let server = greedy_with(Options {
        api_keys: vec![("k", "k")],
        ..Options::default()
    });
    let reply = server.get("/generate").await;
    assert_eq!(reply.status, 401);
    assert_eq!(reply.header("allow"), Some("POST"));
}

#[tokio::test]
async fn cors_is_off_until_configured_and_then_allows_the_key() {
    let ask = |origin: &'static str| {
        Request::options("/generate")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type,x-api-key,x-request-id,x-stainless-lang",
            )
            .body(Body::empty())
            .unwrap()
    };
    let off = greedy().get("/info").await;
    assert_eq!(off.header("access-control-allow-origin"), None);
    assert_eq!(off.header("vary"), None);

    let listed = greedy_with(Options {
        cors: vec!["http://good.example"],
        api_keys: vec![("k", "k")],
        ..Options::default()
    });
    let reply = listed.send(ask("http://good.example")).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("access-control-allow-origin"),
        Some("http://good.example")
    );
    assert_eq!(
        reply.header("access-control-allow-headers"),
        Some("authorization,content-type,x-api-key,x-request-id,x-stainless-lang")
    );
    let bare = Request::options("/generate").body(Body::empty()).unwrap();
    let reply = listed.send(bare).await;
    assert_eq!(
        reply.header("access-control-allow-headers"),
        Some("content-type")
    );
    let reply = listed.send(ask("http://bad.example")).await;
    assert_eq!(reply.header("access-control-allow-origin"), None);

    let any = greedy_with(Options {
        cors: vec!["*"],
        ..Options::default()
    });
    let reply = any.get("/info").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(
        reply.header("vary"),
        Some("origin, access-control-request-method, access-control-request-headers")
    );
}

#[tokio::test]
async fn one_request_too_many_is_told_to_come_back() {
    let options = Options {
        limits: Limits {
            max_concurrent_requests: 1,
            ..limits()
        },
        ..Options::default()
    };
    let mut server = scripted_with(options, |_| vec![admitted(0)]);
    let running = server.open(post("/generate_stream", &small())).await;
    let refused = server.post("/generate", &small()).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(
        refused.json(),
        json!({"error": "Model is overloaded", "error_type": "overloaded"})
    );
    drop(running);
    server.held.recv().await.unwrap().events.closed().await;
    assert_eq!(
        server
            .open(post("/generate_stream", &small()))
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn a_body_above_the_payload_limit_is_refused() {
    let options = Options {
        limits: Limits {
            payload_limit_bytes: 100,
            ..limits()
        },
        ..Options::default()
    };
    let body = json!({"inputs": "x".repeat(100)});
    let reply = greedy_with(options).post("/generate", &body).await;
    assert_eq!(reply.status, 413);
}

#[tokio::test]
async fn what_is_not_supported_yet_says_so() {
    let server = greedy();
    let chat = |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
        body.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        body
    };
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let generate = |parameters: Value| json!({"inputs": "a", "parameters": parameters});
    for (path, body) in [("/generate", generate(json!({"adapter_id": "a"})))] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 422, "{body}");
        let error = reply.json();
        assert_eq!(error["error_type"], "validation");
        assert!(
            error["error"]
                .as_str()
                .unwrap()
                .ends_with("is not supported yet"),
            "{error}"
        );
    }
    for extra in [
        json!({"tools": tool, "tool_choice": "none"}),
        json!({"response_format": {"type": "text"}}),
        json!({"tools": [], "response_format": null}),
    ] {
        let reply = server.post("/v1/chat/completions", &chat(extra)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
}

#[tokio::test]
async fn a_list_of_an_objects_fields_is_not_taken_for_the_object() {
    let server = greedy();
    for (path, body) in [
        ("/generate", json!(["text"])),
        ("/generate", json!({"inputs": "a", "parameters": [null]})),
        ("/v1/completions", json!(["text"])),
    ] {
        let reply = server.post(path, &body).await;
        assert_eq!(reply.status, 422, "{body}");
        assert!(
            reply
                .text
                .starts_with("Failed to deserialize the JSON body")
        );
    }
}

#[tokio::test]
async fn a_watermark_that_is_asked_for_reaches_the_sequence() {
    let (deltas, seen) = std::sync::mpsc::channel();
    let model = Greedy::compat();
    let server = scripted(move |spec| {
        let _ = deltas.send(spec.sampling.watermark_delta);
        model.events(spec)
    });
    for (watermark, expected) in [(json!(true), 2.0), (json!(false), 0.0), (Value::Null, 0.0)] {
        let parameters = json!({"max_new_tokens": 1, "watermark": watermark});
        let body = json!({"inputs": "a", "parameters": parameters});
        assert_eq!(server.post("/generate", &body).await.status, 200);
        assert_eq!(seen.try_recv(), Ok(expected));
    }
}
