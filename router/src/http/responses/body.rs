//! The body of `/v1/responses`, and what it asks for. What only OpenAI's own servers can do is refused by its name; hints that change
//! no answer (cache keys, tiers, users) are taken and, where the object has a place for them, repeated.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::Value as TemplateValue;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::super::body::{self, Object, OneOrMany, TextOr};
use super::super::conversation::Conversation;
use super::super::openai;
use super::items::Item;
use super::object::{Asked, Reasoning, TextConfig};
use super::tools;
use crate::input::ValidationError;
use crate::types::{Chat, Grammar, Parameters, Prompt, Request};

const MAX_METADATA: usize = 16;

#[derive(Deserialize)]
pub struct ResponseBody {
    pub model: Option<String>,
    input: Option<TextOr<Object<Item>>>,
    instructions: Option<String>,
    pub previous_response_id: Option<String>,
    max_output_tokens: Option<u32>,
    max_tool_calls: Option<u32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i32>,
    min_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    seed: Option<u64>,
    stop: Option<OneOrMany>,
    top_logprobs: Option<u32>,
    include: Option<Vec<String>>,
    tools: Option<Vec<Object<tools::TypedTool>>>,
    tool_choice: Option<tools::TypedChoice>,
    parallel_tool_calls: Option<bool>,
    text: Option<Object<TypedText>>,
    reasoning: Option<Object<TypedReasoning>>,
    truncation: Option<String>,
    pub stream: Option<bool>,
    store: Option<bool>,
    background: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
    user: Option<String>,
    safety_identifier: Option<String>,
    prompt_cache_key: Option<String>,
    // Read only to be refused.
    context_management: Option<IgnoredAny>,
    conversation: Option<IgnoredAny>,
    moderation: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct TypedText {
    format: Option<Object<TypedFormat>>,
    verbosity: Option<String>,
}

#[derive(Deserialize)]
struct TypedFormat {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Deserialize)]
struct TypedReasoning {
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
