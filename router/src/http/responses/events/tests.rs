use serde_json::{Value, json};

use super::super::body::ResponseBody;
use super::*;
use crate::output::TextDelta;

fn builder(wants_logprobs: bool) -> Builder {
    let body: ResponseBody = serde_json::from_value(json!({"input": "a"})).unwrap();
    let asked = body.plan(Vec::new()).unwrap().asked;
    Builder::new(ResponseObject::new("m".into(), asked), wants_logprobs)
}

fn delta(text: &str, parts: Vec<MessagePart>, finish: Option<Finish>) -> TextDelta {
    TextDelta {
        reasoning: false,
        token: Token {
            id: 5,
            text: text.into(),
            logprob: -1.0,
            special: text.starts_with('<'),
            top_tokens: Vec::new(),
        },
        text: text.into(),
        parts,
        finish,
    }
}

fn start(call_idx: usize, name: &str) -> MessagePart {
    MessagePart::CallStart {
        call_idx,
        name: name.into(),
    }
}

fn arguments(call_idx: usize, text: &str) -> MessagePart {
    MessagePart::CallArguments {
        call_idx,
        text: text.into(),
    }
}

/// Thinks, talks, and calls two functions, the second without arguments so far.
fn deltas() -> Vec<TextDelta> {
    let (reasoning, content) = (MessagePart::Reasoning, MessagePart::Content);
    vec![
        delta("<think>", vec![], None),
        delta("hm", vec![reasoning("hm".into())], None),
        delta("m", vec![reasoning("m".into())], None),
        delta("</think>", vec![], None),
        delta("ok", vec![content("ok".into())], None),
        delta("<call>", vec![start(0, "f")], None),
        delta("{", vec![arguments(0, "{\"x\"")], None),
        delta("}", vec![arguments(0, ":1}"), start(1, "g")], None),
    ]
}

fn run(builder: &mut Builder, deltas: Vec<TextDelta>) -> Vec<Value> {
    let mut events = builder.begun();
    for delta in deltas {
        events.extend(builder.delta(delta));
    }
    json_of(events)
}

fn json_of(events: Vec<Event>) -> Vec<Value> {
    let mut values = Vec::new();
    for event in events {
        let value = serde_json::to_value(&event).unwrap();
        assert_eq!(value["type"], event.kind.name());
        values.push(value);
    }
    values
}

#[test]
fn reasoning_text_and_calls_are_items_of_their_own() {
    let mut builder = builder(false);
    let mut events = run(&mut builder, deltas());
    let end = delta("", vec![arguments(1, "{}")], Some(Finish::EndToken));
    events.extend(json_of(builder.delta(end)));
    events.extend(json_of(builder.done(&answer::Usage::default())));
    let types: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(types, expected);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let last = &events.last().unwrap()["response"];
    let output = last["output"].as_array().unwrap();
    assert_eq!(output[0]["content"][0]["text"], "hmm");
    assert_eq!(output[1]["content"][0]["text"], "ok");
    assert_eq!(
        (&output[2]["name"], &output[2]["arguments"]),
        (&json!("f"), &json!("{\"x\":1}"))
    );
    assert_eq!(
        (&output[3]["name"], &output[3]["arguments"]),
        (&json!("g"), &json!("{}"))
    );
    assert_ne!(output[2]["call_id"], output[3]["call_id"]);
    assert!(output.iter().all(|item| item["status"] == "completed"));
    let details = &last["usage"]["output_tokens_details"];
    assert_eq!(details["reasoning_tokens"], 2);
}

#[test]
fn every_item_is_done_as_it_was_added_and_is_in_the_response() {
    let mut builder = builder(false);
    let mut events = run(&mut builder, deltas());
    events.extend(json_of(builder.done(&answer::Usage::default())));
    let of = |kind: &str| -> Vec<&Value> {
        let of_kind = events.iter().filter(|event| event["type"] == kind);
        of_kind.collect()
    };
    let added = of("response.output_item.added");
    let done = of("response.output_item.done");
    let output = events.last().unwrap()["response"]["output"]
        .as_array()
        .unwrap();
    assert_eq!((added.len(), done.len(), output.len()), (4, 4, 4));
    for (index, item) in output.iter().enumerate() {
        assert_eq!(added[index]["output_index"], index);
        assert_eq!(added[index]["item"]["id"], item["id"]);
        assert_eq!(added[index]["item"]["status"], "in_progress");
        assert_eq!(&done[index]["item"], item);
    }
}

#[test]
fn what_was_open_when_it_was_cancelled_is_incomplete() {
    let mut builder = builder(false);
    run(&mut builder, deltas());
    let events = json_of(builder.cancelled());
    let response = &events.last().unwrap()["response"];
    assert_eq!(response["status"], "cancelled");
    let output = response["output"].as_array().unwrap();
    assert_eq!(output[2]["status"], "completed");
    assert_eq!(output[3]["status"], "incomplete");
}

#[test]
fn log_probabilities_are_of_text_only() {
    let mut builder = builder(true);
    let mut deltas = deltas();
    deltas[4] = delta("o", vec![], None);
    // A piece that was held back and turned out to be reasoning.
    deltas[1] = delta("h", vec![], None);
    deltas.insert(5, delta("k", vec![MessagePart::Content("ok".into())], None));
    let events = run(&mut builder, deltas);
    let text = events
        .iter()
        .find(|event| event["type"] == "response.output_text.delta");
    let tokens: Vec<&str> = text.unwrap()["logprobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["token"].as_str().unwrap())
        .collect();
    assert_eq!(tokens, ["o", "k"]);
}
