//! What the derives cannot say of the document: routes that share a handler, events, and what the layers around all routes answer.

use serde_json::{Map, Value, json};

use crate::http::auth::HEALTH_ROUTES;

/// Routes that `/health` answers too, and the names of their operations.
const LIKE_HEALTH: [(&str, &str); 3] = [
    ("/", "root_health"),
    ("/ping", "ping"),
    ("/readyz", "readyz"),
];

pub fn adjust(mut document: Value, with_key: bool) -> Value {
    add_health_routes(&mut document["paths"]);
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        join_parts(schemas);
    }
    for_each_operation(&mut document, describe_events);
    for_each_operation(&mut document, add_panic);
    if with_key {
        for_each_operation(&mut document, need_key);
        document["components"]["securitySchemes"] = json!({
            "bearer": {"type": "http", "scheme": "bearer", "description": "The API key of the server"},
        });
    }
    for_each_operation(&mut document, add_sdk_errors);
    allow_overlaps(&mut document);
    document
}

fn for_each_operation(document: &mut Value, change: impl Fn(&str, &str, &mut Value)) {
    let Some(paths) = document["paths"].as_object_mut() else {
        return;
    };
    for (path, item) in paths {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            change(path, method, operation);
        }
    }
}

fn add_health_routes(paths: &mut Value) {
    for (path, operation_id) in LIKE_HEALTH {
        let mut operation = paths["/health"]["get"].clone();
        operation["operationId"] = operation_id.into();
        paths[path]["get"] = operation;
    }
}

/// A struct with flattened parts is described as objects that all apply. One object with all their fields says the same and is what
/// TGI's document had; they are kept apart where a part is a choice.
fn join_parts(schemas: &mut Map<String, Value>) {
    let known = schemas.clone();
    for schema in schemas.values_mut() {
        let parts = schema.get("allOf").and_then(Value::as_array);
        let objects =
            parts.and_then(|parts| parts.iter().map(|part| object(part, &known)).collect());
        let Some(objects): Option<Vec<&Value>> = objects else {
            continue;
        };
        let required = objects
            .iter()
            .filter_map(|object| object["required"].as_array());
        let required: Vec<Value> = required.flatten().cloned().collect();
        let properties = objects
            .iter()
            .filter_map(|object| object["properties"].as_object());
        let properties: Map<String, Value> = properties.flatten().map(owned).collect();
        let description = schema.get("description").cloned();
        *schema = json!({"type": "object", "required": required, "properties": properties});
        if let Some(description) = description {
            schema["description"] = description;
        }
    }
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// A schema that is nothing but an object with fields, where it is defined.
fn object<'a>(schema: &'a Value, known: &'a Map<String, Value>) -> Option<&'a Value> {
    let name = schema.get("$ref").and_then(Value::as_str);
    let schema = match name.and_then(|name| name.rsplit('/').next()) {
        Some(name) => known.get(name)?,
        None => schema,
    };
    schema.get("properties").is_some().then_some(schema)
}

/// The schema of a stream is the one of its events, whose data is JSON.
fn describe_events(path: &str, _method: &str, operation: &mut Value) {
    let Some(media) = operation.pointer_mut("/responses/200/content/text~1event-stream") else {
        return;
    };
    let openai = json!({"$ref": "#/components/schemas/StreamError"});
    let native = json!({"$ref": "#/components/schemas/ErrorResponse"});
    let errors = match path {
        "/" | "/generate_stream" => vec![native],
        "/invocations" => vec![native, openai],
        _ => vec![openai],
    };
    let mut alternatives = vec![media["schema"].take()];
    alternatives.extend(errors);
    let data = json!({
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": alternatives},
    });
    let done = json!({"const": "[DONE]", "description": "The end of a stream that succeeded"});
    let data = match path {
        "/" | "/generate_stream" => data,
        _ => json!({"anyOf": [data, done]}),
    };
    media["schema"] = json!({
        "type": "object",
        "description": "One event. An error is the last.",
        "properties": {"data": data},
        "required": ["data"],
    });
}

fn add_panic(_path: &str, _method: &str, operation: &mut Value) {
    let content =
        json!({"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}});
    operation["responses"]["500"] =
        json!({"description": "The request failed unexpectedly", "content": content});
}

fn need_key(path: &str, method: &str, operation: &mut Value) {
    if method == "get" && HEALTH_ROUTES.contains(&path) {
        return;
    }
    operation["responses"]["401"] = json!({"description": "The API key is missing or wrong"});
    operation["security"] = json!([{"bearer": []}]);
}

/// SDKs of OpenAI get every error below `/v1/` in a shape of its own.
fn add_sdk_errors(path: &str, _method: &str, operation: &mut Value) {
    if !path.starts_with("/v1/") {
        return;
    }
    let responses = operation["responses"].as_object_mut().into_iter().flatten();
    // 401 is not told: its body is empty but for SDKs, and a body that may be absent cannot be described.
    let errors = responses.filter(|(status, _)| status.starts_with(['4', '5']) && *status != "401");
    for (_, response) in errors {
        let sdk = json!({"$ref": "#/components/schemas/OpenAiErrorResponse"});
        let native = response.pointer("/content/application~1json/schema");
        let schema = match native {
            Some(native) => json!({"anyOf": [native, sdk]}),
            None => sdk,
        };
        response["content"]["application/json"]["schema"] = schema;
    }
}

/// A body may fit several alternatives; the first is taken.
fn allow_overlaps(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            rename(fields, "oneOf", "anyOf");
            fields.values_mut().for_each(allow_overlaps);
        }
        Value::Array(items) => items.iter_mut().for_each(allow_overlaps),
        _ => {}
    }
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}
