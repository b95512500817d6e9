//! Holds exchanges to the document: the status is described, the body has the described type and shape and no field that is not
//! described, and a body that was accepted is described. `Server::send` checks every exchange of these tests.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use jsonschema::Validator;
use serde_json::json;

use super::*;
use crate::http::openapi;

/// A request and its answer.
pub struct Exchange<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// `None` where it is not known or not JSON.
    pub sent: Option<Value>,
    pub status: u16,
    pub content_type: Option<&'a str>,
    pub text: &'a str,
}

/// Of a server with a key, which is a superset.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| openapi::document(true));

/// In answers, fields that are not described are mistakes.
static CLOSED_SCHEMAS: LazyLock<Value> = LazyLock::new(|| {
    let mut components = DOCUMENT["components"].clone();
    close(&mut components);
    components
});

/// What is wrong with an exchange. Paths that are not described are somebody else's matter.
pub fn check(exchange: &Exchange) -> Result<(), String> {
    let Some(operation) = operation(exchange) else {
        return Ok(());
    };
    let response = &operation["responses"][exchange.status.to_string()];
    if response.is_null() {
        return Err(format!("status {} is not described", exchange.status));
    }
    if !exchange.text.is_empty() && exchange.method != "HEAD" {
        check_answer(exchange, response)?;
    }
    let refused = exchange.status != 200 || exchange.text.starts_with("data: {\"error\"");
    match &exchange.sent {
        Some(body) if !refused => {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                return Ok(()); // a body that nobody reads
            }
            let described = validate(schema, &DOCUMENT["components"], body);
            described.map_err(|error| format!("accepted {body}, but {error}"))
        }
        _ => Ok(()),
    }
}

fn operation(exchange: &Exchange) -> Option<&'static Value> {
    let method = exchange.method.to_lowercase().replace("head", "get");
    let given: Vec<&str> = exchange.path.split('/').collect();
    let fits = |template: &str| {
        let parts: Vec<&str> = template.split('/').collect();
        let same = |(part, given): (&&str, &&str)| part.starts_with('{') || part == given;
        parts.len() == given.len() && parts.iter().zip(&given).all(same)
    };
    let mut paths = DOCUMENT["paths"].as_object().unwrap().iter();
    paths
        .find(|(template, _)| fits(template))
        .and_then(|(_, item)| item.get(method))
}

fn check_answer(exchange: &Exchange, response: &'static Value) -> Result<(), String> {
    if exchange.status == 401 {
        return Ok(()); // only for SDKs, and not described: see `adjust`
    }
    let media_type = exchange.content_type.unwrap_or_default();
    let media_type = media_type.split(';').next().unwrap_or_default();
    let schema = &response["content"][media_type]["schema"];
    match media_type {
        _ if schema.is_null() => Err(format!("{media_type:?} is not described")),
        "application/json" => {
            let body = serde_json::from_str(exchange.text).map_err(|error| error.to_string())?;
            validate(schema, &CLOSED_SCHEMAS, &body)
        }
        "text/event-stream" => check_events(exchange.text, schema),
        _ => Ok(()),
    }
}

fn check_events(text: &str, schema: &'static Value) -> Result<(), String> {
    let data = &schema["properties"]["data"];
    let (json, has_done) = match data["anyOf"].as_array() {
        Some(alternatives) => (&alternatives[0], true),
        None => (data, false),
    };
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        // Some routes name their events.
        let named = event
            .strip_prefix("event: ")
            .and_then(|event| event.split_once('\n'));
        let event = named.map_or(event, |(_, data)| data);
        let Some(data) = event.strip_prefix("data: ") else {
            return Err(format!("{event:?} is not an event"));
        };
        if has_done && data == "[DONE]" {
            continue;
        }
        let data = serde_json::from_str(data).map_err(|error| error.to_string())?;
        validate(&json["contentSchema"], &CLOSED_SCHEMAS, &data)?;
    }
    Ok(())
}

