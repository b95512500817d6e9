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
    let known = document["components"]["schemas"].as_object().cloned();
    join_parts(
        &mut document["components"]["schemas"],
        &known.unwrap_or_default(),
    );
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

/// A struct with flattened parts is described as schemas that all apply. One object with all their fields says the same and is what
/// TGI's document had; where a part is a choice, there is one for each alternative.
fn join_parts(schema: &mut Value, known: &Map<String, Value>) {
    let joined = schema.get("allOf").and_then(|_| objects(schema, known));
    if let Some(mut objects) = joined {
        let description = schema.get("description").cloned();
        *schema = match objects.len() {
            1 => objects.swap_remove(0),
            _ => json!({"oneOf": objects}),
        };
        if let Some(description) = description {
            schema["description"] = description;
        }
    }
    match schema {
        Value::Object(fields) => fields
            .values_mut()
            .for_each(|child| join_parts(child, known)),
        Value::Array(items) => items.iter_mut().for_each(|item| join_parts(item, known)),
        _ => {}
    }
}

/// The objects that a schema allows, each with all its fields; `None` if it allows anything else.
fn objects(schema: &Value, known: &Map<String, Value>) -> Option<Vec<Value>> {
    let list = |name: &str| schema.get(name).and_then(Value::as_array);
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return objects(known.get(reference.rsplit('/').next()?)?, known);
    }
    if let Some(choices) = list("oneOf").or(list("anyOf")) {
        let choices = choices.iter().map(|choice| objects(choice, known));
        return Some(choices.collect::<Option<Vec<_>>>()?.concat());
    }
    if let Some(parts) = list("allOf") {
        let mut all = vec![json!({"type": "object"})];
        for part in parts {
            let more = objects(part, known)?;
            let with_each = |object: &Value| {
                more.iter()
                    .map(|part| joined(object, part))
                    .collect::<Vec<_>>()
            };
            all = all.iter().flat_map(with_each).collect();
        }
        return Some(all);
    }
    schema
        .get("properties")
        .is_some()
        .then(|| vec![schema.clone()])
}

/// An object with the fields of both.
fn joined(one: &Value, other: &Value) -> Value {
    let required = [one, other]
        .into_iter()
        .filter_map(|object| object["required"].as_array());
    let required: Vec<&Value> = required.flatten().collect();
    let properties = [one, other]
        .into_iter()
        .filter_map(|object| object["properties"].as_object());
    let properties: Map<String, Value> = properties.flatten().map(owned).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// The schema of a stream is the one of its events, whose data is JSON.
fn describe_events(path: &str, _method: &str, operation: &mut Value) {
    let Some(media) = operation.pointer_mut("/responses/200/content/text~1event-stream") else {
        return;
    };
    let openai = json!({"$ref": "#/components/schemas/StreamError"});
    let native = json!({"$ref": "#/components/schemas/ErrorResponse"});
    let anthropic = json!({"$ref": "#/components/schemas/AnthropicErrorResponse"});
    let errors = match path {
        "/" | "/generate_stream" => vec![native],
        "/invocations" => vec![native, openai],
        "/v1/messages" => vec![anthropic],
        // An event of its own kind.
        "/v1/responses" => vec![],
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
    let is_named = ["/v1/messages", "/v1/responses"].contains(&path);
    let data = match path {
        "/" | "/generate_stream" => data,
        _ if is_named => data,
        _ => json!({"anyOf": [data, done]}),
    };
    let mut event = json!({
        "type": "object",
        "description": "One event. An error is the last.",
        "properties": {"data": data},
        "required": ["data"],
    });
    if is_named {
        event["properties"]["event"] =
            json!({"type": "string", "description": "The `type` of the data"});
        event["required"] = json!(["event", "data"]);
    }
    media["schema"] = event;
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

/// Below `/v1/` SDKs of OpenAI get every error in a shape of its own. Routes that TGI never had know only the shape of their surface.
fn add_sdk_errors(path: &str, _method: &str, operation: &mut Value) {
    if !path.starts_with("/v1/") {
        return;
    }
    let only = match path {
        _ if path.starts_with("/v1/messages") => Some("AnthropicErrorResponse"),
        _ if path.starts_with("/v1/responses") => Some("OpenAiErrorResponse"),
        _ => None,
    };
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let responses = operation["responses"].as_object_mut().into_iter().flatten();
    // 401 is not told: its body is empty but for SDKs, and a body that may be absent cannot be described.
    let errors = responses.filter(|(status, _)| status.starts_with(['4', '5']) && *status != "401");
    for (_, response) in errors {
        if let Some(name) = only {
            response["content"] = json!({"application/json": {"schema": reference(name)}});
            continue;
        }
        let sdk = reference("OpenAiErrorResponse");
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
