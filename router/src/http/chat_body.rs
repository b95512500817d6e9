//! The body of `/v1/chat/completions`, and the `Request` it asks for.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;

use super::body::{LogitBias, Object, OneOrMany};
use super::openai::{self, StreamOptions};
use crate::input::ValidationError;
use crate::types::{Chat, Parameters, Prompt, Request};

#[derive(Deserialize)]
pub struct ChatBody {
    pub messages: Vec<Object<Message>>,
    pub model: Option<String>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    logit_bias: Option<LogitBias>,
    pub logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    min_tokens: Option<u32>,
    ignore_eos: Option<bool>,
    n: Option<u32>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u64>>,
    pub stream: Option<bool>,
    pub stream_options: Option<Object<StreamOptions>>,
    seed: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i32>,
    min_p: Option<f64>,
    response_format: Option<Object<ResponseFormat>>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    documents: Option<Vec<Value>>,
    /// Further variables of the template.
    chat_template_kwargs: Option<Value>,
}

#[derive(Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

/// A message has content, or calls of tools.
#[derive(Deserialize)]
#[serde(try_from = "TypedMessage")]
pub struct Message {
    role: String,
    content: Option<String>,
    others: Vec<(&'static str, Value)>,
}

#[derive(Deserialize)]
struct TypedMessage {
    role: String,
    content: Option<Content>,
    name: Option<String>,
    tool_calls: Option<Value>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text { text: String },
    ImageUrl { image_url: ImageUrl },
}

#[derive(Deserialize)]
struct ImageUrl {
    url: String,
}

impl Content {
    /// Parts are joined without anything between them. A text model is shown where an image was.
    fn into_text(self) -> String {
        let text = |part: Part| match part {
            Part::Text { text } => text,
            Part::ImageUrl { image_url } => format!("![]({})", image_url.url),
        };
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(text).collect(),
        }
    }
}

impl TryFrom<TypedMessage> for Message {
    type Error = &'static str;

    fn try_from(typed: TypedMessage) -> Result<Self, Self::Error> {
        if typed.content.is_none() && typed.tool_calls.is_none() {
            return Err("a message needs `content` or `tool_calls`");
        }
        let others = [
            ("name", typed.name.map(Value::from)),
            ("tool_calls", typed.tool_calls),
            ("tool_call_id", typed.tool_call_id.map(Value::from)),
        ];
        Ok(Self {
            role: typed.role,
            content: typed.content.map(Content::into_text),
            others: others
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
        })
    }
}

impl From<Message> for Value {
    fn from(message: Message) -> Self {
        let own = [
            ("role", Value::from(message.role)),
            (
                "content",
                message.content.map_or(Value::from(()), Value::from),
            ),
        ];
        Value::from_pairs(own.into_iter().chain(message.others))
    }
}

/// The conversation as the template sees it. A final message of the assistant is continued.
pub fn conversation(messages: Vec<Object<Message>>) -> Chat {
    let last = messages.last().map(|Object(message)| message);
    let continue_final = last
        .filter(|message| message.role == "assistant")
        .and_then(|message| message.content.clone());
    Chat {
        continue_final,
        messages: messages
            .into_iter()
            .map(|Object(message)| Value::from(message))
            .collect(),
        variables: Vec::new(),
        tools: None,
        reasoning_budget: None,
    }
}

pub fn request(body: ChatBody, streamed: bool) -> Result<Request, ValidationError> {
    let no_tools = body.tools.as_ref().is_none_or(Vec::is_empty)
        || body.tool_choice.as_ref().and_then(Value::as_str) == Some("none");
    if !no_tools {
        return Err(ValidationError::Unsupported("tools"));
    }
    if matches!(&body.response_format, Some(Object(format)) if format.kind != "text") {
        return Err(ValidationError::Unsupported("response_format"));
    }
    if body.messages.is_empty() {
        let reason = "`messages` cannot be empty".to_owned();
        return Err(ValidationError::Invalid(reason));
    }
    let mut chat = conversation(body.messages);
    if let Some(documents) = body.documents {
        let documents = documents.into_iter().collect();
        chat.variables.push(("documents".to_owned(), documents));
    }
    chat.variables
        .extend(template_variables(body.chat_template_kwargs)?);
    let (mode, temperature) = openai::sampling(body.temperature);
    let parameters = Parameters {
        mode,
        temperature,
        top_k: body.top_k.map(i64::from),
        top_p: body.top_p,
        typical_p: None,
        min_p: body.min_p,
        repetition_penalty: body.repetition_penalty,
        frequency_penalty: body.frequency_penalty,
        presence_penalty: body.presence_penalty,
        logit_bias: body
            .logit_bias
            .map_or(Ok(Vec::new()), LogitBias::into_entries)?,
        seed: body.seed,
        best_of: None,
        n: body.n.map(u64::from),
        max_new_tokens: body
            .max_completion_tokens
            .or(body.max_tokens)
            .map(u64::from),
        min_new_tokens: body.min_tokens.map(u64::from),
        ignore_eos: body.ignore_eos.unwrap_or(false),
        stop: body.stop.map(OneOrMany::into_list).unwrap_or_default(),
        stop_token_ids: body.stop_token_ids.unwrap_or_default(),
        truncate: None,
        top_n_tokens: body.top_logprobs.map(u64::from),
        prompt_logprobs: false,
        watermark: false,
    };
    Ok(Request {
        prompt: Prompt::Chat(chat),
        streamed,
        keep_stop_text: false,
        parameters,
        grammar: None,
    })
}

fn template_variables(given: Option<Value>) -> Result<Vec<(String, Value)>, ValidationError> {
    let not_an_object =
        || ValidationError::Invalid("`chat_template_kwargs` must be an object".to_owned());
    let Some(given) = given.filter(|given| !given.is_none()) else {
        return Ok(Vec::new());
    };
    if given.kind() != ValueKind::Map {
        return Err(not_an_object());
    }
    let names = given.try_iter().map_err(|_| not_an_object())?;
    let variable = |name: Value| {
        let value = given.get_item(&name).map_err(|_| not_an_object())?;
        Ok((name.to_string(), value))
    };
    names.map(variable).collect()
}
