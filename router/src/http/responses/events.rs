//! A response as it grows, and the events that tell of it. The object at the end is the same whether the events were sent or not, so a
//! whole answer and a streamed one cannot differ.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::answer;
use super::super::blocks::{Block, BlockEvent, Blocks};
use super::super::errors::ApiError;
use super::super::openai;
use super::items::{Item, ItemStatus, Part, Role, TokenLogprob, TopLogprob};
use super::object::{Failure, IncompleteDetails, ResponseObject, Status, Usage};
use crate::output::{Finish, MessagePart, TextDelta, Token};

/// An event with its place in the stream.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponseEvent)]
pub struct Event {
    #[serde(flatten)]
    pub kind: EventKind,
    sequence_number: u64,
}

#[derive(Serialize, ToSchema)]
#[serde(tag = "type")]
#[schema(as = ResponseEventKind)]
pub enum EventKind {
    #[serde(rename = "response.created")]
    Created { response: Box<ResponseObject> },
    #[serde(rename = "response.in_progress")]
    InProgress { response: Box<ResponseObject> },
    #[serde(rename = "response.completed")]
    Completed { response: Box<ResponseObject> },
    #[serde(rename = "response.incomplete")]
    Incomplete { response: Box<ResponseObject> },
    #[serde(rename = "response.failed")]
    Failed { response: Box<ResponseObject> },
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: Item },
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: Item },
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        #[serde(flatten)]
        at: At,
        content_index: usize,
        part: Part,
    },
    #[serde(rename = "response.content_part.done")]
    PartDone {
        #[serde(flatten)]
        at: At,
        content_index: usize,
        part: Part,
    },
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        #[serde(flatten)]
        at: At,
        content_index: usize,
        delta: String,
        logprobs: Vec<TokenLogprob>,
    },
    #[serde(rename = "response.output_text.done")]
    TextDone {
        #[serde(flatten)]
        at: At,
        content_index: usize,
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta {
        #[serde(flatten)]
        at: At,
        content_index: usize,
        delta: String,
    },
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone {
        #[serde(flatten)]
        at: At,
        content_index: usize,
        text: String,
    },
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        #[serde(flatten)]
        at: At,
        delta: String,
    },
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        #[serde(flatten)]
        at: At,
        name: String,
        arguments: String,
    },
}

/// The item that an event is about.
#[derive(Serialize, ToSchema)]
#[schema(as = ResponseEventPlace)]
pub struct At {
    item_id: String,
    output_index: usize,
}

impl EventKind {
    /// The `event:` line; the same as `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::PartDone { .. } => "response.content_part.done",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ReasoningDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningDone { .. } => "response.reasoning_text.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
        }
    }
}

/// A response that is being written.
pub struct Builder {
    response: ResponseObject,
    num_events: u64,
    blocks: Blocks,
    /// Of the item that is open: its text, or its arguments.
    text: String,
    /// Log-probabilities are wanted.
    wants_logprobs: bool,
    /// Of the text that is open.
    logprobs: Vec<TokenLogprob>,
    /// Of tokens whose text is still to come.
    pending_logprobs: Vec<TokenLogprob>,
    reasoning_tokens: usize,
    finish: Option<Finish>,
}

impl Builder {
    pub fn new(response: ResponseObject, wants_logprobs: bool) -> Self {
        Self {
            response,
            num_events: 0,
            blocks: Blocks::default(),
            text: String::new(),
            wants_logprobs,
            logprobs: Vec::new(),
            pending_logprobs: Vec::new(),
            reasoning_tokens: 0,
            finish: None,
        }
    }

    pub fn response(&self) -> &ResponseObject {
        &self.response
    }

    /// The first events.
    pub fn begun(&mut self) -> Vec<Event> {
        let created = self.snapshot();
        self.response.status = Status::InProgress;
        let in_progress = self.snapshot();
        self.numbered(vec![
            EventKind::Created { response: created },
            EventKind::InProgress {
                response: in_progress,
            },
        ])
    }

    pub fn delta(&mut self, delta: TextDelta) -> Vec<Event> {
        let is = |test: fn(&MessagePart) -> bool| delta.parts.iter().any(test);
        self.reasoning_tokens += usize::from(is(|part| matches!(part, MessagePart::Reasoning(_))));
        if self.wants_logprobs {
            let is_text = is(|part| matches!(part, MessagePart::Content(_)));
            if !is_text && !delta.parts.is_empty() {
                self.pending_logprobs.clear();
            } else if !delta.token.special && delta.finish != Some(Finish::EndToken) {
                self.pending_logprobs.push(delta.token.into());
            }
        }
        self.finish = delta.finish.or(self.finish);
        let mut events = Vec::new();
        for part in delta.parts {
            for event in self.blocks.push(part) {
                self.write(event, ItemStatus::Completed, &mut events);
            }
        }
        self.numbered(events)
    }

    /// The answer is complete, or as long as it may be.
    pub fn done(&mut self, usage: &answer::Usage) -> Vec<Event> {
        self.response.usage = Some(Usage::new(usage, self.reasoning_tokens));
        if self.finish == Some(Finish::Length) {
            self.response.incomplete_details = Some(IncompleteDetails {
                reason: "max_output_tokens",
            });
            return self.end(Status::Incomplete);
        }
        self.response.completed_at = Some(openai::now());
        self.end(Status::Completed)
    }

    pub fn failed(&mut self, error: &ApiError) -> Vec<Event> {
        self.response.error = Some(Failure::from(error));
        self.end(Status::Failed)
    }

