//! What is counted of requests.

use serde_json::json;

use super::super::metrics;
use super::*;
use crate::engine::EngineError;
use crate::generation::scripted::admitted;
use crate::telemetry::{Buckets, build_recorder};

/// The value of a series, e.g. `tgi_request_failure{err="validation"}`.
fn value(scrape: &str, series: &str) -> f64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(series));
    line.map_or(0.0, |rest| rest.trim().parse().unwrap())
}

/// A recorder for this thread alone; the runtime of these tests has one thread.
fn recorder() -> metrics_exporter_prometheus::PrometheusRecorder {
    let buckets = Buckets {
        max_input_tokens: limits().max_input_tokens,
        max_total_tokens: limits().max_total_tokens,
    };
    build_recorder(buckets).unwrap()
}

#[tokio::test]
async fn every_request_is_counted_once_with_its_outcome() {
    let recorder = recorder();
    let _here = ::metrics::set_default_local_recorder(&recorder);
    metrics::describe();
    let server = greedy();
    let body = json!({"inputs": "x self", "parameters": {"max_new_tokens": 3}});
    server.post("/generate", &body).await;
    server.post("/generate_stream", &body).await;
    server.post("/generate", &json!({"inputs": ""})).await;
    server
        .post(
            "/generate",
            &json!({"inputs": "a", "parameters": {"adapter_id": "b"}}),
        )
        .await;
    let mut open = scripted(|_| vec![admitted(0)]);
    let running = open.open(post("/generate_stream", &body)).await;
    open.held.recv().await.unwrap();
    drop(running);

    let failing = scripted(|_| vec![TokenEvent::Failed(EngineError::Numerical)]);
    failing.post("/generate", &body).await;

    let scrape = recorder.handle().render();
    assert_eq!(value(&scrape, "tgi_request_count"), 6.0, "{scrape}");
    assert_eq!(
        value(&scrape, "tgi_request_failure{err=\"numerical\"}"),
        1.0
    );
    assert_eq!(value(&scrape, "tgi_request_success"), 2.0);
    assert_eq!(
        value(&scrape, "tgi_request_failure{err=\"validation\"}"),
        2.0
    );
    assert_eq!(value(&scrape, "text_gen_request_cancelled"), 1.0);
    assert_eq!(value(&scrape, "tgi_request_generated_tokens_sum"), 6.0);
    assert_eq!(value(&scrape, "tgi_request_duration_count"), 2.0);
    assert_eq!(
        value(&scrape, "text_gen_time_to_first_token_seconds_count"),
        2.0
    );
    assert_eq!(
        value(&scrape, "text_gen_inter_token_latency_seconds_count"),
        4.0
    );
}

#[tokio::test]
async fn buckets_are_tgis() {
    let recorder = recorder();
    let _here = ::metrics::set_default_local_recorder(&recorder);
    let body = json!({"inputs": "x self", "parameters": {"max_new_tokens": 3}});
    greedy().post("/generate", &body).await;
    let scrape = recorder.handle().render();
    for bucket in [
        "tgi_request_duration_bucket{le=\"0.00015000000000000001\"}",
        "tgi_request_duration_bucket{le=\"145.61096060497135\"}",
        "tgi_request_queue_duration_bucket{le=\"0.00022500000000000002\"}",
        "tgi_request_max_new_tokens_bucket{le=\"84.47999999999999\"}",
        "tgi_request_input_length_bucket{le=\"5.12\"}",
    ] {
        assert!(scrape.contains(bucket), "{bucket}\n{scrape}");
    }
}

#[tokio::test]
async fn use_is_counted_by_the_name_of_the_key_and_never_by_the_key() {
    let recorder = recorder();
    let _here = ::metrics::set_default_local_recorder(&recorder);
    let server = greedy_with(Options {
        api_keys: vec![("one", "Sekret-Key"), ("two", "other-key")],
        ..Options::default()
    });
    let ask = async |path: &str, body: Value, key: &'static str| {
        let mut request = post(path, &body);
        let key = axum::http::HeaderValue::from_static(key);
        request.headers_mut().insert("authorization", key);
        server.send(request).await
    };
    let body = json!({"inputs": "x self", "parameters": {"max_new_tokens": 3}});
    ask("/generate", body.clone(), "Bearer Sekret-Key").await;
    ask("/generate_stream", body, "Bearer Sekret-Key").await;
    let prompts = json!({"prompt": ["x self", "x self"], "max_tokens": 1});
    ask("/v1/completions", prompts, "Bearer other-key").await;
    ask("/generate", json!({"inputs": ""}), "Bearer other-key").await;
    let scrape = recorder.handle().render();
    for (series, expected) in [
        ("text_gen_tenant_requests_total{tenant=\"one\"}", 2.0),
        ("text_gen_tenant_prompt_tokens_total{tenant=\"one\"}", 4.0),
        (
            "text_gen_tenant_generated_tokens_total{tenant=\"one\"}",
            6.0,
        ),
        ("text_gen_tenant_requests_total{tenant=\"two\"}", 3.0),
        ("text_gen_tenant_prompt_tokens_total{tenant=\"two\"}", 4.0),
        (
            "text_gen_tenant_generated_tokens_total{tenant=\"two\"}",
            2.0,
        ),
    ] {
        assert_eq!(value(&scrape, series), expected, "{series} in {scrape}");
    }
    assert!(!scrape.contains("Sekret-Key") && !scrape.contains("other-key"));
}
