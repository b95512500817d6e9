//! The body of `/v1/messages`, and the `Request` it asks for. What only Anthropic's own servers can do is refused by its name; hints that
//! change no answer (cache control, tiers, users) are ignored.

use minijinja::Value as TemplateValue;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use utoipa::ToSchema;

use super::super::body::{self, Object, TextOr};
use super::super::conversation;
use super::super::openai;
use super::super::openapi::described::AnthropicText;
use super::content::{self, TextBlock, TypedMessage};
use crate::input::ValidationError;
use crate::types::{Chat, Grammar, Parameters, Prompt, Request, Tool, ToolChoice, ToolUse};

#[derive(Deserialize, ToSchema)]
#[schema(as = AnthropicRequest)]
pub struct MessagesBody {
    /// Repeated in the answer; the served model answers whatever its name.
    pub model: Option<String>,
    /// Most tokens of the answer. Needed for an answer, not for a count.
    #[schema(minimum = 1, example = 20)]
    max_tokens: Option<u32>,
    /// The conversation. A last message of the assistant is continued.
    #[schema(value_type = Vec<TypedMessage>)]
    messages: Vec<Object<TypedMessage>>,
    /// Instructions that come before the conversation.
    #[schema(value_type = Option<AnthropicText>)]
    system: Option<TextOr<TextBlock>>,
    /// What the model may call.
    #[schema(value_type = Option<Vec<AnyTool>>)]
    tools: Option<Vec<Object<TypedTool>>>,
    /// Whether it may or must call.
    #[schema(value_type = Option<TypedChoice>)]
    tool_choice: Option<Object<TypedChoice>>,
    /// Whether a model that can should think before it answers.
    #[schema(value_type = Option<Thinking>)]
    thinking: Option<Object<Thinking>>,
    /// What ends an answer, and is not a part of it.
    pub stop_sequences: Option<Vec<String>>,
    /// 0 takes the likeliest tokens; below 1 likely tokens become likelier, above 1 less so.
    #[schema(minimum = 0)]
    temperature: Option<f64>,
    /// Choose among the likeliest tokens that together have this probability. 1 is off.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Choose among so many likeliest tokens. 0 is off.
    #[schema(minimum = 0)]
    top_k: Option<i32>,
    /// Choose among tokens that have at least this share of the likeliest one's probability.
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    /// The same seed draws the same tokens.
    #[schema(format = "uint64")]
    seed: Option<u64>,
    /// Answer with events.
    pub stream: Option<bool>,
    #[schema(value_type = Option<OutputConfig>)]
    output_config: Option<Object<OutputConfig>>,
    /// The older place of `output_config.format`.
    #[schema(value_type = Option<OutputFormat>)]
    output_format: Option<Object<OutputFormat>>,
    // Read only to be refused.
    #[schema(ignore)]
    container: Option<IgnoredAny>,
    #[schema(ignore)]
    context_management: Option<IgnoredAny>,
    #[schema(ignore)]
    mcp_servers: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(try_from = "AnyTool")]
struct TypedTool(Tool);

#[derive(Deserialize, ToSchema)]
#[schema(as = AnthropicTool)]
struct AnyTool {
    #[serde(rename = "type")]
    #[schema(example = "custom")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    /// A JSON schema of the input. It is needed.
    input_schema: Option<Value>,
}

impl TryFrom<AnyTool> for TypedTool {
    type Error = String;

    fn try_from(tool: AnyTool) -> Result<Self, String> {
        match tool.kind.as_deref() {
            None | Some("custom") => {}
            Some(other) => {
                return Err(format!(
                    "`type` of a tool must be custom: there are no tools on the server. Given: {other}"
                ));
            }
        }
        let schema = tool.input_schema.ok_or("missing field `input_schema`")?;
        Ok(Self(conversation::tool(
            tool.name,
            tool.description,
            Some(schema),
        )))
    }
}

#[derive(Deserialize, ToSchema)]
#[schema(as = AnthropicToolChoice)]
struct TypedChoice {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: ChoiceKind,
    /// Of the tool that must be called.
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ChoiceKind {
    Auto,
    Any,
    Tool,
    None,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = AnthropicThinking)]
struct Thinking {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: ThinkingKind,
    /// Most tokens of thinking.
    budget_tokens: Option<u64>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ThinkingKind {
    Enabled,
    Disabled,
    Adaptive,
    BetweenTools,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = AnthropicOutputConfig)]
struct OutputConfig {
    /// How much a model should think, for templates that know the word.
    effort: Option<String>,
    #[schema(value_type = Option<OutputFormat>)]
    format: Option<Object<OutputFormat>>,
}

