//! The tools of a response in OpenAI's flat shape, and which of them may be called. Only functions: there are no tools on the server.

use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::super::body::Object;
use super::super::conversation;
use crate::input::ValidationError;
use crate::types::{Tool, ToolChoice, ToolUse};

#[derive(Deserialize)]
#[serde(try_from = "AnyTool")]
pub struct TypedTool {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

/// A function that the model may call.
#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseTool)]
pub struct AnyTool {
    #[serde(rename = "type")]
    #[schema(example = "function")]
    kind: String,
    /// It is needed.
    name: Option<String>,
    description: Option<String>,
    /// A JSON schema of the arguments. Without one, any JSON object.
    parameters: Option<Value>,
    strict: Option<bool>,
}

impl TryFrom<AnyTool> for TypedTool {
    type Error = String;

    fn try_from(tool: AnyTool) -> Result<Self, String> {
        if tool.kind != "function" {
            let given = tool.kind;
            return Err(format!(
                "`type` of a tool must be function: there are no built-in tools. Given: {given}"
            ));
        }
        Ok(Self {
            name: tool.name.ok_or("missing field `name`")?,
            description: tool.description,
            parameters: tool.parameters,
            strict: tool.strict,
        })
    }
}

impl TypedTool {
    /// As the response object repeats it.
    pub fn object(&self) -> Value {
        json!({
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        })
    }

    fn tool(&self) -> Tool {
        conversation::tool(
            self.name.clone(),
            self.description.clone(),
            self.parameters.clone(),
        )
    }
}

/// `auto`: the model may call, and is the default. `none`: it must not. `required`: it must. An object names the tool that it must call, or
/// the tools that it may.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = ResponseToolChoice)]
pub enum TypedChoice {
    Word(String),
    #[schema(value_type = ChoiceObject)]
    Object(Object<ChoiceObject>),
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseToolChoiceObject)]
pub struct ChoiceObject {
    #[serde(rename = "type")]
    #[schema(example = "function")]
    kind: String,
    name: Option<String>,
    mode: Option<String>,
    #[schema(value_type = Option<Vec<NamedTool>>)]
    tools: Option<Vec<Object<NamedTool>>>,
}

#[derive(Deserialize, ToSchema)]
#[schema(as = ResponseNamedTool)]
struct NamedTool {
    #[serde(rename = "type")]
    #[schema(example = "function")]
    kind: Option<String>,
    name: String,
}

/// What may be called; `None`: nothing.
pub fn tool_use(
    given: &[Object<TypedTool>],
    choice: Option<&TypedChoice>,
    parallel: bool,
) -> Result<Option<ToolUse>, ValidationError> {
    let mut tools: Vec<Tool> = given.iter().map(|Object(tool)| tool.tool()).collect();
    let choice = match choice {
        None => Some(ToolChoice::Auto),
        Some(TypedChoice::Word(word)) => mode(word)?,
        Some(TypedChoice::Object(Object(choice))) => match choice.kind.as_str() {
            "function" => {
                let name = choice.name.clone();
                let name = name.ok_or_else(|| invalid("`tool_choice.name` is needed"))?;
                known(&tools, &name)?;
                Some(ToolChoice::Named(name))
            }
            "allowed_tools" => {
                let allowed = choice.tools.as_deref().unwrap_or_default();
                for Object(tool) in allowed {
                    if let Some(other) = tool.kind.as_deref().filter(|kind| *kind != "function") {
                        let reason =
                            format!("`tool_choice.tools` has only functions. Given: {other}");
                        return Err(invalid(reason));
                    }
                    known(&tools, &tool.name)?;
                }
                tools.retain(|tool| {
                    let mut names = allowed.iter().map(|Object(allowed)| &allowed.name);
                    names.any(|name| *name == tool.name)
                });
                mode(choice.mode.as_deref().unwrap_or("auto"))?
            }
            other => {
                return Err(invalid(format!(
                    "`tool_choice.type` must be function or allowed_tools. Given: {other}"
                )));
            }
        },
    };
    let Some(choice) = choice else {
        return Ok(None);
    };
    if tools.is_empty() {
        return match choice {
            ToolChoice::Auto => Ok(None),
            _ => Err(invalid("`tool_choice` needs `tools`")),
        };
    }
    Ok(Some(ToolUse {
        prompt: None,
        tools,
        choice,
        parallel,
    }))
}

/// As the response object repeats it.
pub fn choice_object(choice: Option<&TypedChoice>) -> Value {
    match choice {
        None => "auto".into(),
        Some(TypedChoice::Word(word)) => word.as_str().into(),
        Some(TypedChoice::Object(Object(choice))) if choice.kind == "function" => {
            json!({"type": "function", "name": choice.name})
        }
        Some(TypedChoice::Object(Object(choice))) => {
            let tools = choice.tools.as_deref().unwrap_or_default();
            let tool =
                |Object(tool): &Object<NamedTool>| json!({"type": "function", "name": tool.name});
            json!({
                "type": choice.kind,
                "mode": choice.mode.as_deref().unwrap_or("auto"),
                "tools": tools.iter().map(tool).collect::<Vec<_>>(),
            })
        }
    }
}

/// `None`: nothing may be called.
fn mode(word: &str) -> Result<Option<ToolChoice>, ValidationError> {
    match word {
        "auto" => Ok(Some(ToolChoice::Auto)),
        "required" => Ok(Some(ToolChoice::Required)),
        "none" => Ok(None),
        other => Err(invalid(format!(
            "`tool_choice` must be auto, required, none or an object. Given: {other}"
        ))),
    }
}

fn known(tools: &[Tool], name: &str) -> Result<(), ValidationError> {
    if tools.iter().any(|tool| tool.name == name) {
        return Ok(());
    }
    Err(invalid(format!(
        "`tool_choice` names a tool that is not in `tools`. Given: {name}"
    )))
}

fn invalid(reason: impl Into<String>) -> ValidationError {
    ValidationError::Invalid(reason.into())
}
