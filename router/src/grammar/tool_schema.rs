//! The schemas of tools, made ready for a grammar: arguments are always an object, and hold what the schema names and nothing else
//! unless it says so.

use serde_json::{Map, Value, json};

use super::{GrammarError, schema};
use crate::types::Tool;

/// Keys that put a schema together, beside which its properties are not all of it.
const COMBINATORS: [&str; 8] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "patternProperties",
    "unevaluatedProperties",
];
/// A top that refers to a top that refers ... is not followed further.
const MAX_REFERENCES: usize = 8;

/// Of the arguments of a tool.
pub(super) fn arguments(tool: &Tool) -> Result<Value, GrammarError> {
    let mut schema = object(tool)?;
    // The compiler's options are read at the top only.
    let options = schema::any_object()?;
    if let (Some(fields), Some(guidance)) = (schema.as_object_mut(), options.get("x-guidance")) {
        fields.insert("x-guidance".to_owned(), guidance.clone());
    }
    Ok(schema)
}

/// Of `{"function": {"_name": .., <arguments>}}` for any of the tools. With `may_answer` the function can also be `no_tool`, which
/// holds the answer in place of arguments.
pub(super) fn tgi_object(tools: &[&Tool], may_answer: bool) -> Result<Value, GrammarError> {
    let (mut functions, definitions) = in_one_schema(tools, with_name)?;
    if may_answer {
        functions.push(json!({
            "type": "object",
            "properties": {"_name": {"const": "no_tool"}, "content": {"type": "string"}},
            "required": ["_name", "content"],
            "additionalProperties": false,
        }));
    }
    let entries = json!({
        "properties": {"function": {"anyOf": functions}},
        "required": ["function"],
        "additionalProperties": false,
        "$defs": definitions,
    });
    with_options(entries)
}

/// Of `{"name": .., "parameters": {..}}` for any of the tools.
pub(super) fn named_object(tools: &[&Tool]) -> Result<Value, GrammarError> {
    let beside_name = |tool: &Tool, schema: Value| {
        Ok(json!({
            "type": "object",
            "properties": {"name": {"const": tool.name}, "parameters": schema},
            "required": ["name", "parameters"],
            "additionalProperties": false,
        }))
    };
    let (calls, definitions) = in_one_schema(tools, beside_name)?;
    with_options(json!({"anyOf": calls, "$defs": definitions}))
}

/// What holds each tool's arguments, and the schemas that refer to parts of their own, in their new home.
fn in_one_schema(
    tools: &[&Tool],
    hold: impl Fn(&Tool, Value) -> Result<Value, GrammarError>,
) -> Result<(Vec<Value>, Map<String, Value>), GrammarError> {
    let mut holders = Vec::new();
    let mut definitions = Map::new();
    for (idx, tool) in tools.iter().enumerate() {
        let mut schema = object(tool)?;
        let home = format!("tool_{idx}");
        if rebase(&mut schema, &format!("#/$defs/{home}")) {
            definitions.insert(home, schema.clone());
        }
        holders.push(hold(tool, schema)?);
    }
    Ok((holders, definitions))
}

/// A schema of objects with these keys, and the compiler's options.
fn with_options(entries: Value) -> Result<Value, GrammarError> {
    let mut whole = schema::any_object()?;
    if let (Some(fields), Value::Object(entries)) = (whole.as_object_mut(), entries) {
        fields.extend(entries);
    }
    Ok(whole)
}

/// The schema as the client wrote it, of an object and closed.
fn object(tool: &Tool) -> Result<Value, GrammarError> {
    let invalid = |reason: String| GrammarError::Invalid(format!("tool `{}`: {reason}", tool.name));
    let schema = schema::read(&tool.parameters).map_err(|error| invalid(error.to_string()))?;
    let mut schema = referred_top(schema);
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("x-guidance");
        let allows_objects = match fields.get("type") {
            None => true,
            Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
            Some(kind) => kind == "object",
        };
        if !allows_objects {
            return Err(invalid("the parameters must be an object".to_owned()));
        }
        fields.insert("type".to_owned(), json!("object"));
    }
    Ok(schema)
}

