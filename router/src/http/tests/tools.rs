//! Chats with tools. The test model's template shows none, so that it calls in TGI's form.

use serde_json::json;

use super::*;
use crate::generation::scripted::{admitted, token};
use scheduler::FinishReason;

const CALL: &str = r#"{ "function": { "_name": "get_weather", "city": "Rome", "days": [1, 2]} }"#;

/// Answers with the text, and then with an end token or not.
fn saying(text: &'static str, ended: bool) -> Server {
    scripted(move |_| {
        let ids = compat().encode(text, false).unwrap();
        let last = ids.len() - 1;
        let mut events = vec![admitted(0)];
        for (at, id) in ids.into_iter().enumerate() {
            let cut = (at == last && !ended).then_some(FinishReason::Length);
            events.push(token(id, cut));
        }
        if ended {
            events.push(token(2, Some(FinishReason::EndToken)));
        }
        events
    })
}

fn body(extra: &Value) -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array"}}});
    let mut body = json!({
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 60,
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}],
    });
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

async fn chat(server: &Server, extra: Value) -> Reply {
    server.post("/v1/chat/completions", &body(&extra)).await
}

fn chunks(reply: &Reply) -> Vec<Value> {
    let events = reply.events();
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    chunks
        .iter()
        .map(|chunk| serde_json::from_str(chunk).unwrap())
        .collect()
}

#[tokio::test]
async fn a_call_is_answered_with_its_arguments_as_compact_text() {
    let reply = chat(&saying(CALL, true), json!({})).await;
    let choice = &reply.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0];
    let expected = json!({"name": "get_weather", "arguments": r#"{"city":"Rome","days":[1,2]}"#});
    assert_eq!(call["function"], expected);
    assert_eq!(call["type"], "function");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert!(choice["message"].get("content").is_none());
}

#[tokio::test]
async fn a_streamed_call_begins_once_and_its_deltas_are_the_same_arguments() {
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = chunks(&chat(&saying(CALL, true), options).await);
    let (usage, chunks) = chunks.split_last().unwrap();
    assert!(usage["usage"]["completion_tokens"].as_u64().unwrap() > 10);
    let mut arguments = String::new();
    let mut ids = Vec::new();
    for chunk in chunks {
        let delta = &chunk["choices"][0]["delta"];
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            assert_eq!(call["index"], 0);
            ids.extend(call.get("id").cloned());
            arguments.push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    assert_eq!(arguments, r#"{"city":"Rome","days":[1,2]}"#);
    assert_eq!(ids.len(), 1);
    let first = &chunks[0]["choices"][0]["delta"]["tool_calls"][0];
    assert_eq!(first["function"]["name"], "get_weather");
    let reasons: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["finish_reason"])
        .collect();
    assert_eq!(**reasons.last().unwrap(), "tool_calls");
    assert!(
        reasons[..reasons.len() - 1]
            .iter()
            .all(|reason| reason.is_null())
    );
}

#[tokio::test]
async fn a_call_that_is_cut_off_has_what_is_there_so_far() {
    let cut = r#"{"function": {"_name": "get_weather", "city": "Ro"#;
    let choice = &chat(&saying(cut, false), json!({})).await.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let arguments = &choice["message"]["tool_calls"][0]["function"]["arguments"];
    assert_eq!(arguments, r#"{"city":"Ro"#);
}

#[tokio::test]
async fn an_answer_in_place_of_a_call_is_content() {
    let answer = r#"{"function": {"_name": "no_tool", "content": "Hi, \"you\""}}"#;
    let choice = &chat(&saying(answer, true), json!({})).await.json()["choices"][0];
    assert_eq!(choice["message"]["content"], "Hi, \"you\"");
    assert_eq!(choice["finish_reason"], "stop");
}

#[tokio::test]
async fn every_sequence_has_calls_of_its_own() {
    let reply = chat(&saying(CALL, true), json!({"n": 2, "temperature": 1.0})).await;
    let answer = reply.json();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 2);
    let id = |idx: usize| &choices[idx]["message"]["tool_calls"][0]["id"];
    assert_ne!(id(0), id(1));
}

#[tokio::test]
async fn log_probabilities_are_of_every_token_of_a_call() {
    for stream in [false, true] {
        let reply = chat(
            &saying(CALL, true),
            json!({"logprobs": true, "stream": stream}),
        )
        .await;
        let count = if stream {
            chunks(&reply).len()
        } else {
            let answer = reply.json();
            answer["choices"][0]["logprobs"]["content"]
                .as_array()
                .unwrap()
                .len()
        };
        let tokens = compat().encode(CALL, false).unwrap().len();
        assert_eq!(count, tokens + 1);
    }
}

#[tokio::test]
async fn a_schema_that_cannot_be_held_to_is_refused_with_its_tools_name() {
    let server = saying(CALL, true);
    let pattern =
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}});
    let tools = json!([{"type": "function", "function": {"name": "odd", "parameters": pattern}}]);
    let reply = chat(&server, json!({"tools": tools})).await;
    assert_eq!(reply.status, 422);
    let error = reply.json();
    assert_eq!(error["error_type"], "validation");
    let text = error["error"].as_str().unwrap();
    assert!(text.contains("tool `odd`: "), "{text}");
}

#[tokio::test]
async fn tools_are_grammars_and_can_be_switched_off_with_them() {
    let options = Options {
        limits: Limits {
            grammar_support: false,
            ..limits()
        },
        ..Options::default()
    };
    let reply = chat(&greedy_with(options), json!({})).await;
    let expected = json!({"error": "Input validation error: grammar is not supported", "error_type": "validation"});
    assert_eq!((reply.status.as_u16(), reply.json()), (422, expected));
}