    pub fn cancelled(&mut self) -> Vec<Event> {
        self.end(Status::Cancelled)
    }

    fn end(&mut self, status: Status) -> Vec<Event> {
        let item_status = match status {
            Status::Completed => ItemStatus::Completed,
            _ => ItemStatus::Incomplete,
        };
        let mut events = Vec::new();
        for event in self.blocks.finish() {
            self.write(event, item_status, &mut events);
        }
        self.response.status = status;
        let response = self.snapshot();
        events.push(match status {
            Status::Completed => EventKind::Completed { response },
            Status::Failed => EventKind::Failed { response },
            _ => EventKind::Incomplete { response },
        });
        self.numbered(events)
    }

    fn write(&mut self, event: BlockEvent, status: ItemStatus, events: &mut Vec<EventKind>) {
        match event {
            BlockEvent::Started(block) => self.open(block, events),
            BlockEvent::More(text) => self.more(text, events),
            BlockEvent::Ended => self.close(status, events),
        }
    }

    fn open(&mut self, block: Block, events: &mut Vec<EventKind>) {
        let status = ItemStatus::InProgress;
        let (item, part) = match block {
            Block::Text => {
                let item = Item::Message {
                    id: openai::underscored_id("msg"),
                    status,
                    role: Role::Assistant,
                    content: Vec::new(),
                };
                (item, Some(Part::output_text(String::new(), Vec::new())))
            }
            Block::Reasoning => {
                let item = Item::Reasoning {
                    id: openai::underscored_id("rs"),
                    status,
                    summary: Vec::new(),
                    content: Vec::new(),
                    encrypted_content: None,
                };
                let text = String::new();
                (item, Some(Part::ReasoningText { text }))
            }
            Block::Call { name } => {
                let item = Item::FunctionCall {
                    id: openai::underscored_id("fc"),
                    status,
                    call_id: openai::underscored_id("call"),
                    name,
                    arguments: String::new(),
                };
                (item, None)
            }
        };
        self.response.output.push(item.clone());
        let output_index = self.response.output.len() - 1;
        events.push(EventKind::ItemAdded { output_index, item });
        if let Some(part) = part {
            events.push(EventKind::PartAdded {
                at: self.at(),
                content_index: 0,
                part,
            });
        }
    }

    fn more(&mut self, delta: String, events: &mut Vec<EventKind>) {
        self.text.push_str(&delta);
        let (at, content_index) = (self.at(), 0);
        events.push(match self.response.output.last() {
            Some(Item::FunctionCall { .. }) => EventKind::ArgumentsDelta { at, delta },
            Some(Item::Reasoning { .. }) => EventKind::ReasoningDelta {
                at,
                content_index,
                delta,
            },
            _ => {
                let logprobs = std::mem::take(&mut self.pending_logprobs);
                self.logprobs.extend(logprobs.iter().cloned());
                EventKind::TextDelta {
                    at,
                    content_index,
                    delta,
                    logprobs,
                }
            }
        });
    }

    /// Writes the whole text into the item, which is only then a part of the response.
    fn close(&mut self, ended: ItemStatus, events: &mut Vec<EventKind>) {
        let text = std::mem::take(&mut self.text);
        let logprobs = std::mem::take(&mut self.logprobs);
        let (at, content_index) = (self.at(), 0);
        let output_index = at.output_index;
        let Some(item) = self.response.output.last_mut() else {
            return;
        };
        *item.status_mut() = ended;
        let part = match item {
            Item::Message { content, .. } => {
                let part = Part::output_text(text.clone(), logprobs.clone());
                content.push(part.clone());
                events.push(EventKind::TextDone {
                    at,
                    content_index,
                    text,
                    logprobs,
                });
                Some(part)
            }
            Item::Reasoning { content, .. } => {
                let part = Part::ReasoningText { text: text.clone() };
                content.push(part.clone());
                events.push(EventKind::ReasoningDone {
                    at,
                    content_index,
                    text,
                });
                Some(part)
            }
            Item::FunctionCall {
                name, arguments, ..
            } => {
                arguments.clone_from(&text);
                events.push(EventKind::ArgumentsDone {
                    at,
                    name: name.clone(),
                    arguments: text,
                });
                None
            }
            Item::FunctionCallOutput { .. } => None,
        };
        let item = item.clone();
        if let Some(part) = part {
            events.push(EventKind::PartDone {
                at: self.at(),
                content_index,
                part,
            });
        }
        events.push(EventKind::ItemDone { output_index, item });
    }

    /// The item that is open.
    fn at(&self) -> At {
        let output = &self.response.output;
        At {
            item_id: output
                .last()
                .map_or_else(String::new, |item| item.id().to_owned()),
            output_index: output.len().saturating_sub(1),
        }
    }

    fn snapshot(&self) -> Box<ResponseObject> {
        Box::new(self.response.clone())
    }

    fn numbered(&mut self, events: Vec<EventKind>) -> Vec<Event> {
        let number = |kind| {
            let sequence_number = self.num_events;
            self.num_events += 1;
            Event {
                kind,
                sequence_number,
            }
        };
        events.into_iter().map(number).collect()
    }
}

impl From<Token> for TokenLogprob {
    fn from(token: Token) -> Self {
        let top = token.top_tokens.into_iter().map(|top| TopLogprob {
            bytes: top.text.clone().into_bytes(),
            token: top.text,
            logprob: top.logprob,
        });
        Self {
            top_logprobs: top.collect(),
            bytes: token.text.clone().into_bytes(),
            token: token.text,
            logprob: token.logprob,
        }
    }
}

#[cfg(test)]
mod tests;
