//! The body of `/v1/responses`, and what it asks for. What only OpenAI's own servers can do is refused by its name; hints that change
//! no answer (cache keys, tiers, users) are taken and, where the object has a place for them, repeated.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::Value as TemplateValue;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::body::{self, Object, OneOrMany, TextOr};
use super::super::conversation::Conversation;
use super::super::openai;
use super::super::openapi::described::ResponseInput;
use super::items::Item;
use super::object::{Asked, Reasoning, TextConfig};
use super::tools;
use crate::input::ValidationError;
use crate::types::{Chat, Grammar, Parameters, Prompt, Request};

const MAX_METADATA: usize = 16;

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseRequest)]
pub struct ResponseBody {
    /// Repeated in the answer; the served model answers whatever its name.
    pub model: Option<String>,
    /// What is answered. It is needed.
    #[schema(value_type = Option<ResponseInput>)]
    input: Option<TextOr<Object<Item>>>,
    /// What comes before the input, and is not kept for later turns.
    instructions: Option<String>,
    /// The response that this one continues.
    pub previous_response_id: Option<String>,
    /// Most tokens of the answer, reasoning included.
    #[schema(minimum = 1, example = 20)]
    max_output_tokens: Option<u32>,
    /// Repeated in the answer.
    max_tool_calls: Option<u32>,
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
    /// Taken from a token's logit for each time that it was generated.
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    /// Taken from a token's logit if it was generated before.
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    /// The same seed draws the same tokens.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// What ends an answer, and is not a part of it.
    stop: Option<OneOrMany>,
    /// With `message.output_text.logprobs` in `include`: tell so many of the likeliest tokens at each place.
    top_logprobs: Option<u32>,
    include: Option<Vec<String>>,
    /// What the model may call.
    #[schema(value_type = Option<Vec<tools::AnyTool>>)]
    tools: Option<Vec<Object<tools::TypedTool>>>,
    /// Whether it may or must call.
    tool_choice: Option<tools::TypedChoice>,
    /// Calls of several tools in one answer.
    parallel_tool_calls: Option<bool>,
    /// What the text of the answer must be.
    #[schema(value_type = Option<TypedText>)]
    text: Option<Object<TypedText>>,
    #[schema(value_type = Option<TypedReasoning>)]
    reasoning: Option<Object<TypedReasoning>>,
    #[schema(example = "disabled")]
    truncation: Option<String>,
    /// Answer with events.
    pub stream: Option<bool>,
    /// Keep the response, which is the default.
    store: Option<bool>,
    /// Answer at once, and generate without the client.
    background: Option<bool>,
    /// At most 16 entries, repeated in the answer.
    metadata: Option<BTreeMap<String, String>>,
    user: Option<String>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
    // Read only to be refused.
    #[schema(ignore)]
    context_management: Option<IgnoredAny>,
    #[schema(ignore)]
    conversation: Option<IgnoredAny>,
    #[schema(ignore)]
    moderation: Option<IgnoredAny>,
    #[schema(ignore)]
    prompt: Option<IgnoredAny>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseTextRequest)]
struct TypedText {
    #[schema(value_type = Option<TypedFormat>)]
    format: Option<Object<TypedFormat>>,
    verbosity: Option<String>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseTextFormat)]
pub struct TypedFormat {
    #[serde(rename = "type")]
    #[schema(example = "json_schema")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    /// A JSON schema.
    schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseReasoningRequest)]
struct TypedReasoning {
    /// How much a model should think, for templates that know the word.
    effort: Option<String>,
}

/// A response that can be started.
pub struct Plan {
    pub request: Request,
    pub asked: Asked,
    /// What this request gave.
    pub input: Vec<Arc<Item>>,
    /// What the model is shown: earlier turns, then `input`.
    pub items: Vec<Arc<Item>>,
    pub wants_logprobs: bool,
}

impl ResponseBody {
    /// `earlier` is what was said up to `previous_response_id`.
    pub fn plan(mut self, earlier: Vec<Arc<Item>>) -> Result<Plan, ValidationError> {
        self.check()?;
        let input: Vec<Arc<Item>> = match self.input.take() {
            None => return Err(invalid("`input` is needed")),
            Some(TextOr::Text(text)) => vec![Arc::new(Item::user_text(text))],
            Some(TextOr::List(items)) => items
                .into_iter()
                .map(|Object(item)| Arc::new(item))
                .collect(),
        };
        let items: Vec<Arc<Item>> = earlier.into_iter().chain(input.iter().cloned()).collect();
        let chat = self.chat(&items)?;
        let wanted = "message.output_text.logprobs";
        let wants_logprobs = self.include.iter().flatten().any(|name| name == wanted);
        let request = self.request(chat, wants_logprobs)?;
        Ok(Plan {
            request,
            asked: self.asked(),
            input,
            items,
            wants_logprobs,
        })
    }

