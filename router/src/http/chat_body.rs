//! The body of `/v1/chat/completions`, and the `Request` it asks for.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::Deserialize;
use serde::de::IgnoredAny;
use utoipa::ToSchema;

use super::body::{self, LogitBias, Object, OneOrMany, TextOr};
use super::chat_tools::{self, ToolBody, ToolChoiceBody, ToolFields};
use super::grammar::AnswerFormat;
use super::openai::{self, StreamOptions};
use super::openapi::described::{self, AnyFormat};
use crate::input::ValidationError;
use crate::types::{Chat, Parameters, Prompt, Request};

#[derive(Deserialize, ToSchema)]
#[schema(as = ChatRequest)]
pub struct ChatBody {
    /// The conversation. A last message of the assistant is continued.
    #[schema(value_type = Vec<described::Message>)]
    pub messages: Vec<Object<Message>>,
    /// Repeated in the answer; the served model answers whatever its name.
    #[schema(example = "tgi")]
    pub model: Option<String>,
    /// Taken from a token's logit for each time that it was generated.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Taken from a token's logit if it was generated before.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// Above 1, tokens of the prompt and of the answer become less likely.
    #[schema(exclusive_minimum = 0)]
    repetition_penalty: Option<f64>,
    /// Added to the logits of tokens.
    logit_bias: Option<LogitBias>,
    /// Tell the log-probability of each token.
    pub logprobs: Option<bool>,
    /// Tell so many of the likeliest tokens at each place.
    top_logprobs: Option<u32>,
    /// Most tokens of an answer. `max_completion_tokens` wins over it.
    #[schema(minimum = 1, example = 20)]
    max_tokens: Option<u32>,
    /// Most tokens of an answer.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    /// So many tokens come before the end of text may.
    min_tokens: Option<u32>,
    /// Go on after the model's end of text.
    ignore_eos: Option<bool>,
    /// Answers.
    #[schema(minimum = 1)]
    n: Option<u32>,
    /// What ends an answer, and is not a part of it.
    stop: Option<OneOrMany>,
    /// Tokens that end an answer, besides the model's own.
    stop_token_ids: Option<Vec<u64>>,
    /// Answer with an event for each token.
    pub stream: Option<bool>,
    #[schema(value_type = Option<StreamOptions>)]
    pub stream_options: Option<Object<StreamOptions>>,
    /// The same seed draws the same tokens.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// 0 takes the likeliest tokens; below 1 likely tokens become likelier, above 1 less so.
    #[schema(minimum = 0)]
    temperature: Option<f64>,
    /// Choose among the likeliest tokens that together have this probability. 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Choose among so many likeliest tokens.
    #[schema(minimum = 1)]
    top_k: Option<i32>,
    /// Choose among tokens that have at least this share of the likeliest one's probability.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// What the content of the answer must be.
    #[schema(value_type = Option<AnyFormat>)]
    response_format: Option<AnswerFormat>,
    /// What the model may call.
    #[schema(value_type = Option<Vec<described::Tool>>)]
    pub tools: Option<Vec<ToolBody>>,
    /// Whether it may or must call.
    #[schema(value_type = Option<described::ToolChoice>)]
    tool_choice: Option<ToolChoiceBody>,
    /// Instructions about the tools, for templates that know none.
    tool_prompt: Option<String>,
    /// Calls of several tools in one answer.
    parallel_tool_calls: Option<bool>,
    /// How much a model should think, for templates that know the word.
    reasoning_effort: Option<String>,
    /// Most tokens of reasoning.
    thinking_budget: Option<u64>,
    /// Documents that the chat template shows to the model.
    documents: Option<Vec<Value>>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Value>,
    modalities: Option<Vec<String>>,
    // Read only to be refused. What changes no answer (`store`, `user`, `prediction`, ...) is not read at all.
    #[schema(ignore)]
    audio: Option<IgnoredAny>,
    #[schema(ignore)]
    function_call: Option<IgnoredAny>,
    #[schema(ignore)]
    functions: Option<IgnoredAny>,
    #[schema(ignore)]
    moderation: Option<IgnoredAny>,
    #[schema(ignore)]
    web_search_options: Option<IgnoredAny>,
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
    content: Option<TextOr<Part>>,
    name: Option<String>,
    tool_calls: Option<Value>,
    tool_call_id: Option<String>,
    reasoning_content: Option<String>,
}

