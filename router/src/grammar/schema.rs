//! JSON schemas before they are compiled: read within limits, and cleared of what would loosen the guarantee.

use llguidance::JsonCompileOptions;
use serde_json::Value;

use super::GrammarError;
use super::formats::tighten;

/// At most one space between the tokens of a JSON text, as TGI had it: a model cannot run off into white space.
const WHITESPACE: &str = " ";
const ANY_OBJECT: &str = r#"{"type":"object"}"#;

/// The schema of any JSON object.
pub(super) fn any_object() -> Result<Value, GrammarError> {
    read(ANY_OBJECT)
}

/// A schema from its text, with the compiler's options in it.
pub(super) fn read(text: &str) -> Result<Value, GrammarError> {
    let mut schema = read_open(text)?;
    if !composes(&schema) {
        close(&mut schema, true);
    }
    Ok(schema)
}

/// The same with objects as open as the client left them.
pub(super) fn read_open(text: &str) -> Result<Value, GrammarError> {
    let invalid = |error: serde_json::Error| GrammarError::Invalid(error.to_string());
    let schema: Value = serde_json::from_str(text).map_err(invalid)?;
    let mut schema = match schema {
        Value::Object(_) => schema,
        Value::Bool(true) => Value::Object(serde_json::Map::new()),
        other => {
            let reason = format!("a JSON schema must be an object. Given: {}", kind(&other));
            return Err(GrammarError::Invalid(reason));
        }
    };
    let options = JsonCompileOptions {
        whitespace_pattern: Some(WHITESPACE.to_owned()),
        ..JsonCompileOptions::default()
    };
    tighten(&mut schema);
    // Replaces options in the client's schema, which could ask the compiler to be lenient.
    options.apply_to(&mut schema);
    Ok(schema)
}

/// Keywords that hold schemas by name, and lists of schemas, which each describe a value of their own.
const BY_NAME: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
const OWN_VALUES: [&str; 4] = ["items", "prefixItems", "additionalProperties", "contains"];
const ALTERNATIVES: [&str; 2] = ["anyOf", "oneOf"];
/// Keywords beside which the properties of an object are not all that it may have.
const OPENING: [&str; 12] = [
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "dependentSchemas",
    "if",
    "minProperties",
    "not",
    "oneOf",
    "patternProperties",
    "propertyNames",
    "unevaluatedProperties",
];

/// An object whose properties are named has no others, unless the schema says so. Every value is still one of the schema's; but a model
/// left to itself would make up properties without end, and TGI never gave any.
fn close(schema: &mut Value, may_close: bool) {
    let Value::Object(fields) = schema else {
        return;
    };
    if may_close && names_all(fields) {
        fields.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    let shares = fields.contains_key("properties");
    for (keyword, value) in fields.iter_mut() {
        match keyword.as_str() {
            name if BY_NAME.contains(&name) => each(value, |schema| close(schema, true)),
            name if OWN_VALUES.contains(&name) && value.is_array() => {
                each(value, |schema| close(schema, true));
            }
            name if OWN_VALUES.contains(&name) => close(value, true),
            name if ALTERNATIVES.contains(&name) => {
                each(value, |schema| close(schema, may_close && !shares));
            }
            _ => {}
        }
    }
}

/// Parts of the schema are put together somewhere: a closed part would refuse what the others ask for.
fn composes(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => {
            let refers_and_adds = fields.contains_key("$ref")
                && ["properties", "required", "anyOf", "oneOf"]
                    .iter()
                    .any(|keyword| fields.contains_key(*keyword));
            refers_and_adds || fields.contains_key("allOf") || fields.values().any(composes)
        }
        Value::Array(items) => items.iter().any(composes),
        _ => false,
    }
}

fn names_all(fields: &serde_json::Map<String, Value>) -> bool {
    let Some(properties) = fields.get("properties").and_then(Value::as_object) else {
        return false;
    };
    let required = fields.get("required").and_then(Value::as_array);
    let is_named = |name: &Value| {
        name.as_str()
            .is_some_and(|name| properties.contains_key(name))
    };
    let is_open = OPENING.iter().any(|keyword| fields.contains_key(*keyword));
    !is_open && required.is_none_or(|names| names.iter().all(is_named))
}

/// Calls `visit` with every value of an object or a list.
pub(super) fn each(value: &mut Value, visit: impl FnMut(&mut Value)) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(visit),
        Value::Array(items) => items.iter_mut().for_each(visit),
        _ => {}
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_closed(schema: &Value) -> bool {
        schema["additionalProperties"] == Value::Bool(false)
    }

    fn read_back(schema: Value) -> Value {
        read(&schema.to_string()).unwrap()
    }

    #[test]
    fn objects_have_the_properties_that_are_named_and_no_others() {
        let point = json!({"type": "object", "properties": {"x": {"type": "number"}}});
        let schema = read_back(json!({
            "properties": {
                "a": point,
                "b": {"type": "array", "items": point},
                "c": {"anyOf": [point, {"type": "null"}]},
                "d": {"$ref": "#/$defs/point"},
            },
            "$defs": {"point": point},
        }));
        let properties = &schema["properties"];
        for closed in [
            &schema,
            &properties["a"],
            &properties["b"]["items"],
            &properties["c"]["anyOf"][0],
            &schema["$defs"]["point"],
        ] {
            assert!(is_closed(closed), "{closed}");
        }
    }

    #[test]
    fn an_object_that_may_need_other_properties_stays_open() {
        let named = json!({"a": {}});
        for open in [
            json!({"type": "object"}),
            json!({"properties": named, "required": ["a", "b"]}),
            json!({"properties": named, "additionalProperties": {"type": "string"}}),
            json!({"properties": named, "minProperties": 2}),
            json!({"properties": named, "allOf": [{"properties": {"b": {}}}]}),
            json!({"properties": named, "anyOf": [{"properties": {"b": {}}}]}),
        ] {
            let schema = read_back(open);
            assert!(!is_closed(&schema), "{schema}");
            assert!(
                !is_closed(&schema["anyOf"][0]) && !is_closed(&schema["allOf"][0]),
                "{schema}"
            );
        }
    }

    #[test]
    fn a_property_may_have_the_name_of_a_keyword() {
        let schema = read_back(
            json!({"properties": {"properties": {"type": "string"}, "anyOf": {"type": "object", "properties": {"a": {}}}}}),
        );
        assert!(is_closed(&schema));
        assert!(is_closed(&schema["properties"]["anyOf"]));
        assert!(schema["properties"].get("additionalProperties").is_none());
    }
}
