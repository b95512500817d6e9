//! The document says what the routes do, and the page that shows it needs nothing from elsewhere.

use std::path::Path;
use std::time::Duration;

use super::*;

async fn document(options: Options) -> Value {
    let key = options.api_keys.first().map_or("", |(_, key)| *key);
    let request =
        Request::get("/api-doc/openapi.json").header("authorization", format!("Bearer {key}"));
    let reply = greedy_with(options)
        .send(request.body(Body::empty()).unwrap())
        .await;
    assert_eq!(reply.header("content-type"), Some("application/json"));
    reply.json()
}

/// `tests/data/tgi_openapi.json`: the names of TGI's document, of which clients were generated.
#[tokio::test]
async fn every_path_schema_and_field_that_tgi_described_is_described() {
    let document = document(Options::default()).await;
    let names: Value =
        serde_json::from_str(include_str!("../../../tests/data/tgi_openapi.json")).unwrap();
    let mut missing = Vec::new();
    for (path, methods) in names["paths"].as_object().unwrap() {
        for method in methods.as_array().unwrap() {
            if document["paths"][path][method.as_str().unwrap()].is_null() {
                missing.push(format!("{method} {path}"));
            }
        }
    }
    for (name, fields) in names["schemas"].as_object().unwrap() {
        let schema = &document["components"]["schemas"][name];
        if schema.is_null() {
            missing.push(name.clone());
        }
        for field in fields.as_array().unwrap() {
            if schema["properties"][field.as_str().unwrap()].is_null() {
                missing.push(format!("{name}.{field}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn keys_are_described_where_one_is_set_and_not_for_health() {
    let open = document(Options::default()).await;
    assert!(open["components"]["securitySchemes"].is_null());
    assert!(open["paths"]["/generate"]["post"]["responses"]["401"].is_null());
    let guarded = document(Options {
        api_keys: vec![("one", "Sekret-Key")],
        ..Options::default()
    })
    .await;
    assert!(guarded["paths"]["/generate"]["post"]["responses"]["401"].is_object());
    assert!(guarded["paths"]["/generate"]["post"]["security"].is_array());
    assert!(guarded["paths"]["/health"]["get"]["security"].is_null());
}

#[tokio::test]
async fn the_page_and_the_document_need_the_key_where_one_is_set() {
    let guarded = greedy_with(Options {
        api_keys: vec![("one", "Sekret-Key")],
        ..Options::default()
    });
    for path in [
        "/docs",
        "/docs/",
        "/docs/swagger-ui.css",
        "/api-doc/openapi.json",
    ] {
        assert_eq!(guarded.get(path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn the_page_loads_only_files_of_this_server() {
    let server = greedy();
    let moved = server.get("/docs").await;
    assert_eq!(
        (moved.status.as_u16(), moved.header("location")),
        (303, Some("/docs/"))
    );
    let page = server.get("/docs/").await;
    assert_eq!(page.header("content-type"), Some("text/html"));
    let sources = page
        .text
        .split(['"'])
        .filter(|text| text.ends_with(".js") || text.ends_with(".css"));
    let mut count = 0;
    for source in sources {
        let path = format!("/docs/{}", source.trim_start_matches("./"));
        let reply = server
            .open(Request::get(&path).body(Body::empty()).unwrap())
            .await;
        assert_eq!(reply.status(), 200, "{path}");
        count += 1;
    }
    assert!(count >= 4, "{}", page.text);
    let settings = server.get("/docs/swagger-initializer.js").await.text;
    assert!(settings.contains("/api-doc/openapi.json"), "{settings}");
    assert!(settings.contains(r#""validatorUrl": "none""#), "{settings}");
}

/// Paths that sources hand to the router: a path, a comma and a method.
fn routed_paths() -> Vec<String> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http")];
    let mut paths = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                paths.extend(paths_in(&std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    paths
}

fn paths_in(source: &str) -> Vec<String> {
    let methods = ["get(", "post(", "put(", "patch(", "delete(", "any("];
    let literals = source.split('"').collect::<Vec<_>>();
    let routes = literals.windows(2).filter(|pair| {
        let behind = pair[1].strip_prefix(',').map(str::trim_start);
        let is_routed = |behind: &str| methods.iter().any(|method| behind.starts_with(method));
        pair[0].starts_with('/') && behind.is_some_and(is_routed)
    });
    routes.map(|pair| pair[0].to_owned()).collect()
}

#[test]
fn routes_are_found_in_sources() {
    let source =
        "x.route(\"/a\", get(b)).route(\n  \"/c/{d}\",\n  post(e),\n); f(\"/g\", h, get(i));";
    assert_eq!(paths_in(source), ["/a", "/c/{d}"]);
}

#[tokio::test]
async fn the_document_has_the_routes_of_the_router_and_no_others() {
    let described = document(Options::default()).await["paths"].clone();
    let server = greedy();
    let mut routed = routed_paths();
    routed.sort();
    let mut expected: Vec<&String> = described.as_object().unwrap().keys().collect();
    expected.sort();
    assert_eq!(routed.iter().collect::<Vec<_>>(), expected);
    for (path, item) in described.as_object().unwrap() {
        let path = path.replace(['{', '}'], "");
        let request = Request::patch(&path).body(Body::empty()).unwrap();
        let reply = server.send(request).await;
        assert_eq!(reply.status, 405, "{path}");
        let allowed = reply.header("allow").unwrap().to_lowercase();
        let mut allowed: Vec<&str> = allowed
            .split(',')
            .filter(|method| *method != "head")
            .collect();
        allowed.sort_unstable();
        let mut methods: Vec<&String> = item.as_object().unwrap().keys().collect();
        methods.sort();
        assert_eq!(allowed, methods, "{path}");
    }
}

#[tokio::test]
async fn references_lead_somewhere_and_names_of_operations_differ() {
    let document = document(Options::default()).await;
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let mut names: Vec<&str> = text
        .split("\"operationId\":\"")
        .skip(1)
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count > 20);
}

/// Every exchange of `send` is held to the document.
#[tokio::test]
async fn the_answer_to_a_late_body_is_described() {
    let mut options = Options::default();
    options.connections.body_timeout = Duration::from_millis(1);
    let server = greedy_with(options);
    let never = futures::stream::pending::<Result<Vec<u8>, std::convert::Infallible>>();
    let request = Request::post("/generate").header("content-type", "application/json");
    let request = request.body(Body::from_stream(never)).unwrap();
    assert_eq!(server.send(request).await.status, 408);
}

#[tokio::test]
async fn every_way_to_send_a_key_that_is_described_is_accepted() {
    let key = "Sekret-Key";
    let options = || Options {
        api_keys: vec![("one", key)],
        ..Options::default()
    };
    let document = document(options()).await;
    let schemes = document["components"]["securitySchemes"].clone();
    let schemes = schemes.as_object().unwrap();
    assert!(!schemes.is_empty());
    let server = greedy_with(options());
    for (name, scheme) in schemes {
        let (header, value) = match scheme["type"].as_str().unwrap() {
            "http" => ("authorization", format!("Bearer {key}")),
            "apiKey" => (scheme["name"].as_str().unwrap(), key.to_owned()),
            other => panic!("{other}"),
        };
        for (path, item) in document["paths"].as_object().unwrap() {
            let needs = |operation: &Value| {
                let ways = operation["security"].as_array().into_iter().flatten();
                ways.into_iter().any(|way| !way[name].is_null())
            };
            for (method, _) in item
                .as_object()
                .unwrap()
                .iter()
                .filter(|(_, operation)| needs(operation))
            {
                let request = Request::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(path.replace(['{', '}'], ""))
                    .header(header, &value);
                let reply = server.send(request.body(Body::empty()).unwrap()).await;
                assert_ne!(reply.status, 401, "{name}: {method} {path}");
            }
        }
    }
}
