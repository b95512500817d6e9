//! The routes of KServe's protocol.

use serde_json::json;

use super::*;

const MODEL: &str = "/v2/models/any/versions/1";

fn infer(inputs: Value, extra: Value) -> Value {
    let mut body = json!({
        "id": "42",
        "inputs": inputs,
        "parameters": {"max_new_tokens": 1},
    });
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

fn tensor(data: Value) -> Value {
    json!({"name": "prompt", "shape": [1], "datatype": "BYTES", "data": data})
}

async fn post_infer(body: &Value) -> Reply {
    greedy().post(&format!("{MODEL}/infer"), body).await
}

#[tokio::test]
async fn texts_are_answered_with_texts_and_bytes_with_bytes() {
    let inputs = json!([
        tensor(json!(["x self", "x return"])),
        tensor("x self".bytes().collect())
    ]);
    let outputs = json!({"outputs": [{"name": "texts"}, {"name": "bytes"}]});
    let reply = post_infer(&infer(inputs, outputs)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let bytes: Value = " return".bytes().collect();
    let expected = json!({"id": "42", "outputs": [
        {"name": "texts", "shape": [2], "datatype": "BYTES", "data": [" return", " None"]},
        {"name": "bytes", "shape": [1, 7], "datatype": "BYTES", "data": bytes},
    ]});
    assert_eq!(reply.json(), expected);
}

#[tokio::test]
async fn outputs_without_names_have_those_of_their_inputs_and_an_id_is_made() {
    let inputs = json!([tensor(json!(["x self"]))]);
    let reply = post_infer(&infer(inputs, json!({"id": null}))).await;
    assert_eq!(reply.json()["outputs"][0]["name"], "prompt");
    assert!(!reply.json()["id"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_wrong_with_an_inference_is_told() {
    let one = || json!([tensor(json!(["x self"]))]);
    for (body, told) in [
        (infer(json!([]), json!({})), "`inputs` must have > 0"),
        (
            infer(json!([tensor(json!(["a", "a", "a", "a", "a"]))]), json!({})),
            "<= 4 texts. Given: 5",
        ),
        (infer(one(), json!({"outputs": []})), "length mismatch"),
        (infer(json!([tensor(json!([255]))]), json!({})), "utf8"),
        (infer(json!([tensor(json!([256]))]), json!({})), "data"),
        (
            infer(json!([tensor(json!([""]))]), json!({})),
            "cannot be empty",
        ),
        (
            infer(one(), json!({"parameters": {"temperature": -1}})),
            "`temperature` must be strictly positive",
        ),
    ] {
        let reply = post_infer(&body).await;
        assert_eq!(reply.status, 422, "{body}");
        assert!(reply.text.contains(told), "{}", reply.text);
    }
}

#[tokio::test]
async fn health_is_told_without_a_key_and_readiness_is_true() {
    let server = greedy_with(Options {
        api_keys: vec![("one", "Sekret-Key")],
        ..Options::default()
    });
    let live = json!({"live": true});
    let ready = json!({"live": true, "ready": true});
    assert_eq!(server.get("/v2/health/live").await.json(), live);
    assert_eq!(server.get("/v2/health/ready").await.json(), ready);
    assert_eq!(server.get("/v2").await.status, 401);
    assert_eq!(server.get(MODEL).await.status, 401);
    server.phase.send_replace(Phase::Loading("reading".into()));
    assert_eq!(server.get("/v2/health/live").await.json(), live);
    assert_eq!(server.get("/v2/health/ready").await.status, 503);
}

#[tokio::test]
async fn metadata_names_the_model_as_it_was_asked_for() {
    let server = greedy();
    let model = server.get("/v2/models/a%20b/versions/7").await.json();
    let expected = json!({"name": "a b", "version": "7", "extensions": ["infer", "ready"]});
    assert_eq!(model, expected);
    assert_eq!(server.get("/v2").await.json()["name"], "text-gen");
    assert_eq!(server.get("/v2/models/%ff/versions/7").await.status, 400);
    let ready = server.get(&format!("{MODEL}/ready")).await;
    assert_eq!(ready.json()["ready"], true);
    server.phase.send_replace(Phase::Stopping);
    assert_eq!(server.get(&format!("{MODEL}/ready")).await.status, 503);
}
