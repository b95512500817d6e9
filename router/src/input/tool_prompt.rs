//! Tools for models whose chat template shows none: the definitions become text of the last message that is not the assistant's, and
//! earlier calls become the text of their message. Chats without tools stay as they are. The words are TGI's, so that such a model sees what it saw there.

use minijinja::Value;
use serde::Serialize;

use super::template_traits::TemplateTraits;
use crate::types::message_format::ToolFormat;
use crate::types::{Tool, ToolChoice, ToolUse};

const DEFAULT_PROMPT: &str = "\nGiven the functions available, please respond with a JSON for a function call with its proper arguments that best answers the given prompt. Respond in the format {name: function name, parameters: dictionary of argument name and its value}.Do not use variables.\n";

/// Behind `call_`.
const OUR_ID_DIGITS: usize = 24;
const SHORT_ID_LEN: usize = 9;

#[derive(Serialize)]
struct Definition<'a> {
    r#type: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    description: Option<String>,
    name: &'a str,
    /// JSON text, also where it was an object.
    arguments: String,
}

#[derive(Serialize)]
struct PastCall<'a> {
    id: Value,
    r#type: &'static str,
    function: Function<'a>,
}

/// The messages and the tools that the template gets.
pub(super) fn apply(
    messages: &Value,
    tools: Option<&ToolUse>,
    traits: &TemplateTraits,
) -> (Vec<Value>, Option<Value>) {
    let mut messages: Vec<Value> = messages
        .try_iter()
        .map(Iterator::collect)
        .unwrap_or_default();
    if traits.tool_format == ToolFormat::MistralList {
        messages = messages.into_iter().map(with_short_ids).collect();
    }
    let Some(tools) = tools else {
        return (messages, None);
    };
    let messages = if traits.shows_calls {
        messages
    } else {
        messages.into_iter().map(with_calls_as_text).collect()
    };
    let text = match (traits.shows_tools, traits.tool_format, &tools.prompt) {
        (false, _, prompt) => {
            let prompt = prompt.as_deref().unwrap_or(DEFAULT_PROMPT);
            Some(format!("\n---\n{}\n{prompt}", definitions(tools)))
        }
        (true, ToolFormat::Tgi, None) => Some(format!("\n{DEFAULT_PROMPT}")),
        (true, _, prompt) => prompt.as_ref().map(|prompt| format!("\n{prompt}")),
    };
    let messages = match text {
        Some(text) => with_text(messages, &text),
        None => messages,
    };
    let shown = tools.tools.iter().map(|tool| tool.definition.clone());
    (messages, traits.shows_tools.then(|| shown.collect()))
}

/// JSON of what may be called, and of a way out where nothing has to be.
fn definitions(tools: &ToolUse) -> String {
    let may_call = |tool: &&Tool| match &tools.choice {
        ToolChoice::Named(name) => tool.name == *name,
        ToolChoice::Auto | ToolChoice::Required => true,
    };
    let mut list: Vec<_> = tools
        .tools
        .iter()
        .filter(may_call)
        .map(definition)
        .collect();
    if tools.choice == ToolChoice::Auto {
        list.push(Definition {
            r#type: "function",
            function: Function {
                description: Some("Open ended response with no specific tool selected".to_owned()),
                name: "no_tool",
                arguments: r#"{"type":"object"}"#.to_owned(),
            },
        });
    }
    json(&list)
}

fn definition(tool: &Tool) -> Definition<'_> {
    let described = field(&field(&tool.definition, "function"), "description");
    Definition {
        r#type: "function",
        function: Function {
            description: described.as_str().map(str::to_owned),
            name: &tool.name,
            arguments: tool.parameters.clone(),
        },
    }
}

/// A message whose calls are its content.
fn with_calls_as_text(message: Value) -> Value {
    let calls = field(&message, "tool_calls");
    let Ok(calls) = calls.try_iter() else {
        return message;
    };
    let calls: Vec<Value> = calls.collect();
    if calls.is_empty() {
        return message;
    }
    let functions: Vec<(Value, Value, String)> = calls
        .iter()
        .map(|call| {
            let function = field(call, "function");
            let name = field(&function, "name").to_string();
            (field(call, "id"), function, name)
        })
        .collect();
    let past = functions.iter().map(|(id, function, name)| PastCall {
        id: id.clone(),
        r#type: "function",
        function: Function {
            description: field(function, "description").as_str().map(str::to_owned),
            name,
            arguments: arguments_text(&field(function, "arguments")),
        },
    });
    let text = json(&past.collect::<Vec<_>>());
    let said = field(&message, "content");
    match said.as_str() {
        Some(said) if !said.is_empty() => with_content(&message, format!("{said}\n{text}")),
        _ => with_content(&message, text),
    }
}