    fn check(&self) -> Result<(), ValidationError> {
        body::refuse_given(&[
            ("context_management", self.context_management.is_some()),
            ("conversation", self.conversation.is_some()),
            ("moderation", self.moderation.is_some()),
            ("prompt", self.prompt.is_some()),
        ])?;
        if let Some(other) = self
            .truncation
            .as_deref()
            .filter(|name| *name != "disabled")
        {
            let reason = format!("`truncation` supports only `disabled`. Given: {other}");
            return Err(invalid(reason));
        }
        let (background, stored) = (self.background == Some(true), self.store != Some(false));
        if background && !stored {
            return Err(invalid(
                "`background` needs `store`, or nobody could ask for the answer",
            ));
        }
        if background && self.stream == Some(true) {
            return Err(invalid("`stream` is not supported with `background`"));
        }
        let metadata = self.metadata.as_ref().map_or(0, BTreeMap::len);
        if metadata > MAX_METADATA {
            return Err(ValidationError::TooManyEntries {
                field: "metadata",
                max: MAX_METADATA,
                given: metadata,
            });
        }
        Ok(())
    }

    fn chat(&mut self, items: &[Arc<Item>]) -> Result<Chat, ValidationError> {
        let mut conversation = Conversation::default();
        if let Some(instructions) = &self.instructions {
            conversation.system(instructions.clone());
        }
        for item in items {
            item.say(&mut conversation);
        }
        if conversation.is_empty() {
            return Err(invalid("`input` is empty"));
        }
        let mut chat = conversation.into_chat();
        if let Some(effort) = self.effort() {
            let effort = effort.to_owned();
            let thinks = TemplateValue::from(effort != "none");
            chat.variables.push(("enable_thinking".to_owned(), thinks));
            chat.variables
                .push(("reasoning_effort".to_owned(), effort.into()));
        }
        let parallel = self.parallel_tool_calls.unwrap_or(true);
        let given = self.tools.as_deref().unwrap_or_default();
        chat.tools = tools::tool_use(given, self.tool_choice.as_ref(), parallel)?;
        Ok(chat)
    }

    fn request(&mut self, chat: Chat, wants_logprobs: bool) -> Result<Request, ValidationError> {
        let (mode, temperature) = openai::sampling(self.temperature);
        let parameters = Parameters {
            mode,
            temperature,
            top_p: self.top_p,
            top_k: self.top_k.map(i64::from),
            min_p: self.min_p,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            seed: self.seed,
            stop: self
                .stop
                .take()
                .map(OneOrMany::into_list)
                .unwrap_or_default(),
            max_new_tokens: self.max_output_tokens.map(u64::from),
            top_n_tokens: self.top_logprobs.filter(|_| wants_logprobs).map(u64::from),
            ..Parameters::default()
        };
        Ok(Request {
            prompt: Prompt::Chat(chat),
            streamed: self.stream == Some(true),
            keep_stop_text: false,
            parameters,
            grammar: self.grammar()?,
        })
    }

    fn grammar(&self) -> Result<Option<Grammar>, ValidationError> {
        let Some(format) = self.format() else {
            return Ok(None);
        };
        match format.kind.as_str() {
            "text" => Ok(None),
            "json_object" => Ok(Some(Grammar::JsonObject)),
            "json_schema" => match &format.schema {
                Some(schema) => Ok(Some(Grammar::JsonSchema(schema.to_string()))),
                None => Err(invalid("`text.format.schema` is needed")),
            },
            other => Err(invalid(format!(
                "`text.format.type` must be text, json_object or json_schema. Given: {other}"
            ))),
        }
    }

    fn asked(self) -> Asked {
        let effort = self.effort().map(str::to_owned);
        let format = match self.format() {
            Some(format) if format.kind == "json_schema" => json!({
                "type": "json_schema",
                "name": format.name.as_deref().unwrap_or("response"),
                "description": format.description,
                "schema": format.schema,
                "strict": format.strict,
            }),
            Some(format) => json!({"type": format.kind}),
            None => json!({"type": "text"}),
        };
        let given = self.tools.as_deref().unwrap_or_default();
        Asked {
            background: self.background.unwrap_or(false),
            instructions: self.instructions,
            max_output_tokens: self.max_output_tokens,
            max_tool_calls: self.max_tool_calls,
            metadata: self.metadata.unwrap_or_default(),
            parallel_tool_calls: self.parallel_tool_calls.unwrap_or(true),
            previous_response_id: self.previous_response_id,
            prompt_cache_key: self.prompt_cache_key,
            reasoning: Reasoning {
                effort,
                summary: None,
            },
            safety_identifier: self.safety_identifier,
            service_tier: "default",
            store: self.store.unwrap_or(true),
            temperature: self.temperature.unwrap_or(1.0),
            text: TextConfig {
                format,
                verbosity: self.text.and_then(|Object(text)| text.verbosity),
            },
            tool_choice: tools::choice_object(self.tool_choice.as_ref()),
            tools: given.iter().map(|Object(tool)| tool.object()).collect(),
            top_logprobs: self.top_logprobs.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            truncation: "disabled",
            user: self.user,
        }
    }

    fn format(&self) -> Option<&TypedFormat> {
        let Object(text) = self.text.as_ref()?;
        text.format.as_ref().map(|Object(format)| format)
    }

    fn effort(&self) -> Option<&str> {
        let Object(reasoning) = self.reasoning.as_ref()?;
        reasoning.effort.as_deref()
    }
}

fn invalid(reason: impl Into<String>) -> ValidationError {
    ValidationError::Invalid(reason.into())
}
