//! The tools of a chat as clients write them, in OpenAI's shape and with TGI's liberties, and the calls in earlier messages.

use std::collections::HashSet;

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::body::{self, Object};
use crate::input::ValidationError;
use crate::types::{Tool, ToolChoice, ToolUse};

const MAX_TOOLS: usize = 128;
const MAX_NAME_BYTES: usize = 64;

pub struct ToolBody {
    kind: String,
    name: String,
    /// All of it, for the template.
    definition: Value,
}

#[derive(Deserialize)]
struct TypedTool {
    #[serde(rename = "type")]
    kind: String,
    function: Object<FunctionBody>,
}

#[derive(Deserialize)]
struct FunctionBody {
    name: String,
}

impl<'de> Deserialize<'de> for ToolBody {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let tool: TypedTool = body::parse(&json)?;
        Ok(Self {
            kind: tool.kind,
            name: tool.function.0.name,
            definition: serde_json::from_str(json.get()).map_err(D::Error::custom)?,
        })
    }
}

/// A word, the bare name of a tool as TGI allowed it, or OpenAI's object.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum ToolChoiceBody {
    Word(String),
    Named(Object<NamedChoice>),
}

#[derive(Deserialize)]
pub struct NamedChoice {
    #[serde(rename = "type")]
    _kind: FunctionKind,
    function: Object<FunctionBody>,
}

#[derive(Deserialize)]
enum FunctionKind {
    #[serde(rename = "function")]
    Function,
}

/// What of a chat's body is about tools.
pub struct ToolFields {
    pub tools: Option<Vec<ToolBody>>,
    pub choice: Option<ToolChoiceBody>,
    pub parallel: Option<bool>,
    pub prompt: Option<String>,
}

