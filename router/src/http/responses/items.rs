//! Items: what goes into and comes out of a response, and what is stored of both. Messages, reasoning, calls of functions and their
//! outputs; all other kinds need tools that run on the server, and there are none.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::super::body::TextOr;
use super::super::conversation::Conversation;
use super::super::openai;
use super::super::openapi::described::ResponseContent;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", try_from = "TypedItem")]
#[schema(as = ResponseItem)]
pub enum Item {
    Message {
        id: String,
        status: ItemStatus,
        role: Role,
        content: Vec<Part>,
    },
    Reasoning {
        id: String,
        status: ItemStatus,
        summary: Vec<Part>,
        content: Vec<Part>,
        encrypted_content: Option<String>,
    },
    FunctionCall {
        id: String,
        status: ItemStatus,
        call_id: String,
        name: String,
        arguments: String,
    },
    FunctionCallOutput {
        id: String,
        status: ItemStatus,
        call_id: String,
        output: Output,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResponseItemStatus)]
pub enum ItemStatus {
    InProgress,
    #[default]
    Completed,
    Incomplete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResponseRole)]
pub enum Role {
    User,
    Assistant,
    System,
    Developer,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponsePart)]
pub enum Part {
    InputText {
        text: String,
    },
    OutputText {
        text: String,
        #[serde(default)]
        annotations: Vec<Value>,
        #[serde(default, deserialize_with = "unread")]
        logprobs: Vec<TokenLogprob>,
    },
    Refusal {
        refusal: String,
    },
    ReasoningText {
        text: String,
    },
    SummaryText {
        text: String,
    },
}

/// Log-probabilities that a client gives back are not the server's any more.
fn unread<'de, D: Deserializer<'de>>(given: D) -> Result<Vec<TokenLogprob>, D::Error> {
    IgnoredAny::deserialize(given)?;
    Ok(Vec::new())
}

impl Part {
    pub fn text(&self) -> &str {
        match self {
            Self::InputText { text }
            | Self::OutputText { text, .. }
            | Self::ReasoningText { text }
            | Self::SummaryText { text }
            | Self::Refusal { refusal: text } => text,
        }
    }

    pub fn output_text(text: String, logprobs: Vec<TokenLogprob>) -> Self {
        Self::OutputText {
            text,
            annotations: Vec::new(),
            logprobs,
        }
    }
}

/// What a function gave back.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = ResponseFunctionOutput)]
pub enum Output {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponseLogprob)]
pub struct TokenLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponseTopLogprob)]
pub struct TopLogprob {
    pub token: String,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

/// An item as a client types it. Which fields it needs depends on its type; without one it is a message.
#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseInputItem)]
pub struct TypedItem {
    #[serde(rename = "type")]
    #[schema(example = "message")]
    kind: Option<String>,
    id: Option<String>,
    status: Option<ItemStatus>,
    role: Option<Role>,
    #[schema(value_type = Option<ResponseContent>)]
    content: Option<TextOr<Part>>,
    summary: Option<Vec<Part>>,
    encrypted_content: Option<String>,
    call_id: Option<String>,
    name: Option<String>,
    /// JSON text of an object.
    arguments: Option<String>,
    #[schema(value_type = Option<ResponseContent>)]
    output: Option<TextOr<Part>>,
}

impl TryFrom<TypedItem> for Item {
    type Error = String;

    fn try_from(typed: TypedItem) -> Result<Self, String> {
        let kind = typed.kind.clone();
        match kind.as_deref() {
            None | Some("message") => typed.into_message(),
            Some("reasoning") => Ok(typed.into_reasoning()),
            Some("function_call") => typed.into_call(),
            Some("function_call_output") => typed.into_call_output(),
            Some(other) => Err(format!(
                "`type` must be message, reasoning, function_call or function_call_output. Given: {other}"
            )),
        }
    }
}

impl TypedItem {
    fn id(&mut self, prefix: &str) -> String {
        self.id
            .take()
            .unwrap_or_else(|| openai::underscored_id(prefix))
    }

    fn into_message(mut self) -> Result<Item, String> {
        let role = needed(self.role, "role")?;
        let content = match needed(self.content.take(), "content")? {
            TextOr::List(parts) => parts,
            TextOr::Text(text) if role == Role::Assistant => {
                vec![Part::output_text(text, Vec::new())]
            }
            TextOr::Text(text) => vec![Part::InputText { text }],
        };
        Ok(Item::Message {
            id: self.id("msg"),
            status: self.status.unwrap_or_default(),
            role,
            content,
        })
    }

