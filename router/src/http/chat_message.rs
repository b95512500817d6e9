//! What a model said to a chat, whole or piece by piece, in OpenAI's shape as TGI wrote it.

use serde::Serialize;

use super::answer::{Call, Message};
use super::openai;
use crate::output::{Finish, MessagePart};

#[derive(Debug, Default, Serialize)]
pub struct AssistantMessage {
    role: Assistant,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
enum Assistant {
    #[default]
    Assistant,
}

/// A call, or more of one: then only its index and the new arguments are there.
#[derive(Debug, Serialize)]
struct ToolCall {
    /// Only in streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: CalledFunction,
}

#[derive(Debug, Serialize)]
struct CalledFunction {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl From<Message> for AssistantMessage {
    /// Content is left out only where there are calls instead.
    fn from(message: Message) -> Self {
        let has_content = message.calls.is_empty() || !message.content.is_empty();
        let call = |call: Call| {
            let mut started = ToolCall::started(None, call.name);
            started.function.arguments = call.arguments;
            started
        };
        Self {
            role: Assistant::Assistant,
            content: has_content.then_some(message.content),
            reasoning_content: (!message.reasoning.is_empty()).then_some(message.reasoning),
            tool_calls: message.calls.into_iter().map(call).collect(),
        }
    }
}

impl AssistantMessage {
    /// What one token added. Without anything new, the content that it added is empty.
    pub fn delta(parts: Vec<MessagePart>) -> Self {
        let mut delta = Self::default();
        for part in parts {
            delta.push(part);
        }
        if delta.reasoning_content.is_none() && delta.tool_calls.is_empty() {
            delta.content.get_or_insert_default();
        }
        delta
    }

    fn push(&mut self, part: MessagePart) {
        match part {
            MessagePart::Content(text) => self.content.get_or_insert_default().push_str(&text),
            MessagePart::Reasoning(text) => {
                self.reasoning_content
                    .get_or_insert_default()
                    .push_str(&text);
            }
            MessagePart::CallStart { call_idx, name } => {
                self.tool_calls
                    .push(ToolCall::started(Some(call_idx), name));
            }
            MessagePart::CallArguments { call_idx, text } => match self.tool_calls.last_mut() {
                Some(call) if call.index == Some(call_idx) => {
                    call.function.arguments.push_str(&text);
                }
                _ => self.tool_calls.push(ToolCall {
                    index: Some(call_idx),
                    id: None,
                    kind: None,
                    function: CalledFunction {
                        name: None,
                        arguments: text,
                    },
                }),
            },
        }
    }
}

impl ToolCall {
    fn started(index: Option<usize>, name: String) -> Self {
        Self {
            index,
            id: Some(openai::call_id()),
            kind: Some("function"),
            function: CalledFunction {
                name: Some(name),
                arguments: String::new(),
            },
        }
    }
}

/// `tool_calls` where the model stopped to have its calls answered.
pub fn finish_reason(finish: Finish, called: bool) -> &'static str {
    match finish {
        Finish::EndToken | Finish::StopString(_) if called => "tool_calls",
        other => openai::finish_reason(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn start(call_idx: usize) -> MessagePart {
        let name = "f".to_owned();
        MessagePart::CallStart { call_idx, name }
    }

    fn arguments(call_idx: usize, text: &str) -> MessagePart {
        let text = text.to_owned();
        MessagePart::CallArguments { call_idx, text }
    }

    fn delta(parts: Vec<MessagePart>) -> Value {
        serde_json::to_value(AssistantMessage::delta(parts)).unwrap()
    }

    #[test]
    fn a_call_begins_with_its_id_and_goes_on_with_its_index() {
        let mut begun = delta(vec![start(1)]);
        let id = begun["tool_calls"][0]["id"].take();
        assert!(id.as_str().unwrap().starts_with("call_"));
        let expected = json!({"role": "assistant", "tool_calls": [
            {"index": 1, "id": null, "type": "function", "function": {"name": "f", "arguments": ""}},
        ]});
        assert_eq!(begun, expected);
        let expected = json!({"role": "assistant", "tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]});
        assert_eq!(delta(vec![arguments(1, "{"), arguments(1, "}")]), expected);
    }

    #[test]
    fn one_token_can_end_a_call_and_begin_the_next() {
        let both = delta(vec![arguments(0, "}"), start(1), arguments(1, "{")]);
        let calls = both["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0]["function"]["arguments"], "}");
        assert_eq!(calls[1]["function"]["arguments"], "{");
    }

    #[test]
    fn a_token_that_adds_nothing_has_empty_content() {
        let expected = json!({"role": "assistant", "content": ""});
        assert_eq!(delta(Vec::new()), expected);
        let thought = delta(vec![MessagePart::Reasoning("a".to_owned())]);
        let expected = json!({"role": "assistant", "reasoning_content": "a"});
        assert_eq!(thought, expected);
    }

    #[test]
    fn content_is_missing_only_beside_calls() {
        let whole = |content: &str, calls| {
            let message = Message {
                content: content.to_owned(),
                reasoning: String::new(),
                calls,
            };
            serde_json::to_value(AssistantMessage::from(message)).unwrap()
        };
        let call = || Call {
            name: "f".to_owned(),
            arguments: "{}".to_owned(),
        };
        assert_eq!(whole("", Vec::new())["content"], "");
        assert!(whole("", vec![call()]).get("content").is_none());
        assert_eq!(whole("a", vec![call()])["content"], "a");
        let two = whole("", vec![call(), call()]);
        assert_ne!(two["tool_calls"][0]["id"], two["tool_calls"][1]["id"]);
    }

    #[test]
    fn calls_are_the_reason_to_stop_but_not_to_be_cut_off() {
        assert_eq!(finish_reason(Finish::EndToken, true), "tool_calls");
        assert_eq!(finish_reason(Finish::Length, true), "length");
        assert_eq!(finish_reason(Finish::EndToken, false), "stop");
    }
}
