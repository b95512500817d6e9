//! JSON schemas before they are compiled: read within limits, and cleared of what would loosen the guarantee.

use llguidance::JsonCompileOptions;
use serde_json::Value;

use super::GrammarError;

/// At most one space between the tokens of a JSON text, as TGI had it: a model cannot run off into white space.
const WHITESPACE: &str = " ";
const ANY_OBJECT: &str = r#"{"type":"object"}"#;

/// The schema of any JSON object.
pub(super) fn any_object() -> Result<Value, GrammarError> {
    read(ANY_OBJECT)
}

/// A schema from its text, with the compiler's options in it.
pub(super) fn read(text: &str) -> Result<Value, GrammarError> {
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
    // Replaces options in the client's schema, which could ask the compiler to be lenient.
    options.apply_to(&mut schema);
    Ok(schema)
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
