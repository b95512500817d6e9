//! `/v1/responses`: the object, its events, and what is kept of both.

use scheduler::FinishReason;
use serde_json::json;

use super::*;
use crate::engine::EngineError;
use crate::generation::scripted::{admitted, token};

const PATH: &str = "/v1/responses";

fn hello(extra: Value) -> Value {
    let mut body = json!({"input": "Hello there", "max_output_tokens": 8, "temperature": 0});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body
}

async fn respond(server: &Server, extra: Value) -> Value {
    let reply = server.post(PATH, &hello(extra)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.json()
}

/// A stream's events; each has its type on the `event:` line and a number that counts up.
fn typed_events(reply: &Reply) -> Vec<Value> {
    let blocks = reply.text.strip_suffix("\n\n").unwrap().split("\n\n");
    let mut events = Vec::new();
    for (number, block) in blocks.enumerate() {
        let (name, data) = block.split_once('\n').unwrap();
        let event: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(event["type"], name.strip_prefix("event: ").unwrap());
        assert_eq!(event["sequence_number"], number);
        events.push(event);
    }
    events
}

/// Without what differs between two answers.
fn lasting(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for name in ["id", "item_id", "call_id", "created_at", "completed_at"] {
                fields.remove(name);
            }
            fields
                .values_mut()
                .for_each(|value| *value = lasting(value.take()));
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| *item = lasting(item.take())),
        _ => {}
    }
    value
}

/// One word and the end of text.
fn word() -> Server {
    scripted(|_| {
        let end = token(2, Some(FinishReason::EndToken));
        vec![admitted(8), token(323, None), end]
    })
}

fn failing() -> Server {
    scripted(|_| {
        let failed = TokenEvent::Failed(EngineError::Numerical);
        vec![admitted(0), token(323, None), failed]
    })
}

#[tokio::test]
async fn a_response_that_ends_by_itself_is_completed() {
    let response = respond(&word(), json!({"metadata": {"a": "b"}, "user": "u"})).await;
    assert!(response["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!(response["object"], "response");
    assert_eq!(response["status"], "completed");
    assert_eq!(response["incomplete_details"], json!(null));
    assert!(response["completed_at"].is_u64());
    let message = &response["output"][0];
    assert_eq!(message["type"], "message");
    assert_eq!(message["role"], "assistant");
    assert_eq!(message["status"], "completed");
    let part = json!({"type": "output_text", "text": " return", "annotations": [], "logprobs": []});
    assert_eq!(message["content"], json!([part]));
    let usage = &response["usage"];
    assert_eq!(usage["output_tokens"], 2);
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], 8);
    assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], 0);
    assert_eq!(
        (&response["metadata"], &response["user"]),
        (&json!({"a": "b"}), &json!("u"))
    );
}

#[tokio::test]
async fn one_that_is_cut_off_is_incomplete() {
    let response = respond(&greedy(), json!({})).await;
    assert_eq!(response["status"], "incomplete");
    assert_eq!(
        response["incomplete_details"]["reason"],
        "max_output_tokens"
    );
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["usage"]["output_tokens"], 8);
}

#[tokio::test]
async fn the_last_event_of_a_stream_has_what_a_whole_answer_is() {
    for server in [word(), greedy()] {
        let whole = respond(&server, json!({})).await;
        let reply = server.post(PATH, &hello(json!({"stream": true}))).await;
        let events = typed_events(&reply);
        let last = events.last().unwrap();
        let status = whole["status"].as_str().unwrap();
        assert_eq!(last["type"], format!("response.{status}"));
        assert_eq!(lasting(last["response"].clone()), lasting(whole));
    }
}