    fn into_reasoning(mut self) -> Item {
        Item::Reasoning {
            id: self.id("rs"),
            status: self.status.unwrap_or_default(),
            summary: self.summary.take().unwrap_or_default(),
            content: match self.content.take() {
                Some(TextOr::List(parts)) => parts,
                Some(TextOr::Text(text)) => vec![Part::ReasoningText { text }],
                None => Vec::new(),
            },
            encrypted_content: self.encrypted_content,
        }
    }

    fn into_call(mut self) -> Result<Item, String> {
        Ok(Item::FunctionCall {
            id: self.id("fc"),
            status: self.status.unwrap_or_default(),
            call_id: needed(self.call_id, "call_id")?,
            name: needed(self.name, "name")?,
            arguments: needed(self.arguments, "arguments")?,
        })
    }

    fn into_call_output(mut self) -> Result<Item, String> {
        Ok(Item::FunctionCallOutput {
            id: self.id("fco"),
            status: self.status.unwrap_or_default(),
            call_id: needed(self.call_id, "call_id")?,
            output: match needed(self.output, "output")? {
                TextOr::Text(text) => Output::Text(text),
                TextOr::List(parts) => Output::Parts(parts),
            },
        })
    }
}

fn needed<T>(value: Option<T>, field: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("missing field `{field}`"))
}

impl Item {
    pub fn id(&self) -> &str {
        match self {
            Self::Message { id, .. }
            | Self::Reasoning { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::FunctionCallOutput { id, .. } => id,
        }
    }

    pub fn status_mut(&mut self) -> &mut ItemStatus {
        match self {
            Self::Message { status, .. }
            | Self::Reasoning { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::FunctionCallOutput { status, .. } => status,
        }
    }

    pub fn user_text(text: String) -> Self {
        Self::Message {
            id: openai::underscored_id("msg"),
            status: ItemStatus::Completed,
            role: Role::User,
            content: vec![Part::InputText { text }],
        }
    }

    /// Adds the item to what the model is shown.
    pub fn say(&self, conversation: &mut Conversation) {
        match self {
            Self::Message { role, content, .. } => {
                let text = joined(content);
                match role {
                    Role::User => conversation.user(text),
                    Role::System | Role::Developer => conversation.system(text),
                    Role::Assistant => conversation.assistant(&text),
                }
            }
            Self::Reasoning { content, .. } => conversation.reasoning(&joined(content)),
            Self::FunctionCall {
                call_id,
                name,
                arguments,
                ..
            } => {
                // Arguments that are not JSON came from an answer that was cut off.
                let arguments = serde_json::from_str(arguments)
                    .unwrap_or_else(|_| Value::from(arguments.as_str()));
                conversation.call(call_id.clone(), name.clone(), arguments);
            }
            Self::FunctionCallOutput {
                call_id, output, ..
            } => {
                let text = match output {
                    Output::Text(text) => text.clone(),
                    Output::Parts(parts) => joined(parts),
                };
                conversation.tool_result(call_id.clone(), text);
            }
        }
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        let parts = |parts: &[Part]| -> usize { parts.iter().map(part_bytes).sum() };
        let own = match self {
            Self::Message { content, .. } => parts(content),
            Self::Reasoning {
                summary,
                content,
                encrypted_content,
                ..
            } => {
                let encrypted = encrypted_content.as_ref().map_or(0, String::len);
                parts(summary) + parts(content) + encrypted
            }
            Self::FunctionCall {
                name, arguments, ..
            } => name.len() + arguments.len(),
            Self::FunctionCallOutput { output, .. } => match output {
                Output::Text(text) => text.len(),
                Output::Parts(list) => parts(list),
            },
        };
        own + self.id().len() + size_of::<Self>()
    }
}

fn part_bytes(part: &Part) -> usize {
    let extra = match part {
        Part::OutputText {
            annotations,
            logprobs,
            ..
        } => {
            let annotations: usize = annotations
                .iter()
                .map(|value| value.to_string().len())
                .sum();
            let tops: usize = logprobs.iter().map(|token| token.top_logprobs.len()).sum();
            annotations + (logprobs.len() + tops) * 2 * size_of::<TokenLogprob>()
        }
        _ => 0,
    };
    part.text().len() + extra + size_of::<Part>()
}

fn joined(parts: &[Part]) -> String {
    parts.iter().map(Part::text).collect()
}
