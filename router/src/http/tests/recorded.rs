//! Replays requests that TGI answered (`recorded.jsonl`), of which those that a scripted engine can answer, and compares everything
//! that is not bound to a moment or to a machine. `integration-tests/recorded` replays all of them with a real server.

use super::*;

#[derive(serde::Deserialize)]
struct Case {
    id: String,
    /// The scripted engine says the same tokens.
    #[serde(default)]
    scripted: bool,
    request: RecordedRequest,
    response: Value,
}

const COMPARED_HEADERS: [&str; 7] = [
    "allow",
    "cache-control",
    "content-type",
    "x-accel-buffering",
    "x-compute-characters",
    "x-generated-tokens",
    "x-prompt-tokens",
];

#[derive(serde::Deserialize)]
struct RecordedRequest {
    method: String,
    path: String,
    headers: std::collections::BTreeMap<String, String>,
    body: Option<Value>,
    raw_body: Option<String>,
}

#[derive(serde::Deserialize)]
struct RecordedResponse {
    status: u16,
    headers: std::collections::BTreeMap<String, String>,
    body: Option<Value>,
    raw_sse: Option<String>,
    text: Option<String>,
}

fn request(recorded: RecordedRequest) -> Request<Body> {
    let mut request = Request::builder()
        .method(recorded.method.as_str())
        .uri(recorded.path);
    for (name, value) in recorded.headers {
        request = request.header(name, value);
    }
    let body = recorded
        .raw_body
        .or(recorded.body.map(|body| body.to_string()));
    request
        .body(body.map_or(Body::empty(), Body::from))
        .unwrap()
}

/// Whether the document describes what TGI answered.
fn described(case: &Case, recorded: &RecordedResponse) -> Result<(), String> {
    let body = recorded.body.as_ref().map(Value::to_string);
    let texts = [&body, &recorded.raw_sse, &recorded.text];
    conformance::check(&Exchange {
        method: &case.request.method,
        path: &case.request.path,
        sent: case.request.body.clone(),
        status: recorded.status,
        content_type: recorded.headers.get("content-type").map(String::as_str),
        text: texts
            .into_iter()
            .flatten()
            .next()
            .map_or("", String::as_str),
    })
}

/// Without ids, times, versions, and log-probabilities, which the scripted engine does not compute.
fn lasting(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            let is_answer = fields.contains_key("object");
            for name in ["created", "system_fingerprint", "logprob"] {
                fields.remove(name);
            }
            if is_answer {
                fields.remove("id");
            }
            for field in fields.values_mut() {
                *field = lasting(field.take());
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = lasting(item.take());
            }
        }
        _ => {}
    }
    value
}

fn events(stream: &str) -> Vec<Value> {
    let blocks = stream.split("\n\n").filter(|block| !block.is_empty());
    blocks
        .map(|block| match block.strip_prefix("data: ").unwrap() {
            "[DONE]" => Value::from("[DONE]"),
            data => lasting(serde_json::from_str(data).unwrap()),
        })
        .collect()
}

fn compare(expected: RecordedResponse, got: &Reply) -> Result<(), String> {
    let differs = |what: &str, expected: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
        Err(format!("{what}: expected {expected:?}, got {got:?}"))
    };
    if got.status != expected.status {
        return differs("status", &expected.status, &(got.status, &got.text));
    }
    let compared = |(name, _): &(&String, &String)| COMPARED_HEADERS.contains(&name.as_str());
    for (name, value) in expected.headers.iter().filter(compared) {
        if got.header(name) != Some(value) {
            return differs(name, value, &got.header(name));
        }
    }
    if let Some(body) = expected.body {
        let (expected, got) = (lasting(body), lasting(got.json()));
        if expected != got {
            return differs("body", &expected, &got);
        }
    }
    if let Some(stream) = expected.raw_sse {
        let (expected, got) = (events(&stream), events(&got.text));
        if expected != got {
            return differs("events", &expected, &got);
        }
    }
    if let Some(text) = expected.text {
        // The framework's explanations go on after the colon, in words of their own.
        let head = |text: &str| text.split(':').next().map(str::to_owned);
        if head(&text) != head(&got.text) {
            return differs("text", &text, &got.text);
        }
    }
    Ok(())
}

#[tokio::test]
async fn requests_that_tgi_answered_are_answered_alike() {
    let server = greedy();
    let recorded = include_str!("../../../tests/data/recorded.jsonl");
    let mut different = Vec::new();
    let mut count = 0;
    for line in recorded.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        if !case.scripted {
            continue;
        }
        let response: RecordedResponse = serde_json::from_value(case.response.clone()).unwrap();
        if let Err(reason) = described(&case, &response) {
            different.push(format!("{}: the document: {reason}", case.id));
        }
        let got = server.send(request(case.request)).await;
        count += 1;
        if let Err(difference) = compare(response, &got) {
            different.push(format!("{}: {difference}", case.id));
        }
    }
    assert!(count > 100);
    assert!(different.is_empty(), "{}", different.join("\n"));
}