/// A schema that only refers to one of its parts is that part, with all parts still there; so is an alternative of the schema.
fn referred_top(schema: Value) -> Value {
    let mut top = referred(&schema, &schema);
    let Some(fields) = top.as_object_mut() else {
        return top;
    };
    for parts in ["$defs", "definitions"] {
        if let Some(all) = schema.get(parts) {
            fields.insert(parts.to_owned(), all.clone());
        }
    }
    for combined in ["anyOf", "oneOf"] {
        if let Some(Value::Array(alternatives)) = fields.get_mut(combined) {
            for alternative in alternatives {
                *alternative = referred(alternative, &schema);
            }
        }
    }
    top
}

/// What the part of a schema refers to; itself if that is not in the schema.
fn referred(part: &Value, schema: &Value) -> Value {
    let mut part = part;
    for _ in 0..MAX_REFERENCES {
        let target = part.get("$ref").and_then(Value::as_str);
        let pointer = target.and_then(|target| target.strip_prefix('#'));
        match pointer.and_then(|pointer| schema.pointer(pointer)) {
            Some(found @ Value::Object(_)) => part = found,
            _ => break,
        }
    }
    part.clone()
}

/// References to the schema's own parts lead to its new place. True if there are any.
fn rebase(schema: &mut Value, home: &str) -> bool {
    match schema {
        Value::Object(fields) => {
            let mut found = false;
            for (key, value) in fields {
                match value {
                    Value::String(target) if key == "$ref" && target.starts_with('#') => {
                        *target = format!("{home}{}", &target[1..]);
                        found = true;
                    }
                    value => found |= rebase(value, home),
                }
            }
            found
        }
        Value::Array(items) => {
            let mut found = false;
            for item in items {
                found |= rebase(item, home);
            }
            found
        }
        _ => false,
    }
}

/// The tool's name among its arguments, and before them.
fn with_name(tool: &Tool, mut schema: Value) -> Result<Value, GrammarError> {
    let name = json!({"const": tool.name});
    let combined: Vec<&str> = COMBINATORS
        .into_iter()
        .filter(|key| schema.get(key).is_some())
        .collect();
    if let (&["anyOf" | "oneOf"], None) = (&combined[..], schema.get("properties"))
        && let Some(Value::Array(alternatives)) = schema.get(combined[0])
    {
        let alternatives = alternatives.iter().cloned();
        let named: Result<Vec<Value>, _> = alternatives
            .map(|alternative| with_name(tool, alternative))
            .collect();
        return Ok(json!({"type": "object", "anyOf": named?}));
    }
    if !combined.is_empty() {
        // A part that allows nothing beside its own properties refuses the name; the compiler says so.
        let own = json!({"properties": {"_name": name}, "required": ["_name"]});
        return Ok(json!({"type": "object", "allOf": [own, schema]}));
    }
    if let Some(fields) = schema.as_object_mut() {
        let mut properties = Map::from_iter([("_name".to_owned(), name)]);
        if let Some(Value::Object(own)) = fields.remove("properties") {
            if own.contains_key("_name") {
                let reason = "`_name` cannot be a parameter of this model's tools";
                return Err(GrammarError::Invalid(format!(
                    "tool `{}`: {reason}",
                    tool.name
                )));
            }
            properties.extend(own);
        } else {
            fields.entry("additionalProperties").or_insert(json!(true));
        }
        let mut required = vec![json!("_name")];
        if let Some(Value::Array(own)) = fields.remove("required") {
            required.extend(own);
        }
        fields.insert("properties".to_owned(), Value::Object(properties));
        fields.insert("required".to_owned(), Value::Array(required));
    }
    Ok(schema)
}
