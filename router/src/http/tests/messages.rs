//! `/v1/messages`: messages, their events, and Anthropic's errors.

use scheduler::FinishReason;
use serde_json::json;

use super::*;
use crate::engine::EngineError;
use crate::generation::scripted::{admitted, token};

const PATH: &str = "/v1/messages";

fn hello(extra: Value) -> Value {
    let mut body = json!({
        "model": "m", "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 8, "temperature": 0,
    });
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

async fn message(server: &Server, extra: Value) -> Value {
    let reply = server.post(PATH, &hello(extra)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

/// A stream's events; each has its type on the `event:` line.
fn typed_events(reply: &Reply) -> Vec<Value> {
    let blocks = reply.text.strip_suffix("\n\n").unwrap().split("\n\n");
    let event = |block: &str| {
        let (name, data) = block.split_once('\n').unwrap();
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(event["type"], name.strip_prefix("event: ").unwrap());
        event
    };
    blocks.map(event).collect()
}

/// One word and the end of text.
fn word() -> Server {
    scripted(|_| {
        let end = token(2, Some(FinishReason::EndToken));
        vec![admitted(8), token(323, None), end]
    })
}

#[tokio::test]
async fn a_message_is_blocks_with_usage_and_a_reason() {
    let answer = message(&word(), json!({})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        (&answer["type"], &answer["role"]),
        (&json!("message"), &json!("assistant"))
    );
    assert_eq!(
        answer["content"],
        json!([{"type": "text", "text": " return"}])
    );
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(answer["stop_sequence"], json!(null));
    let usage = &answer["usage"];
    assert_eq!(usage["cache_read_input_tokens"], 8);
    assert_eq!(usage["output_tokens"], 2);
    let counted = word()
        .post("/v1/messages/count_tokens", &hello(json!({})))
        .await
        .json();
    let prompt = usage["input_tokens"].as_u64().unwrap() + 8;
    assert_eq!(counted["input_tokens"], prompt);
}

#[tokio::test]
async fn the_stop_sequence_that_matched_is_named() {
    let asked = json!({"stop_sequences": ["zz", "rea"]});
    let answer = message(&greedy(), asked).await;
    assert_eq!(answer["content"][0]["text"], "-- It('u");
    assert_eq!(answer["stop_reason"], "stop_sequence");
    assert_eq!(answer["stop_sequence"], "rea");
    let cut_off = message(&greedy(), json!({})).await;
    assert_eq!(cut_off["stop_reason"], "max_tokens");
}

#[tokio::test]
async fn the_events_of_a_stream_add_up_to_the_whole_message() {
    for server in [greedy(), word()] {
        let whole = message(&server, json!({})).await;
        let reply = server.post(PATH, &hello(json!({"stream": true}))).await;
        let events = typed_events(&reply);
        let mut types: Vec<&str> = events
            .iter()
            .map(|event| event["type"].as_str().unwrap())
            .collect();
        types.dedup();
        let expected = [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(types, expected);
        let started = &events[0]["message"];
        assert_eq!(started["content"], json!([]));
        assert_eq!(started["stop_reason"], json!(null));
        let text: String = events
            .iter()
            .filter_map(|event| event["delta"]["text"].as_str())
            .collect();
        assert_eq!(whole["content"][0]["text"], text);
        let end = &events[events.len() - 2];
        assert_eq!(end["delta"]["stop_reason"], whole["stop_reason"]);
        assert_eq!(end["usage"], whole["usage"]);
    }
}

#[tokio::test]
async fn an_error_is_the_last_event_of_a_stream() {
    let server = scripted(|_| {
        let failed = TokenEvent::Failed(EngineError::Numerical);
        vec![admitted(0), token(323, None), failed]
    });
    let reply = server.post(PATH, &hello(json!({"stream": true}))).await;
    let events = typed_events(&reply);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "error");
    assert_eq!(last["error"]["type"], "api_error");
    let whole = server.post(PATH, &hello(json!({}))).await;
    assert_eq!(whole.status, 424);
    assert_eq!(whole.json()["error"]["type"], "api_error");
}

#[tokio::test]
async fn errors_have_anthropics_shape_whoever_found_them() {
    let options = Options {
        api_keys: vec![("one", "secret")],
        ..Options::default()
    };
    let locked = greedy_with(options).post(PATH, &hello(json!({}))).await;
    let server = greedy();
    let get = server.get(PATH).await;
    let invalid = server.post(PATH, &hello(json!({"temperature": -1}))).await;
    let typed = server.post(PATH, &hello(json!({"max_tokens": "x"}))).await;
    let streamed = json!({"temperature": -1, "stream": true});
    let streamed = server.post(PATH, &hello(streamed)).await;
    for (reply, status, kind) in [
        (locked, 401, "authentication_error"),
        (get, 405, "invalid_request_error"),
        (invalid, 400, "invalid_request_error"),
        (typed, 400, "invalid_request_error"),
        (streamed, 400, "invalid_request_error"),
    ] {
        assert_eq!(reply.status, status);
        let body = reply.json();
        assert_eq!(body["type"], "error");
        assert_eq!(body["error"]["type"], kind);
        assert_ne!(body["error"]["message"], "");
    }
}

/// The prompt of a body.
async fn prompt(body: Value) -> String {
    let mut server = scripted(|_| vec![admitted(0)]);
    let mut body = body;
    body["stream"] = json!(true);
    let reply = server.open(post(PATH, &body)).await;
    assert_eq!(reply.status(), 200);
    let held = server.held.recv().await.unwrap();
    compat().decode(&held.spec.prompt, false)
}

fn turn(role: &str, text: &str) -> String {
    format!("<|im_start|>{role}\n{text}<|im_end|>\n")
}

#[tokio::test]
async fn blocks_of_every_kind_reach_the_template() {
    let text =
        |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let body = hello(json!({
        "system": [text("be"), text("brief")],
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [text("b")]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                text("c"),
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("d")]},
                text("e"),
            ]},
        ],
    }));
    let expected = [
        turn("system", "be\nbrief"),
        turn("user", "a\nb"),
        turn("assistant", "c"),
        turn("tool", "d"),
        turn("user", "e"),
        "<|im_start|>assistant\n".to_owned(),
    ];
    assert_eq!(prompt(body).await, expected.concat());
}