#[tokio::test]
async fn the_events_of_a_text_are_in_order_and_its_deltas_are_the_text() {
    let reply = greedy().post(PATH, &hello(json!({"stream": true}))).await;
    let events = typed_events(&reply);
    let mut types: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    types.dedup();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ];
    assert_eq!(types, expected);
    let deltas: String = events
        .iter()
        .filter_map(|event| event["delta"].as_str())
        .collect();
    let done = events
        .iter()
        .find(|event| event["type"] == "response.output_text.done");
    assert_eq!(done.unwrap()["text"], deltas);
    let item_id = &events[2]["item"]["id"];
    assert!(
        events[3..8]
            .iter()
            .all(|event| event["item_id"] == *item_id || event["item"]["id"] == *item_id)
    );
}

#[tokio::test]
async fn log_probabilities_come_with_the_text_where_they_are_included() {
    let asked = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let server = greedy();
    let response = respond(&server, asked.clone()).await;
    let part = &response["output"][0]["content"][0];
    let logprobs = part["logprobs"].as_array().unwrap();
    let text: String = logprobs
        .iter()
        .map(|entry| entry["token"].as_str().unwrap())
        .collect();
    assert_eq!(part["text"], text);
    assert_eq!(logprobs[0]["bytes"], json!("--".as_bytes()));
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
    let mut streamed = hello(asked);
    streamed["stream"] = json!(true);
    let reply = server.post(PATH, &streamed).await;
    let of_deltas: Vec<Value> = typed_events(&reply)
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .flat_map(|event| event["logprobs"].as_array().unwrap().clone())
        .collect();
    assert_eq!(&of_deltas, logprobs);
}

#[tokio::test]
async fn a_failure_is_a_status_or_the_last_event_and_is_stored() {
    let server = failing();
    let reply = server.post(PATH, &hello(json!({}))).await;
    assert_eq!(reply.status, 424);
    assert_eq!(reply.json()["error"]["code"], "numerical");
    let reply = server.post(PATH, &hello(json!({"stream": true}))).await;
    let events = typed_events(&reply);
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["error"]["code"], "server_error");
    let id = last["response"]["id"].as_str().unwrap();
    let stored = server.get(&format!("{PATH}/{id}")).await.json();
    assert_eq!(stored, last["response"]);
}