/// A part of a message. A model that sees only text is shown an image's address.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = MessageChunk)]
pub enum Part {
    Text { text: String },
    Refusal { refusal: String },
    ImageUrl { image_url: ImageUrl },
}

#[derive(Deserialize, ToSchema)]
#[schema(as = Url)]
pub struct ImageUrl {
    url: String,
}

/// Parts are joined without anything between them. A text model is shown where an image was.
fn joined(content: TextOr<Part>) -> String {
    let text = |part: Part| match part {
        Part::Text { text } | Part::Refusal { refusal: text } => text,
        Part::ImageUrl { image_url } => format!("![]({})", image_url.url),
    };
    match content {
        TextOr::Text(text) => text,
        TextOr::List(parts) => parts.into_iter().map(text).collect(),
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
            (
                "tool_calls",
                typed.tool_calls.map(chat_tools::with_arguments_as_objects),
            ),
            ("tool_call_id", typed.tool_call_id.map(Value::from)),
            (
                "reasoning_content",
                typed.reasoning_content.map(Value::from),
            ),
        ];
        Ok(Self {
            role: typed.role,
            content: typed.content.map(joined),
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
fn conversation(messages: Vec<Object<Message>>) -> Chat {
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

impl ChatBody {
    /// What the template is given, which is taken from the body.
    pub fn take_chat(&mut self) -> Result<Chat, ValidationError> {
        let mut chat = conversation(std::mem::take(&mut self.messages));
        let tools = ToolFields {
            tools: self.tools.take(),
            choice: self.tool_choice.take(),
            parallel: self.parallel_tool_calls,
            prompt: self.tool_prompt.take(),
        };
        chat.tools = tools.into_use()?;
        chat.reasoning_budget = self.thinking_budget;
        let documents = self.documents.take().map(Value::from_iter);
        let effort = self.reasoning_effort.take().map(Value::from);
        let own = [("documents", documents), ("reasoning_effort", effort)];
        for (name, value) in own {
            let value = value.map(|value| (name.to_owned(), value));
            chat.variables.extend(value);
        }
        let given = template_variables(self.chat_template_kwargs.take())?;
        chat.variables.extend(given);
        Ok(chat)
    }
}

pub fn request(mut body: ChatBody, streamed: bool) -> Result<Request, ValidationError> {
    let modalities = body.modalities.as_deref().unwrap_or_default();
    body::refuse_given(&[
        ("audio", body.audio.is_some()),
        // What `tools` and `tool_choice` took the place of, with answers of another shape.
        ("function_call", body.function_call.is_some()),
        ("functions", body.functions.is_some()),
        ("modalities", modalities.iter().any(|name| name != "text")),
        ("moderation", body.moderation.is_some()),
        ("web_search_options", body.web_search_options.is_some()),
    ])?;
    if body.messages.is_empty() {
        let reason = "`messages` cannot be empty".to_owned();
        return Err(ValidationError::Invalid(reason));
    }
    let chat = body.take_chat()?;
    let format = body.response_format.map(AnswerFormat::into_grammar);
    let grammar = format.transpose()?.flatten();
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
        grammar,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_assistant_thought_earlier_reaches_the_template() {
        let body = r#"{"messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "reasoning_content": "Hm.", "tool_calls": []},
            {"role": "user", "content": "c"}
        ]}"#;
        let mut body: ChatBody = serde_json::from_str(body).unwrap();
        let chat = body.take_chat().unwrap();
        let message = |idx: usize| chat.messages.get_item(&Value::from(idx)).unwrap();
        assert_eq!(message(0).get_attr("content").unwrap(), Value::from("ab"));
        let thought = message(1).get_attr("reasoning_content").unwrap();
        assert_eq!(thought, Value::from("Hm."));
    }

    #[test]
    fn functions_are_refused_because_tools_took_their_place() {
        for field in [
            r#""functions": [{"name": "f"}]"#,
            r#""function_call": "auto""#,
        ] {
            let body = format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], {field}}}"#);
            let body: ChatBody = serde_json::from_str(&body).unwrap();
            let error = request(body, false).unwrap_err().to_string();
            assert!(error.contains("is not supported"), "{error}");
        }
    }
}