impl ToolFields {
    /// `None` where there is nothing to call, or nothing may be called.
    pub fn into_use(self) -> Result<Option<ToolUse>, ValidationError> {
        let tools = self.tools.unwrap_or_default();
        let choice = match self.choice {
            None => ToolChoice::Auto,
            Some(ToolChoiceBody::Word(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => ToolChoice::Auto,
                "required" => ToolChoice::Required,
                _ => ToolChoice::Named(word),
            },
            Some(ToolChoiceBody::Named(Object(named))) => ToolChoice::Named(named.function.0.name),
        };
        if tools.is_empty() {
            return Ok(None);
        }
        check(&tools)?;
        let used = ToolUse {
            tools: tools.into_iter().map(tool).collect(),
            choice,
            parallel: self.parallel.unwrap_or(true),
            prompt: self.prompt,
        };
        match &used.choice {
            ToolChoice::Named(name) if !used.tools.iter().any(|tool| tool.name == *name) => {
                Err(ValidationError::ToolNotFound(name.clone()))
            }
            _ => Ok(Some(used)),
        }
    }
}

fn check(tools: &[ToolBody]) -> Result<(), ValidationError> {
    if tools.len() > MAX_TOOLS {
        return Err(ValidationError::TooManyEntries {
            field: "tools",
            max: MAX_TOOLS,
            given: tools.len(),
        });
    }
    let mut names = HashSet::new();
    for (idx, tool) in tools.iter().enumerate() {
        let refuse = |field: &str, reason: &str| {
            let field = format!("`tools[{idx}].{field}`");
            Err(ValidationError::Invalid(format!("{field} {reason}")))
        };
        if tool.kind != "function" {
            return refuse("type", "must be \"function\"");
        }
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        let len = tool.name.len();
        if !(1..=MAX_NAME_BYTES).contains(&len) || !tool.name.bytes().all(is_allowed) {
            let reason = "must be 1 to 64 letters, digits, underscores, dashes or dots";
            return refuse("function.name", reason);
        }
        if !names.insert(tool.name.as_str()) {
            return refuse("function.name", "is the name of an earlier tool too");
        }
    }
    Ok(())
}

fn tool(body: ToolBody) -> Tool {
    let function = body.definition.get_attr("function").unwrap_or_default();
    // TGI called them `arguments`.
    let given = ["parameters", "arguments"]
        .into_iter()
        .filter_map(|name| function.get_attr(name).ok())
        .find(|schema| !schema.is_undefined() && !schema.is_none());
    let schema = given.and_then(|schema| serde_json::to_string(&schema).ok());
    Tool {
        name: body.name,
        parameters: schema.unwrap_or_else(|| r#"{"type":"object"}"#.to_owned()),
        definition: body.definition,
    }
}

/// Calls of an earlier message. Templates read arguments as an object; OpenAI's clients send them as text.
pub fn with_arguments_as_objects(calls: Value) -> Value {
    if calls.kind() != ValueKind::Seq {
        return calls;
    }
    let calls = calls.try_iter().into_iter().flatten();
    calls
        .map(|call| {
            change(&call, "function", |function| {
                change(&function, "arguments", parsed)
            })
        })
        .collect()
}

fn parsed(arguments: Value) -> Value {
    let object = arguments
        .as_str()
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .filter(|value| value.kind() == ValueKind::Map);
    object.unwrap_or(arguments)
}

/// The map with one of its values replaced, if it has it.
fn change(map: &Value, name: &str, replace: impl Fn(Value) -> Value) -> Value {
    let Ok(names) = map.try_iter().map(Iterator::collect::<Vec<Value>>) else {
        return map.clone();
    };
    if map.kind() != ValueKind::Map {
        return map.clone();
    }
    let entry = |key: Value| {
        let value = map.get_item(&key).unwrap_or_default();
        let value = match key.as_str() {
            Some(key) if key == name => replace(value),
            _ => value,
        };
        (key, value)
    };
    Value::from_pairs(names.into_iter().map(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(tools: &str, choice: &str) -> Result<Option<ToolUse>, ValidationError> {
        let fields = ToolFields {
            tools: serde_json::from_str(tools).unwrap(),
            choice: serde_json::from_str(choice).unwrap(),
            parallel: None,
            prompt: None,
        };
        fields.into_use()
    }

    const ADD: &str =
        r#"{"type": "function", "function": {"name": "add", "parameters": {"b": 1, "a": [1.5]}}}"#;

    #[test]
    fn the_choice_is_a_word_a_name_or_an_object() {
        let choice = |choice: &str| {
            let used = fields(&format!("[{ADD}]"), choice).unwrap();
            used.map(|used| used.choice)
        };
        let named = Some(ToolChoice::Named("add".to_owned()));
        assert_eq!(choice("null"), Some(ToolChoice::Auto));
        assert_eq!(choice("\"auto\""), Some(ToolChoice::Auto));
        assert_eq!(choice("\"required\""), Some(ToolChoice::Required));
        assert_eq!(choice("\"none\""), None);
        assert_eq!(choice("\"add\""), named);
        let object = r#"{"type": "function", "function": {"name": "add"}}"#;
        assert_eq!(choice(object), named);
        assert_eq!(
            fields(&format!("[{ADD}]"), "\"sub\"").unwrap_err(),
            ValidationError::ToolNotFound("sub".to_owned())
        );
    }

    #[test]
    fn a_choice_without_tools_means_nothing() {
        assert!(fields("null", "\"required\"").unwrap().is_none());
        assert!(fields("[]", "\"sub\"").unwrap().is_none());
    }

    #[test]
    fn parameters_keep_their_order_and_may_be_missing() {
        let parameters = |tools: &str| {
            let used = fields(tools, "null").unwrap().unwrap();
            used.tools[0].parameters.clone()
        };
        assert_eq!(parameters(&format!("[{ADD}]")), r#"{"b":1,"a":[1.5]}"#);
        let none = r#"[{"type": "function", "function": {"name": "ping"}}]"#;
        assert_eq!(parameters(none), r#"{"type":"object"}"#);
        let null = r#"[{"type": "function", "function": {"name": "ping", "parameters": null}}]"#;
        assert_eq!(parameters(null), r#"{"type":"object"}"#);
    }

    #[test]
    fn refusals_name_the_tool_and_the_field() {
        let refused = |tools: &str| fields(tools, "null").unwrap_err().to_string();
        let named =
            |name: &str| format!(r#"{{"type": "function", "function": {{"name": "{name}"}}}}"#);
        assert!(refused(&format!("[{ADD}, {ADD}]")).starts_with("`tools[1].function.name`"));
        assert!(refused(&format!("[{}]", named(""))).starts_with("`tools[0].function.name`"));
        assert!(refused(&format!("[{}]", named("a b"))).contains("letters"));
        assert!(refused(&format!("[{}]", named(&"a".repeat(65)))).contains("64"));
        let other = r#"[{"type": "web_search", "function": {"name": "a"}}]"#;
        assert!(refused(other).starts_with("`tools[0].type`"));
        let many: Vec<String> = (0..129).map(|idx| named(&format!("t{idx}"))).collect();
        let expected = "`tools` supports up to 128 entries. Given: 129";
        assert_eq!(refused(&format!("[{}]", many.join(","))), expected);
    }

    #[test]
    fn arguments_of_earlier_calls_become_objects() {
        let calls = |json: &str| {
            let calls: Value = serde_json::from_str(json).unwrap();
            serde_json::to_string(&with_arguments_as_objects(calls)).unwrap()
        };
        assert_eq!(
            calls(r#"[{"id": "0", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]"#),
            r#"[{"id":"0","function":{"name":"f","arguments":{"a":1}}}]"#
        );
        let odd = r#"[{"function":{"arguments":"no json"}},{"function":1},2]"#;
        assert_eq!(calls(odd), odd);
        assert_eq!(calls("{}"), "{}");
    }
}