#[tokio::test]
async fn a_stored_response_can_be_fetched_and_deleted() {
    let server = word();
    let response = respond(&server, json!({})).await;
    let path = format!("{PATH}/{}", response["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), response);
    let delete = || Request::delete(&path).body(Body::empty()).unwrap();
    let deleted = server.send(delete()).await;
    assert_eq!(deleted.json()["deleted"], true);
    assert_eq!(server.get(&path).await.status, 404);
    let again = server.send(delete()).await;
    assert_eq!(again.status, 404);
    assert!(again.json()["error"]["message"].is_string());
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not() {
    let server = word();
    let response = respond(&server, json!({"store": false})).await;
    let id = response["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("{PATH}/{id}")).await.status, 404);
    let body = hello(json!({"previous_response_id": id}));
    let refused = server.post(PATH, &body).await;
    assert_eq!(refused.status, 400);
    assert!(refused.text.contains("previous_response_id"));
}

/// The prompt of each request in turn.
async fn prompts(bodies: impl AsyncFnOnce(&Server)) -> Vec<String> {
    let (sender, mut receiver) = mpsc::channel(16);
    let server = scripted(move |spec| {
        let text = compat().decode(&spec.prompt, false);
        sender.try_send(text).unwrap();
        let end = token(2, Some(FinishReason::EndToken));
        vec![admitted(0), token(323, None), end]
    });
    bodies(&server).await;
    drop(server);
    let mut prompts = Vec::new();
    while let Some(prompt) = receiver.recv().await {
        prompts.push(prompt);
    }
    prompts
}

#[tokio::test]
async fn a_conversation_goes_on_from_what_is_stored() {
    let prompts = prompts(async |server| {
        let first = json!({"input": "a", "instructions": "first"});
        let first = server.post(PATH, &first).await.json();
        let next = json!({
            "input": "b", "instructions": "second", "previous_response_id": first["id"],
        });
        let next = server.post(PATH, &next).await.json();
        let last = json!({"input": "c", "previous_response_id": next["id"]});
        server.post(PATH, &last).await;
    })
    .await;
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let open = "<|im_start|>assistant\n";
    let (user, assistant) = (|text| turn("user", text), || turn("assistant", " return"));
    assert_eq!(
        prompts[0],
        format!("{}{}{open}", turn("system", "first"), user("a"))
    );
    let second = format!(
        "{}{}{}{}{open}",
        turn("system", "second"),
        user("a"),
        assistant(),
        user("b")
    );
    assert_eq!(prompts[1], second);
    let third = [user("a"), assistant(), user("b"), assistant(), user("c")].concat();
    assert_eq!(prompts[2], format!("{third}{open}"));
}

#[tokio::test]
async fn items_of_every_kind_reach_the_template() {
    let prompts = prompts(async |server| {
        let body = json!({"input": [
            {"role": "developer", "content": "be"},
            {"role": "system", "content": [{"type": "input_text", "text": "brief"}]},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"},
            ]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
            {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{\"x\": 1}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "d"},
            {"role": "user", "content": "e"},
        ]});
        let reply = server.post(PATH, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    })
    .await;
    let expected = "<|im_start|>system\nbe\n\nbrief<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n\
        <|im_start|>tool\nd<|im_end|>\n<|im_start|>user\ne<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(prompts, [expected]);
}

#[tokio::test]
async fn input_items_are_listed_newest_first_in_pages() {
    let server = word();
    let items: Vec<Value> = ["a", "b", "c"]
        .map(|text| json!({"role": "user", "content": text}))
        .to_vec();
    let response = respond(&server, json!({"input": items})).await;
    let path = format!("{PATH}/{}/input_items", response["id"].as_str().unwrap());
    let texts = |list: &Value| -> Vec<String> {
        let data = list["data"].as_array().unwrap().iter();
        data.map(|item| item["content"][0]["text"].as_str().unwrap().to_owned())
            .collect()
    };
    let page = server.get(&format!("{path}?limit=2")).await.json();
    assert_eq!(texts(&page), ["c", "b"]);
    assert_eq!(page["has_more"], true);
    assert_eq!(page["last_id"], page["data"][1]["id"]);
    let after = page["last_id"].as_str().unwrap();
    let rest = server.get(&format!("{path}?after={after}")).await.json();
    assert_eq!(texts(&rest), ["a"]);
    assert_eq!(rest["has_more"], false);
    let all = server.get(&format!("{path}?order=asc")).await.json();
    assert_eq!(texts(&all), ["a", "b", "c"]);
    assert_eq!(server.get(&format!("{path}?limit=0")).await.status, 422);
}

#[tokio::test]
async fn a_background_response_runs_without_a_client() {
    let mut server = scripted(|_| vec![admitted(0), token(323, None)]);
    let response = respond(&server, json!({"background": true})).await;
    assert_eq!(response["status"], "queued");
    let path = format!("{PATH}/{}", response["id"].as_str().unwrap());
    let held = server.held.recv().await.unwrap();
    let end = token(2, Some(FinishReason::EndToken));
    held.events.send(end).await.unwrap();
    held.events.closed().await;
    let fetched = until_ended(&server, &path).await;
    assert_eq!(fetched["status"], "completed");
    assert_eq!(fetched["output"][0]["content"][0]["text"], " return");
}

/// The response when it no longer runs.
async fn until_ended(server: &Server, path: &str) -> Value {
    loop {
        let response = server.get(path).await.json();
        if !["queued", "in_progress"].contains(&response["status"].as_str().unwrap()) {
            return response;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn cancelling_ends_a_background_response_and_frees_its_sequence() {
    let mut server = scripted(|_| vec![admitted(0), token(323, None)]);
    let response = respond(&server, json!({"background": true})).await;
    let path = format!("{PATH}/{}", response["id"].as_str().unwrap());
    let held = server.held.recv().await.unwrap();
    let cancelled = server
        .post(&format!("{path}/cancel"), &json!({}))
        .await
        .json();
    assert_eq!(cancelled["status"], "cancelled");
    held.events.closed().await;
    assert_eq!(until_ended(&server, &path).await["status"], "cancelled");
}

#[tokio::test]
async fn deleting_a_background_response_ends_it() {
    let mut server = scripted(|_| vec![admitted(0), token(323, None)]);
    let response = respond(&server, json!({"background": true})).await;
    let path = format!("{PATH}/{}", response["id"].as_str().unwrap());
    let held = server.held.recv().await.unwrap();
    let deleted = server
        .send(Request::delete(&path).body(Body::empty()).unwrap())
        .await;
    assert_eq!(deleted.status, 200);
    held.events.closed().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_response() {
    let mut server = scripted(|_| vec![admitted(0), token(323, None)]);
    let response = server
        .open(post(PATH, &hello(json!({"stream": true}))))
        .await;
    let held = server.held.recv().await.unwrap();
    drop(response);
    held.events.closed().await;
}

#[tokio::test]
async fn a_stream_can_be_cancelled_from_elsewhere() {
    let mut server = scripted(|_| vec![admitted(0), token(323, None)]);
    let response = server
        .open(post(PATH, &hello(json!({"stream": true}))))
        .await;
    let held = server.held.recv().await.unwrap();
    let mut body = response.into_body().into_data_stream();
    let first = futures::StreamExt::next(&mut body).await.unwrap().unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    let data = text.lines().nth(1).unwrap().strip_prefix("data: ").unwrap();
    let created: Value = serde_json::from_str(data).unwrap();
    let id = created["response"]["id"].as_str().unwrap();
    server
        .post(&format!("{PATH}/{id}/cancel"), &json!({}))
        .await;
    let mut rest = String::new();
    while let Some(bytes) = futures::StreamExt::next(&mut body).await {
        rest.push_str(std::str::from_utf8(&bytes.unwrap()).unwrap());
    }
    let last = rest.trim_end().lines().last().unwrap();
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(last["response"]["status"], "cancelled");
    held.events.closed().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_its_name() {
    let server = greedy();
    for (extra, named) in [
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"background": true, "stream": true}), "stream"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "file_search"}}),
            "tool_choice.type",
        ),
        (
            json!({"text": {"format": {"type": "xml"}}}),
            "text.format.type",
        ),
        (
            json!({"text": {"format": {"type": "json_schema"}}}),
            "text.format.schema",
        ),
        (json!({"input": []}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": [{"type": "web_search_call"}]}), "input[0]"),
        (
            json!({"input": [{"type": "function_call", "name": "f", "arguments": ""}]}),
            "call_id",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input_image",
        ),
        (json!({"max_output_tokens": 0}), "max_new_tokens"),
        (json!({"max_output_tokens": -1}), "max_output_tokens"),
        (json!({"temperature": -1}), "temperature"),
    ] {
        let reply = server.post(PATH, &hello(extra.clone())).await;
        assert!(reply.status.is_client_error(), "{extra}: {}", reply.text);
        let message = reply.json()["error"]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(message.contains(named), "{extra}: {message}");
    }
}

#[tokio::test]
async fn a_format_is_repeated_and_compiled() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let format = |schema: &Value| json!({"type": "json_schema", "name": "n", "schema": schema, "strict": true});
    let text = json!({"format": format(&schema)});
    let response = respond(&word(), json!({"text": text})).await;
    assert_eq!(response["text"]["format"]["schema"], schema);
    let text = json!({"format": format(&json!({"type": "nothing"}))});
    let refused = word().post(PATH, &hello(json!({"text": text}))).await;
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(refused.text.contains("grammar"), "{}", refused.text);
}
