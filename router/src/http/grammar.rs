//! How clients ask for a grammar: `grammar` of the native routes and `response_format` of the chat route, in TGI's and OpenAI's shapes.

use serde::Deserialize;
use serde_json::Value;

use crate::grammar::GrammarError;
use crate::input::ValidationError;
use crate::types::Grammar;

/// Keywords by which a schema without `properties` says something about its values all the same.
const TELLING_KEYWORDS: [&str; 8] = [
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "oneOf",
    "patternProperties",
];

/// The form of an answer. TGI puts what belongs to the type into `value`; OpenAI's schema comes in `json_schema`.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnswerFormat {
    /// Anything.
    Text,
    /// A JSON value that fits a schema, which may be given as text.
    Json { value: Value },
    /// Any JSON object; with a `value`, the same as `json`.
    JsonObject { value: Option<Value> },
    /// A JSON value that fits a schema with a name.
    JsonSchema {
        value: Option<SchemaOfTgi>,
        json_schema: Option<NamedSchema>,
    },
    /// A text that a regular expression matches as a whole.
    Regex { value: String },
    /// One of several texts.
    Choice { value: Vec<String> },
    /// A text of a grammar in Lark's language, as llguidance reads it.
    Lark { value: String },
}

#[derive(Deserialize)]
pub struct SchemaOfTgi {
    schema: Value,
}

#[derive(Deserialize)]
pub struct NamedSchema {
    /// Where there is none, any object will do.
    schema: Option<Value>,
}

impl AnswerFormat {
    /// `None`: any text.
    pub fn into_grammar(self) -> Result<Option<Grammar>, ValidationError> {
        Ok(Some(match self {
            Self::Text => return Ok(None),
            Self::Json { value } | Self::JsonObject { value: Some(value) } => schema_of_tgi(value)?,
            Self::JsonObject { value: None } => Grammar::JsonObject,
            Self::JsonSchema { value, json_schema } => match (value, json_schema) {
                (Some(named), _) => schema_of_tgi(named.schema)?,
                (None, Some(named)) => named.schema.map_or(Grammar::JsonObject, |schema| {
                    Grammar::JsonSchema(schema.to_string())
                }),
                (None, None) => return Err(invalid("a `json_schema` needs a `schema`")),
            },
            Self::Regex { value } => Grammar::Regex(value),
            Self::Choice { value } => Grammar::Choice(value),
            Self::Lark { value } => Grammar::Lark(value),
        }))
    }
}

/// A schema as TGI took it: a text is parsed, and an object must say what is in it.
fn schema_of_tgi(value: Value) -> Result<Grammar, ValidationError> {
    let schema = match value {
        Value::Null => return Err(ValidationError::NoGrammars),
        Value::String(text) => {
            let parsed: Result<Value, _> = serde_json::from_str(&text);
            parsed.map_err(|error| invalid(&error.to_string()))?
        }
        schema => schema,
    };
    let of_objects = schema
        .get("type")
        .is_none_or(|kind| kind.as_str() == Some("object"));
    let says_more = TELLING_KEYWORDS
        .iter()
        .any(|keyword| schema.get(keyword).is_some());
    if of_objects && !says_more && schema.get("properties").is_none() {
        return Err(invalid("Grammar must have a 'properties' field"));
    }
    Ok(Grammar::JsonSchema(schema.to_string()))
}

fn invalid(reason: &str) -> ValidationError {
    GrammarError::Invalid(reason.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grammar(format: Value) -> Result<Option<Grammar>, String> {
        let format: AnswerFormat =
            serde_json::from_value(format).map_err(|error| error.to_string())?;
        format.into_grammar().map_err(|error| error.to_string())
    }

    fn schema(text: &str) -> Result<Option<Grammar>, String> {
        Ok(Some(Grammar::JsonSchema(text.to_owned())))
    }

    #[test]
    fn the_shapes_of_tgi_and_openai_mean_the_same() {
        let text = r#"{"properties":{"b":{},"a":{}}}"#;
        let value = json!({"properties": {"b": {}, "a": {}}});
        for format in [
            json!({"type": "json", "value": value}),
            json!({"type": "json", "value": text}),
            json!({"type": "json_object", "value": value}),
            json!({"type": "json_schema", "value": {"name": "x", "schema": value}}),
            json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": value}}),
        ] {
            assert_eq!(grammar(format.clone()), schema(text), "{format}");
        }
        assert_eq!(
            grammar(json!({"type": "json_object"})),
            Ok(Some(Grammar::JsonObject))
        );
        assert_eq!(grammar(json!({"type": "text"})), Ok(None));
    }

    #[test]
    fn what_is_wrong_with_a_schema_is_said_in_tgis_words() {
        for (value, words) in [
            (
                json!({"type": "object"}),
                "grammar is not valid: Grammar must have a 'properties' field",
            ),
            (
                json!("{not json"),
                "grammar is not valid: key must be a string at line 1 column 2",
            ),
            (Value::Null, "grammar is not supported"),
        ] {
            let refused = grammar(json!({"type": "json", "value": value}));
            assert_eq!(refused, Err(words.to_owned()));
        }
    }
}
