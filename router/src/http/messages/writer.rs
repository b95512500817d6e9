//! A message as it grows: its blocks, the events that tell of them, and the whole of it at the end. Streamed or not, it is written by the
//! same steps.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::super::answer::{Step, Usage};
use super::super::blocks::{Block, BlockEvent, Blocks};
use super::super::errors::ApiError;
use super::super::openai;
use super::super::openapi::described::AnthropicStopReason;
use super::super::sse::{EventBuffer, EventWriter};
use super::errors;
use crate::generation::Progress;
use crate::output::{Finish, TextDelta};

#[derive(Clone, Serialize, ToSchema)]
#[schema(as = AnthropicMessage)]
pub struct Message {
    id: String,
    #[serde(rename = "type")]
    #[schema(example = "message")]
    kind: &'static str,
    #[schema(example = "assistant")]
    role: &'static str,
    model: String,
    content: Vec<Content>,
    /// `null` at the start of a stream.
    #[schema(value_type = Option<AnthropicStopReason>)]
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
    usage: MessageUsage,
}

#[derive(Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicContent)]
pub enum Content {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
        /// Nothing is signed here; clients only need the field.
        signature: &'static str,
    },
    ToolUse {
        id: String,
        name: String,
        #[schema(value_type = Object)]
        input: Value,
    },
}

/// Tokens of the prompt that were computed and that were found in the prefix cache, which together are the prompt.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[schema(as = AnthropicUsage)]
pub struct MessageUsage {
    input_tokens: usize,
    cache_creation_input_tokens: u32,
    cache_read_input_tokens: u32,
    output_tokens: usize,
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicEvent)]
pub enum MessageEvent {
    MessageStart {
        message: Message,
    },
    Ping,
    ContentBlockStart {
        index: usize,
        content_block: Content,
    },
    ContentBlockDelta {
        index: usize,
        delta: Delta,
    },
    ContentBlockStop {
        index: usize,
    },
    MessageDelta {
        delta: StopDelta,
        usage: MessageUsage,
    },
    MessageStop,
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "type")]
#[schema(as = AnthropicDelta)]
pub enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: &'static str },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
}

#[derive(Serialize, ToSchema)]
#[schema(as = AnthropicStopDelta)]
pub struct StopDelta {
    #[schema(value_type = Option<AnthropicStopReason>)]
    stop_reason: Option<&'static str>,
    stop_sequence: Option<String>,
}

impl MessageEvent {
    /// The `event:` line; the same as `type`.
    fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::Ping => "ping",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }

    fn write(&self, events: &mut EventBuffer) {
        events.push_named(self.name(), self);
    }
}

pub struct MessageWriter {
    message: Message,
    stop_sequences: Vec<String>,
    started: bool,
    blocks: Blocks,
    /// Of the call that is open.
    arguments: String,
}

impl MessageWriter {
    pub fn new(model: String, stop_sequences: Vec<String>, prompt_tokens: usize) -> Self {
        Self {
            message: Message {
                id: openai::underscored_id("msg"),
                kind: "message",
                role: "assistant",
                model,
                content: Vec::new(),
                stop_reason: None,
                stop_sequence: None,
                usage: MessageUsage {
                    input_tokens: prompt_tokens,
                    cache_creation_input_tokens: 0,
                    cache_read_input_tokens: 0,
                    output_tokens: 0,
                },
            },
            stop_sequences,
            started: false,
            blocks: Blocks::default(),
            arguments: String::new(),
        }
    }

    pub fn into_message(self) -> Message {
        self.message
    }

    /// Takes a step without telling of it.
    pub fn write(&mut self, step: Step) {
        self.events(step);
    }

    fn events(&mut self, step: Step) -> Vec<MessageEvent> {
        match step {
            Step::Progress(
                _,
                Progress::Admitted {
                    num_cached_tokens, ..
                },
            ) => self.start(num_cached_tokens),
            Step::Progress(_, Progress::Text(delta)) => self.text(delta),
            Step::Progress(_, Progress::PromptLogprobs(_)) => Vec::new(),
            Step::Done(usage) => self.end(&usage),
        }
    }

    /// The first events. A sequence that is preempted is admitted again; only the first time counts.
    fn start(&mut self, num_cached_tokens: u32) -> Vec<MessageEvent> {
        if self.started {
            return Vec::new();
        }
        self.started = true;
        self.cached(num_cached_tokens);
        let message = self.message.clone();
        vec![MessageEvent::MessageStart { message }, MessageEvent::Ping]
    }