/// What the text of an answer must be.
#[derive(Deserialize, ToSchema)]
#[schema(as = AnthropicOutputFormat)]
struct OutputFormat {
    #[serde(rename = "type")]
    #[schema(inline)]
    kind: FormatKind,
    /// A JSON schema.
    schema: Value,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum FormatKind {
    JsonSchema,
}

impl MessagesBody {
    pub fn request(mut self) -> Result<Request, ValidationError> {
        let Some(max_tokens) = self.max_tokens else {
            return Err(invalid("`max_tokens` is needed"));
        };
        let grammar = self.grammar();
        let (streamed, stop) = (self.stream == Some(true), self.stop_sequences.take());
        let (mode, temperature) = openai::sampling(self.temperature);
        let parameters = Parameters {
            mode,
            temperature,
            top_p: self.top_p,
            // Anthropic's clients send 0 for "all".
            top_k: self.top_k.filter(|top_k| *top_k != 0).map(i64::from),
            min_p: self.min_p,
            seed: self.seed,
            max_new_tokens: Some(u64::from(max_tokens)),
            stop: stop.unwrap_or_default(),
            ..Parameters::default()
        };
        Ok(Request {
            prompt: Prompt::Chat(self.chat()?),
            streamed,
            keep_stop_text: false,
            parameters,
            grammar,
        })
    }

    /// What the template is given.
    pub fn prompt(self) -> Result<Prompt, ValidationError> {
        Ok(Prompt::Chat(self.chat()?))
    }

    fn chat(self) -> Result<Chat, ValidationError> {
        let mcp_servers = self.mcp_servers.as_deref().unwrap_or_default();
        body::refuse_given(&[
            ("container", self.container.is_some()),
            ("context_management", self.context_management.is_some()),
            ("mcp_servers", !mcp_servers.is_empty()),
        ])?;
        if self.messages.is_empty() {
            return Err(invalid("`messages` must not be empty"));
        }
        let budget = budget(self.thinking.as_ref(), self.max_tokens)?;
        let thinks = matches!(
            &self.thinking,
            Some(Object(thinking)) if !matches!(thinking.kind, ThinkingKind::Disabled)
        );
        let effort = self.output_config.and_then(|Object(config)| config.effort);
        let tools = tool_use(self.tools.unwrap_or_default(), self.tool_choice)?;
        let mut conversation =
            content::conversation(self.system, self.messages).map_err(invalid)?;
        let continue_final = conversation.continue_final()?;
        let mut chat = conversation.into_chat();
        chat.continue_final = continue_final;
        chat.tools = tools;
        chat.reasoning_budget = budget;
        // Who does not ask for thinking does not expect blocks of it.
        let variable = ("enable_thinking".to_owned(), TemplateValue::from(thinks));
        chat.variables.push(variable);
        if let Some(effort) = effort {
            let variable = ("reasoning_effort".to_owned(), effort.into());
            chat.variables.push(variable);
        }
        Ok(chat)
    }

    fn grammar(&self) -> Option<Grammar> {
        let of_config = self.output_config.as_ref();
        let format = of_config
            .and_then(|Object(config)| config.format.as_ref())
            .or(self.output_format.as_ref());
        let Object(format) = format?;
        match format.kind {
            FormatKind::JsonSchema => Some(Grammar::JsonSchema(format.schema.to_string())),
        }
    }
}

fn budget(
    thinking: Option<&Object<Thinking>>,
    max_tokens: Option<u32>,
) -> Result<Option<u64>, ValidationError> {
    let Some(Object(thinking)) = thinking else {
        return Ok(None);
    };
    let ThinkingKind::Enabled = thinking.kind else {
        return Ok(None);
    };
    let Some(budget) = thinking.budget_tokens else {
        return Err(invalid("`thinking.budget_tokens` is needed"));
    };
    let max = max_tokens.map_or(u64::MAX, u64::from);
    if (1..max).contains(&budget) {
        return Ok(Some(budget));
    }
    let reason =
        format!("`thinking.budget_tokens` must be > 0 and less than `max_tokens`. Given: {budget}");
    Err(invalid(reason))
}

fn tool_use(
    tools: Vec<Object<TypedTool>>,
    choice: Option<Object<TypedChoice>>,
) -> Result<Option<ToolUse>, ValidationError> {
    let tools: Vec<Tool> = tools
        .into_iter()
        .map(|Object(TypedTool(tool))| tool)
        .collect();
    let Some(Object(choice)) = choice else {
        return Ok((!tools.is_empty()).then_some(ToolUse {
            prompt: None,
            tools,
            choice: ToolChoice::Auto,
            parallel: true,
        }));
    };
    let chosen = match choice.kind {
        ChoiceKind::None => return Ok(None),
        _ if tools.is_empty() => return Err(invalid("`tool_choice` needs `tools`")),
        ChoiceKind::Auto => ToolChoice::Auto,
        ChoiceKind::Any => ToolChoice::Required,
        ChoiceKind::Tool => {
            let name = choice.name;
            let name = name.ok_or_else(|| invalid("`tool_choice.name` is needed"))?;
            if !tools.iter().any(|tool| tool.name == name) {
                let reason = format!(
                    "`tool_choice.name` names a tool that is not in `tools`. Given: {name}"
                );
                return Err(invalid(reason));
            }
            ToolChoice::Named(name)
        }
    };
    Ok(Some(ToolUse {
        prompt: None,
        tools,
        choice: chosen,
        parallel: choice.disable_parallel_tool_use != Some(true),
    }))
}

fn invalid(reason: impl Into<String>) -> ValidationError {
    ValidationError::Invalid(reason.into())
}
