use std::time::Instant;

use serde_json::json;

use super::*;
use crate::output::{MessagePart, Token};

fn step(parts: Vec<MessagePart>, finish: Option<Finish>) -> Step {
    let token = Token {
        id: 5,
        text: "t".into(),
        logprob: -1.0,
        special: false,
        top_tokens: Vec::new(),
    };
    let delta = TextDelta {
        reasoning: false,
        token,
        text: String::new(),
        parts,
        finish,
    };
    Step::Progress(0, Progress::Text(delta))
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

/// Thinks, talks, and calls two tools.
fn steps(last_arguments: &str, finish: Finish) -> Vec<Step> {
    let admitted = Progress::Admitted {
        at: Instant::now(),
        num_cached_tokens: 3,
    };
    vec![
        Step::Progress(0, admitted),
        step(vec![MessagePart::Reasoning("hm".into())], None),
        step(vec![MessagePart::Content("ok".into())], None),
        step(vec![start(0, "f"), arguments(0, "{\"x\"")], None),
        step(vec![arguments(0, ":1}")], None),
        step(
            vec![start(1, "g"), arguments(1, last_arguments)],
            Some(finish),
        ),
        Step::Done(Usage::default()),
    ]
}

fn writer() -> MessageWriter {
    MessageWriter::new("m".into(), vec!["stop".into()], 10)
}

fn whole(steps: Vec<Step>) -> Value {
    let mut writer = writer();
    steps.into_iter().for_each(|step| writer.write(step));
    serde_json::to_value(writer.into_message()).unwrap()
}

/// What a client makes of a stream.
fn added_up(steps: Vec<Step>) -> Value {
    let mut writer = writer();
    let events = steps.into_iter().flat_map(|step| writer.events(step));
    let mut message = json!(null);
    let mut input = String::new();
    for event in events.map(|event| serde_json::to_value(event).unwrap()) {
        match event["type"].as_str().unwrap() {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(event["index"], content.len());
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let block = &mut message["content"][event["index"].as_u64().unwrap() as usize];
                for (name, more) in event["delta"].as_object().unwrap() {
                    match name.as_str() {
                        "text" | "thinking" => {
                            let text = block[name].as_str().unwrap().to_owned();
                            block[name] = json!(text + more.as_str().unwrap());
                        }
                        "partial_json" => input.push_str(more.as_str().unwrap()),
                        _ => {}
                    }
                }
            }
            "content_block_stop" if !input.is_empty() => {
                let block = &mut message["content"][event["index"].as_u64().unwrap() as usize];
                block["input"] = serde_json::from_str(&input).unwrap_or(json!({}));
                input.clear();
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            _ => {}
        }
    }
    message
}

/// Ids are random.
fn without_ids(mut message: Value) -> Value {
    message["id"] = json!(null);
    for block in message["content"].as_array_mut().unwrap() {
        if block.get("id").is_some() {
            block["id"] = json!(null);
        }
    }
    message
}

#[test]
fn thinking_text_and_calls_are_blocks_of_their_own() {
    let message = whole(steps("{}", Finish::EndToken));
    let content = message["content"].as_array().unwrap();
    let thinking = json!({"type": "thinking", "thinking": "hm", "signature": ""});
    assert_eq!(content[0], thinking);
    assert_eq!(content[1], json!({"type": "text", "text": "ok"}));
    assert_eq!(
        (&content[2]["name"], &content[2]["input"]),
        (&json!("f"), &json!({"x": 1}))
    );
    assert_eq!(content[3]["input"], json!({}));
    assert!(content[3]["id"].as_str().unwrap().starts_with("toolu_"));
    assert_eq!(message["stop_reason"], "tool_use");
    let usage = &message["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"]),
        (&json!(7), &json!(5))
    );
}

#[test]
fn a_streamed_message_adds_up_to_the_whole_one() {
    for finish in [Finish::EndToken, Finish::Length, Finish::StopString(0)] {
        for last in ["{\"y\":[]}", "{\"y\":"] {
            let streamed = added_up(steps(last, finish));
            assert_eq!(
                without_ids(streamed),
                without_ids(whole(steps(last, finish)))
            );
        }
    }
}

#[test]
fn arguments_that_were_cut_off_are_an_empty_input() {
    let message = whole(steps("{\"y\":", Finish::Length));
    assert_eq!(message["content"][3]["input"], json!({}));
    assert_eq!(message["stop_reason"], "max_tokens");
}