/// Templates of Mistral insist on ids of nine letters and digits; ours are longer, and differ at their end.
fn with_short_ids(message: Value) -> Value {
    let message = with_field(&message, "tool_call_id", short_id);
    with_field(&message, "tool_calls", |calls| {
        let short = |calls: &Value| {
            let calls = calls.try_iter().ok()?;
            Some(
                calls
                    .map(|call| with_field(&call, "id", short_id))
                    .collect(),
            )
        };
        short(&calls).unwrap_or(calls)
    })
}

fn short_id(id: Value) -> Value {
    let ours = id.as_str().and_then(|text| text.strip_prefix("call_"));
    let digits = ours.filter(|digits| {
        digits.len() == OUR_ID_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    digits.map_or(id.clone(), |digits| {
        Value::from(&digits[OUR_ID_DIGITS - SHORT_ID_LEN..])
    })
}

fn arguments_text(arguments: &Value) -> String {
    match arguments.as_str() {
        Some(text) => text.to_owned(),
        None => json(arguments),
    }
}

fn with_text(mut messages: Vec<Value>, text: &str) -> Vec<Value> {
    let is_asked = |message: &Value| field(message, "role").as_str() != Some("assistant");
    match messages.iter().rposition(is_asked) {
        Some(at) => {
            let said = field(&messages[at], "content");
            let said = said.as_str().unwrap_or_default();
            messages[at] = with_content(&messages[at], format!("{said}{text}"));
        }
        None => {
            let fields = [("role", "system"), ("content", text.trim_start())];
            messages.insert(0, Value::from_pairs(fields));
        }
    }
    messages
}

fn with_content(message: &Value, content: String) -> Value {
    let content = Value::from(content);
    if field(message, "content").is_undefined() {
        let names = message.try_iter().into_iter().flatten();
        let others = names.map(|name| (name.clone(), message.get_item(&name).unwrap_or_default()));
        return Value::from_pairs(others.chain([(Value::from("content"), content)]));
    }
    with_field(message, "content", |_| content.clone())
}

/// The map with one of its values replaced, if it has it.
fn with_field(map: &Value, name: &str, replace: impl Fn(Value) -> Value) -> Value {
    if field(map, name).is_undefined() {
        return map.clone();
    }
    let entry = |key: Value| {
        let value = map.get_item(&key).unwrap_or_default();
        let replaced = key.as_str() == Some(name);
        let value = if replaced { replace(value) } else { value };
        (key, value)
    };
    let keys = map.try_iter().into_iter().flatten();
    Value::from_pairs(keys.map(entry))
}

/// Undefined where there is none.
fn field(value: &Value, name: &str) -> Value {
    value.get_attr(name).unwrap_or_default()
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TRAITS: TemplateTraits = TemplateTraits {
        shows_tools: false,
        shows_calls: false,
        tool_format: ToolFormat::Tgi,
        reasoning: None,
    };

    fn value(json: &str) -> Value {
        serde_json::from_str(json).unwrap()
    }

    fn tools(choice: ToolChoice) -> ToolUse {
        let tool = |name: &str| Tool {
            name: name.to_owned(),
            parameters: r#"{"type":"object"}"#.to_owned(),
            definition: value(r#"{"type": "function", "function": {"description": "It's it"}}"#),
        };
        ToolUse {
            tools: vec![tool("add"), tool("ping")],
            choice,
            parallel: true,
            prompt: Some("PICK".to_owned()),
        }
    }

    fn contents(messages: &str, tools: Option<&ToolUse>, traits: &TemplateTraits) -> Vec<String> {
        let (messages, _) = apply(&value(messages), tools, traits);
        messages
            .iter()
            .map(|message| field(message, "content"))
            .map(|content| {
                content
                    .as_str()
                    .map_or_else(|| "None".to_owned(), str::to_owned)
            })
            .collect()
    }

    const ADD: &str = r#"{"type":"function","function":{"description":"It's it","name":"add","arguments":"{\"type\":\"object\"}"}}"#;

    #[test]
    fn definitions_follow_the_last_question() {
        let messages = r#"[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]"#;
        let named = tools(ToolChoice::Named("add".to_owned()));
        let contents = contents(messages, Some(&named), &NO_TRAITS);
        assert_eq!(contents[0], "a");
        assert_eq!(contents[1], format!("b\n---\n[{ADD}]\nPICK"));
    }

    #[test]
    fn a_message_to_be_continued_stays_as_it_is() {
        let messages =
            r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]"#;
        let contents = contents(messages, Some(&tools(ToolChoice::Required)), &NO_TRAITS);
        assert!(contents[0].starts_with("a\n---\n["));
        assert_eq!(contents[1], "b");
    }

    #[test]
    fn a_way_out_is_offered_where_no_call_is_required() {
        let auto = contents(
            r#"[{"role": "user", "content": "a"}]"#,
            Some(&tools(ToolChoice::Auto)),
            &NO_TRAITS,
        );
        assert!(auto[0].contains(r#""name":"no_tool","arguments":"{\"type\":\"object\"}""#));
    }

    #[test]
    fn a_template_with_tools_gets_them_and_the_messages_unchanged() {
        let shows = TemplateTraits {
            shows_tools: true,
            shows_calls: true,
            tool_format: ToolFormat::Hermes,
            ..NO_TRAITS
        };
        let mut tools = tools(ToolChoice::Auto);
        tools.prompt = None;
        let (messages, shown) = apply(
            &value(r#"[{"role": "user", "content": "a"}]"#),
            Some(&tools),
            &shows,
        );
        assert_eq!(field(&messages[0], "content").as_str(), Some("a"));
        assert_eq!(shown.unwrap().len(), Some(2));
    }

    #[test]
    fn our_ids_become_short_for_templates_of_mistral() {
        let mistral = TemplateTraits {
            shows_tools: true,
            shows_calls: true,
            tool_format: ToolFormat::MistralList,
            ..NO_TRAITS
        };
        let messages = r#"[{"role": "assistant", "tool_calls": [{"id": "call_0123456789abcdef00000012"}, {"id": "call_1"}]},
            {"role": "tool", "tool_call_id": "call_0123456789abcdef00000012", "content": "a"}]"#;
        let (messages, _) = apply(&value(messages), None, &mistral);
        let calls = field(&messages[0], "tool_calls");
        let id = |idx: usize| field(&calls.get_item_by_index(idx).unwrap(), "id");
        assert_eq!(id(0).as_str(), Some("f00000012"));
        assert_eq!(id(1).as_str(), Some("call_1"));
        assert_eq!(
            field(&messages[1], "tool_call_id").as_str(),
            Some("f00000012")
        );
        let hermes = TemplateTraits {
            tool_format: ToolFormat::Hermes,
            ..mistral
        };
        let kept = r#"[{"role": "tool", "tool_call_id": "call_0123456789abcdef00000012"}]"#;
        let (kept, _) = apply(&value(kept), None, &hermes);
        assert_eq!(
            field(&kept[0], "tool_call_id").as_str().map(str::len),
            Some(29)
        );
    }

    #[test]
    fn earlier_calls_become_text_for_a_template_that_ignores_them() {
        let messages = r#"[{"role": "assistant", "content": null, "tool_calls": [
            {"id": "0", "function": {"name": "add", "arguments": {"a": 1}}}]}, {"role": "user"}]"#;
        let said = |tools: Option<&ToolUse>, traits: &TemplateTraits| {
            contents(messages, tools, traits).swap_remove(0)
        };
        let tools = tools(ToolChoice::Auto);
        let expected = r#"[{"id":"0","type":"function","function":{"description":null,"name":"add","arguments":"{\"a\":1}"}}]"#;
        assert_eq!(said(Some(&tools), &NO_TRAITS), expected);
        assert_eq!(said(None, &NO_TRAITS), "None");
        let shows = TemplateTraits {
            shows_calls: true,
            ..NO_TRAITS
        };
        assert_eq!(said(Some(&tools), &shows), "None");
    }
}