    fn text(&mut self, delta: TextDelta) -> Vec<MessageEvent> {
        let mut events = self.start(0);
        self.message.usage.output_tokens += 1;
        for part in delta.parts {
            for event in self.blocks.push(part) {
                self.block(event, &mut events);
            }
        }
        if let Some(finish) = delta.finish {
            self.stop(finish);
        }
        events
    }

    fn end(&mut self, usage: &Usage) -> Vec<MessageEvent> {
        let mut events = self.start(usage.num_cached_tokens);
        for event in self.blocks.finish() {
            self.block(event, &mut events);
        }
        let message = &self.message;
        events.push(MessageEvent::MessageDelta {
            delta: StopDelta {
                stop_reason: message.stop_reason,
                stop_sequence: message.stop_sequence.clone(),
            },
            usage: message.usage,
        });
        events.push(MessageEvent::MessageStop);
        events
    }

    fn cached(&mut self, num_cached_tokens: u32) {
        let usage = &mut self.message.usage;
        usage.cache_read_input_tokens = num_cached_tokens;
        usage.input_tokens = usage
            .input_tokens
            .saturating_sub(num_cached_tokens as usize);
    }

    fn stop(&mut self, finish: Finish) {
        let message = &mut self.message;
        let calls = |content: &Content| matches!(content, Content::ToolUse { .. });
        message.stop_reason = Some(match finish {
            Finish::Length => "max_tokens",
            Finish::StopString(stop_idx) => {
                message.stop_sequence = self.stop_sequences.get(stop_idx).cloned();
                "stop_sequence"
            }
            Finish::EndToken if message.content.iter().any(calls) => "tool_use",
            Finish::EndToken => "end_turn",
        });
    }

    fn block(&mut self, event: BlockEvent, events: &mut Vec<MessageEvent>) {
        match event {
            BlockEvent::Started(block) => {
                let content = started(block);
                self.message.content.push(content.clone());
                events.push(MessageEvent::ContentBlockStart {
                    index: self.index(),
                    content_block: content,
                });
            }
            BlockEvent::More(text) => {
                let index = self.index();
                if let Some(delta) = self.more(text) {
                    events.push(MessageEvent::ContentBlockDelta { index, delta });
                }
            }
            BlockEvent::Ended => {
                let index = self.index();
                if let Some(delta) = self.close() {
                    events.push(MessageEvent::ContentBlockDelta { index, delta });
                }
                events.push(MessageEvent::ContentBlockStop { index });
            }
        }
    }

    /// Of the block that is open.
    fn index(&self) -> usize {
        self.message.content.len().saturating_sub(1)
    }

    fn more(&mut self, more: String) -> Option<Delta> {
        Some(match self.message.content.last_mut()? {
            Content::Text { text } => {
                text.push_str(&more);
                Delta::Text { text: more }
            }
            Content::Thinking { thinking, .. } => {
                thinking.push_str(&more);
                Delta::Thinking { thinking: more }
            }
            Content::ToolUse { .. } => {
                self.arguments.push_str(&more);
                Delta::InputJson { partial_json: more }
            }
        })
    }

    /// A call gets its input; one that was cut off keeps an empty one.
    fn close(&mut self) -> Option<Delta> {
        match self.message.content.last_mut()? {
            Content::Text { .. } => None,
            Content::Thinking { signature, .. } => Some(Delta::Signature { signature }),
            Content::ToolUse { input, .. } => {
                let arguments = std::mem::take(&mut self.arguments);
                let parsed = serde_json::from_str(&arguments).ok();
                *input = parsed.filter(Value::is_object).unwrap_or_else(empty_object);
                None
            }
        }
    }
}

fn started(block: Block) -> Content {
    match block {
        Block::Text => Content::Text {
            text: String::new(),
        },
        Block::Reasoning => Content::Thinking {
            thinking: String::new(),
            signature: "",
        },
        Block::Call { name } => Content::ToolUse {
            id: openai::underscored_id("toolu"),
            name,
            input: empty_object(),
        },
    }
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

impl EventWriter for MessageWriter {
    fn step(&mut self, step: Step, events: &mut EventBuffer) {
        for event in self.events(step) {
            event.write(events);
        }
    }

    fn error(&mut self, error: &ApiError, events: &mut EventBuffer) {
        events.push_named(
            "error",
            &errors::object(error.status, error.message.clone()),
        );
    }

    fn keep_alive(&self, events: &mut EventBuffer) {
        MessageEvent::Ping.write(events);
    }
}

#[cfg(test)]
mod tests;
