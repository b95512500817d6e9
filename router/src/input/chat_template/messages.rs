//! The messages as transformers hands them to a template, and a final message that is left open.

use minijinja::Value;
use minijinja::value::ValueKind;

use crate::input::python;

/// Stands behind the text that is continued, as in transformers; its last space tells whether the template trims the text.
const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Names of a message's reasoning; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// With the tag where `continue_final` ends.
pub fn for_template(messages: &Value, continue_final: Option<&str>) -> Value {
    let messages = messages.try_iter().into_iter().flatten();
    let mut messages: Vec<Value> = messages.map(|message| with_reasoning(&message)).collect();
    if let (Some(text), Some(last)) = (continue_final, messages.last_mut()) {
        let text = format!("{}{TAG}", text.trim_end());
        *last = with(last, "content", tagged(&content(last), text));
    }
    python::from_json(&Value::from(messages))
}

/// Reasoning under every name that a template may read.
fn with_reasoning(message: &Value) -> Value {
    if message.kind() != ValueKind::Map {
        return message.clone();
    }
    let field = |name: &&str| message.get_attr(name).unwrap_or_default();
    let given = REASONING.iter().map(field);
    let Some(reasoning) = given
        .into_iter()
        .find(|value| !value.is_none() && !value.is_undefined())
    else {
        return message.clone();
    };
    let message = match message.get_attr("thinking") {
        Ok(thinking) if !thinking.is_undefined() => message.clone(),
        _ => {
            let first = [(Value::from("thinking"), reasoning.clone())];
            Value::from_pairs(first.into_iter().chain(fields(message)))
        }
    };
    with(&message, "reasoning_content", reasoning)
}

fn content(message: &Value) -> Value {
    message.get_attr("content").unwrap_or_default()
}

fn fields(map: &Value) -> impl Iterator<Item = (Value, Value)> {
    let keys = map.try_iter().into_iter().flatten();
    keys.map(|key| {
        let value = map.get_item(&key).unwrap_or_default();
        (key, value)
    })
}

/// The map with another value under `name`, in its place if it has one.
fn with(map: &Value, name: &str, value: Value) -> Value {
    Value::from_pairs(fields(map).chain([(Value::from(name), value)]))
}

/// The content with `text` as its text, or as that of its last part of text.
fn tagged(content: &Value, text: String) -> Value {
    if !matches!(content.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Value::from(text);
    }
    let mut parts: Vec<Value> = content.try_iter().into_iter().flatten().collect();
    let has_text = |part: &&mut Value| part.get_attr("text").is_ok_and(|text| !text.is_undefined());
    if let Some(part) = parts.iter_mut().rev().find(has_text) {
        *part = with(part, "text", Value::from(text));
    }
    Value::from(parts)
}

/// Ends the rendered chat where the tag is.
pub fn cut_after(mut rendered: String, message: &str) -> Result<String, String> {
    let missing = "the final assistant message is not part of the rendered chat";
    let tag = TAG.trim_end();
    if !rendered.contains(message.trim()) {
        return Err(missing.to_owned());
    }
    let Some(start) = rendered.rfind(tag) else {
        return Err(missing.to_owned());
    };
    let is_trimmed = !rendered[start..].starts_with(TAG);
    rendered.truncate(start);
    if is_trimmed {
        rendered.truncate(rendered.trim_end().len());
    }
    Ok(rendered)
}