#[tokio::test]
async fn a_final_message_of_the_assistant_is_continued() {
    let messages = |last: Value| {
        hello(json!({"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": last},
        ]}))
    };
    let open = "<|im_start|>assistant\n";
    let continued = format!("{}{open}The answer is (", turn("user", "a"));
    assert_eq!(prompt(messages(json!("The answer is ("))).await, continued);
    let empty = format!("{}{open}", turn("user", "a"));
    assert_eq!(prompt(messages(json!([]))).await, empty);
}

#[tokio::test]
async fn parameters_reach_the_engine() {
    let mut server = scripted(|_| vec![admitted(0)]);
    let body = hello(json!({"temperature": 0.5, "top_p": 0.9, "top_k": 7, "stream": true}));
    let _running = server.open(post(PATH, &body)).await;
    let spec = server.held.recv().await.unwrap().spec;
    assert_eq!(spec.max_new_tokens, 8);
    let sampling = &spec.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.top_k),
        (0.5, 0.9, 7)
    );
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_its_name() {
    let server = greedy();
    let image = json!({"type": "image", "source": {"type": "url", "url": "x"}});
    let result = json!({"type": "tool_result", "tool_use_id": "t"});
    let tool = json!({"name": "f", "input_schema": {"type": "object"}});
    for (extra, named) in [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (
            json!({"messages": [{"role": "user", "content": [image]}]}),
            "image",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": [result]}]}),
            "tool_result",
        ),
        (json!({"container": "c"}), "container"),
        (json!({"mcp_servers": [{}]}), "mcp_servers"),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "w"}]}),
            "tools[0]",
        ),
        (json!({"tools": [{"name": "w"}]}), "input_schema"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (
            json!({"tools": [tool], "tool_choice": {"type": "tool", "name": "g"}}),
            "tool_choice.name",
        ),
        (
            json!({"thinking": {"type": "enabled"}}),
            "thinking.budget_tokens",
        ),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 8}}),
            "thinking.budget_tokens",
        ),
        (json!({"output_config": {"format": {"type": "xml"}}}), "xml"),
    ] {
        let reply = server.post(PATH, &hello(extra.clone())).await;
        assert_eq!(reply.status, 400, "{extra}: {}", reply.text);
        let message = reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(message.contains(named), "{extra}: {message}");
    }
}

#[tokio::test]
async fn a_format_is_compiled_in_both_of_its_places() {
    let format = |kind: &str| json!({"type": "json_schema", "schema": {"type": kind}});
    let server = word();
    for (kind, status) in [("object", 200), ("nothing", 400)] {
        for extra in [
            json!({"output_config": {"format": format(kind)}}),
            json!({"output_format": format(kind)}),
        ] {
            let reply = server.post(PATH, &hello(extra)).await;
            assert_eq!(reply.status, status, "{}", reply.text);
        }
    }
}
