//! The document says what the routes do, and the page that shows it needs nothing from elsewhere.

use super::*;

async fn document(options: Options) -> Value {
    let key = options.api_key.unwrap_or_default();
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
        api_key: Some("Sekret-Key"),
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
        api_key: Some("Sekret-Key"),
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
