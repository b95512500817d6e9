//! Bodies that no honest client sends: each is refused with a 4xx that names the field, on every route, and none is a 5xx.

use serde_json::json;

use super::*;

/// Each route that reads JSON, with a body that it accepts.
fn routes() -> Vec<(&'static str, Value)> {
    let generate = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}});
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
    let completion = json!({"prompt": "a", "max_tokens": 1});
    vec![
        ("/", generate.clone()),
        ("/generate", generate.clone()),
        ("/generate_stream", generate.clone()),
        ("/v1/chat/completions", chat.clone()),
        ("/v1/completions", completion.clone()),
        ("/invocations", generate.clone()),
        ("/invocations", chat.clone()),
        ("/invocations", completion),
        ("/vertex", json!({"instances": [generate]})),
        ("/tokenize", json!({"inputs": "a"})),
        ("/chat_tokenize", chat),
        ("/detokenize", json!({"tokens": [1]})),
    ]
}

fn raw(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

/// Refused by status, or in the one event of a stream.
fn is_refused(reply: &Reply) -> bool {
    let in_stream = reply.status == 200 && reply.text.starts_with("data: {\"error\"");
    reply.status.is_client_error() || in_stream
}

#[tokio::test]
async fn what_is_no_json_is_refused_everywhere() {
    let server = greedy();
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (path, body) in routes() {
        assert_eq!(server.post(path, &body).await.status, 200, "{path} {body}");
        let object = body.to_string();
        let open = object.strip_suffix('}').unwrap();
        let bodies: Vec<Vec<u8>> = vec![
            b"".to_vec(),
            b"{".to_vec(),
            b"null".to_vec(),
            b"\"text\"".to_vec(),
            format!("{object} x").into_bytes(),
            format!("{open},\"x\":NaN}}").into_bytes(),
            format!("{open},\"x\":1e400,}}").into_bytes(),
            format!("{open},\"x\":\"\\ud800\",\"y\"}}").into_bytes(),
            [open.as_bytes(), b",\"x\":\"\xff\"}"].concat(),
            object.replace("\"a\"", "\"\\ud800\"").into_bytes(),
            object.replace("\"a\"", "\"\\udc00\\ud800\"").into_bytes(),
            object.replace("\"a\"", &nested).into_bytes(),
            nested.clone().into_bytes(),
        ];
        for bytes in bodies {
            // What a body does not hold cannot be replaced in it.
            if bytes == object.as_bytes() {
                continue;
            }
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            let reply = server.send(raw(path, bytes)).await;
            assert!(
                reply.status.is_client_error(),
                "{path} {shown}: {}",
                reply.status
            );
            assert!(!reply.text.is_empty(), "{path} {shown}");
        }
    }
}

#[tokio::test]
async fn a_key_that_is_given_twice_is_refused_by_name() {
    let server = greedy();
    for (path, key, body) in [
        ("/generate", "inputs", r#"{"inputs":"a","inputs":"b"}"#),
        (
            "/generate",
            "top_k",
            r#"{"inputs":"a","parameters":{"top_k":1,"top_k":2}}"#,
        ),
        ("/invocations", "inputs", r#"{"inputs":"a","inputs":"b"}"#),
        (
            "/v1/chat/completions",
            "n",
            r#"{"messages":[],"n":1,"n":2}"#,
        ),
        (
            "/v1/chat/completions",
            "role",
            r#"{"messages":[{"role":"a","role":"b","content":"c"}]}"#,
        ),
        (
            "/v1/completions",
            "prompt",
            r#"{"prompt":"a","prompt":"b"}"#,
        ),
        (
            "/v1/completions",
            "logit_bias",
            r#"{"prompt":"a","logit_bias":{"1":1,"1":2}}"#,
        ),
        ("/vertex", "instances", r#"{"instances":[],"instances":[]}"#),
    ] {
        let reply = server.send(raw(path, body)).await;
        assert_eq!(reply.status, 422, "{body}: {}", reply.text);
        assert!(reply.text.contains(key), "{body}: {}", reply.text);
    }
}

/// Numbers as a client may type them.
const NUMBERS: [&str; 14] = [
    "-1",
    "1.5",
    "1e39",
    "-1e39",
    "1e300",
    "9223372036854775808",
    "18446744073709551616",
    "-9223372036854775809",
    "4294967296",
    "2147483648",
    "1e1000",
    "\"1\"",
    "[]",
    "{}",
];

#[tokio::test]
async fn no_number_in_any_field_is_a_server_error_and_refusals_name_the_field() {
    let server = greedy();
    let native = [
        "best_of",
        "temperature",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "top_k",
        "top_p",
        "typical_p",
        "min_p",
        "do_sample",
        "max_new_tokens",
        "min_tokens",
        "stop",
        "stop_token_ids",
        "truncate",
        "watermark",
        "details",
        "decoder_input_details",
        "seed",
        "top_n_tokens",
        "return_full_text",
        "ignore_eos",
    ];
    let openai = [
        "max_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "n",
        "stop",
        "stop_token_ids",
        "frequency_penalty",
        "presence_penalty",
        "repetition_penalty",
        "logit_bias",
        "seed",
        "stream",
        "logprobs",
        "model",
        "ignore_eos",
    ];
    let chat = [
        "max_completion_tokens",
        "top_logprobs",
        "stream_options",
        "response_format",
        "tools",
        "chat_template_kwargs",
    ];
    let completion = ["best_of", "echo", "suffix"];
    let bodies = native.iter().map(|field| {
        (
            "/generate",
            *field,
            format!(r#"{{"inputs":"a","parameters":{{"{field}":NUMBER}}}}"#),
        )
    });
    let bodies = bodies.chain(openai.iter().chain(&chat).map(|field| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"a"}}],"{field}":NUMBER}}"#);
        ("/v1/chat/completions", *field, body)
    }));
    let bodies = bodies.chain(openai.iter().chain(&completion).map(|field| {
        (
            "/v1/completions",
            *field,
            format!(r#"{{"prompt":"a","{field}":NUMBER}}"#),
        )
    }));
    let mut wrong = Vec::new();
    for (path, field, body) in bodies.collect::<Vec<_>>() {
        for number in NUMBERS {
            let body = body.replace("NUMBER", number);
            let reply = server.send(raw(path, body.clone())).await;
            let name = field.strip_prefix("max_completion_").unwrap_or(field);
            let names = [
                name,
                "best_of",
                "max_new_tokens",
                "number out of range",
                "top_n_tokens",
                "uffix",
            ];
            let is_named = names.iter().any(|name| reply.text.contains(name));
            let is_right = if is_refused(&reply) {
                is_named
            } else {
                reply.status == 200
            };
            if !is_right {
                wrong.push(format!("{path} {body}: {} {}", reply.status, reply.text));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_is_too_long_or_too_many_is_refused_by_name() {
    let server = greedy();
    let generate = |parameters: Value| json!({"inputs": "a", "parameters": parameters});
    let bias: serde_json::Map<_, _> = (0..2000).map(|id| (id.to_string(), json!(1))).collect();
    let chat = |field: &str, value: Value| json!({"messages": [{"role": "user", "content": "a"}], field: value});
    for (path, body, name) in [
        (
            "/generate",
            generate(json!({"stop": ["x".repeat(5000)]})),
            "stop",
        ),
        ("/generate", generate(json!({"stop": vec!["x"; 5]})), "stop"),
        (
            "/generate",
            generate(json!({"stop_token_ids": vec![1; 1000]})),
            "stop_token_ids",
        ),
        (
            "/generate",
            generate(json!({"stop_token_ids": [2048]})),
            "stop_token_ids",
        ),
        (
            "/generate",
            generate(json!({"top_n_tokens": 6})),
            "top_n_tokens",
        ),
        (
            "/generate",
            json!({"inputs": "x".repeat(500_000)}),
            "inputs",
        ),
        (
            "/v1/chat/completions",
            chat("logit_bias", json!(bias)),
            "logit_bias",
        ),
        (
            "/v1/chat/completions",
            chat("logit_bias", json!({"2048": 1})),
            "logit_bias",
        ),
        (
            "/v1/chat/completions",
            chat("logit_bias", json!({"x": 1})),
            "logit_bias",
        ),
        ("/v1/chat/completions", chat("n", json!(3)), "n"),
        ("/v1/chat/completions", json!({"messages": []}), "messages"),
        (
            "/v1/completions",
            json!({"prompt": vec!["a"; 5]}),
            "batch size",
        ),
        ("/v1/completions", json!({"prompt": [2048]}), "prompt"),
        ("/v1/completions", json!({"prompt": [[1], [-1]]}), "prompt"),
        ("/detokenize", json!({"tokens": [2048]}), "tokens"),
        (
            "/vertex",
            json!({"instances": vec![json!({"inputs": "a"}); 5]}),
            "instances",
        ),
    ] {
        let reply = server.post(path, &body).await;
        let shown: String = body.to_string().chars().take(100).collect();
        assert_eq!(reply.status, 422, "{path} {shown}: {}", reply.text);
        assert!(reply.text.contains(name), "{path} {shown}: {}", reply.text);
    }
}