fn validate(
    schema: &'static Value,
    components: &'static Value,
    value: &Value,
) -> Result<(), String> {
    type Compiled = HashMap<(usize, usize), Arc<Validator>>;
    static COMPILED: LazyLock<Mutex<Compiled>> = LazyLock::new(Mutex::default);
    let identity = (
        std::ptr::from_ref(schema).addr(),
        std::ptr::from_ref(components).addr(),
    );
    let validator = COMPILED.lock().unwrap().get(&identity).cloned();
    let validator = validator.unwrap_or_else(|| {
        let whole = json!({"allOf": [schema], "components": components});
        let validator = Arc::new(jsonschema::validator_for(&whole).unwrap());
        COMPILED.lock().unwrap().insert(identity, validator.clone());
        validator
    });
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{} at {:?}", error, error.instance_path().as_str()))
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(format!("{value}: {}", errors.join("; ")))
    }
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.contains_key("properties") && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

fn exchange(status: u16, content_type: &'static str, text: &'static str) -> Exchange<'static> {
    Exchange {
        method: "POST",
        path: "/detokenize",
        sent: None,
        status,
        content_type: Some(content_type),
        text,
    }
}

#[test]
fn the_check_sees_statuses_types_fields_and_bodies_that_are_not_described() {
    let json = "application/json";
    let good = exchange(200, json, r#"{"text": "a"}"#);
    assert_eq!(check(&good), Ok(()));
    for bad in [
        exchange(418, json, r#"{"text": "a"}"#),
        exchange(200, "text/plain", "a"),
        exchange(200, json, r#"{"text": 3}"#),
        exchange(200, json, r#"{"text": "a", "more": 1}"#),
        exchange(422, json, r#"{"error": "a"}"#),
    ] {
        assert!(check(&bad).is_err(), "{} {}", bad.status, bad.text);
    }
    let accepted = Exchange {
        sent: Some(json!({"tokens": "all"})),
        ..good
    };
    assert!(check(&accepted).is_err());
}

#[test]
fn the_check_reads_the_events_of_streams() {
    let stream = |path, text| Exchange {
        path,
        ..exchange(200, "text/event-stream", text)
    };
    let error = "data: {\"error\":\"a\",\"error_type\":\"b\"}\n\n";
    assert_eq!(check(&stream("/generate_stream", error)), Ok(()));
    assert!(check(&stream("/v1/completions", error)).is_err());
    assert!(check(&stream("/generate_stream", "data: {\"error\":\"a\"}\n\n")).is_err());
    assert_eq!(
        check(&stream("/v1/completions", "data: [DONE]\n\n")),
        Ok(())
    );
    assert!(check(&stream("/generate_stream", "data: [DONE]\n\n")).is_err());
}

#[test]
fn the_check_reads_the_events_of_the_newer_surfaces() {
    let checked = |path, event: Value| {
        let text = format!("event: {}\ndata: {event}\n\n", event["type"]).leak();
        check(&Exchange {
            path,
            ..exchange(200, "text/event-stream", text)
        })
    };
    let delta = json!({
        "type": "response.function_call_arguments.delta", "sequence_number": 3,
        "item_id": "fc_1", "output_index": 0, "delta": "{",
    });
    let with = |name: &str, value: Value| {
        let mut changed = delta.clone();
        changed[name] = value;
        changed
    };
    assert_eq!(checked("/v1/responses", delta.clone()), Ok(()));
    for bad in [
        with("type", json!("response.unheard_of")),
        with("delta", json!(3)),
        with("more", json!(1)),
    ] {
        assert!(checked("/v1/responses", bad.clone()).is_err(), "{bad}");
    }
    assert_eq!(checked("/v1/messages", json!({"type": "ping"})), Ok(()));
    for bad in [
        json!({"type": "pong"}),
        json!({"type": "ping", "more": 1}),
        json!({"type": "message_start", "message": {"id": "a"}}),
    ] {
        assert!(checked("/v1/messages", bad.clone()).is_err(), "{bad}");
    }
}
