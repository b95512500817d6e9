//! Who may ask for what: keys, the routes that need them, and what is known of their holders.

use std::collections::BTreeSet;

use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::http::auth::HEALTH_ROUTES;

const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY",
];

fn small() -> Value {
    json!({"inputs": "x self", "parameters": {"max_new_tokens": 2}})
}

fn two_keys() -> Options {
    Options {
        api_keys: vec![("one", "Sekret-Key"), ("two", "other-key")],
        ..Options::default()
    }
}

fn request(method: &str, path: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .body(Body::empty())
        .unwrap()
}

/// Every path that a router knows, with something in the place of parameters.
fn paths(router: &Router) -> BTreeSet<String> {
    let shown = format!("{router:?}");
    let quoted = shown.split('"').skip(1).step_by(2);
    quoted
        .filter(|text| text.starts_with('/'))
        .map(|path| path.replace("{*", "x{").replace(['{', '}'], "x"))
        .collect()
}

#[tokio::test]
async fn no_route_but_health_answers_without_a_key_whatever_the_method() {
    let server = greedy_with(two_keys());
    let mut paths = paths(&server.router);
    for known in ["/", "/generate", "/v1/chat/completions", "/metrics"] {
        assert!(paths.contains(known), "{known} is not in {paths:?}");
    }
    paths.insert("/nowhere".to_owned());
    for path in &paths {
        for method in METHODS {
            let reply = server.send(request(method, path)).await;
            let reads = ["GET", "HEAD"].contains(&method);
            let is_health = HEALTH_ROUTES.contains(&path.as_str());
            let expected = if reads && is_health { 200 } else { 401 };
            assert_eq!(reply.status, expected, "{method} {path}");
            // The clients of these routes read the reason in the body.
            let by_others = ["/v1/messages", "/v1/responses"].map(|route| path.starts_with(route));
            let says_why = by_others.contains(&true) && method != "HEAD";
            let says_why =
                says_why || path.starts_with("/v2/") && expected == 200 && method != "HEAD";
            assert_eq!(reply.text.is_empty(), !says_why, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn a_path_that_only_looks_like_health_needs_a_key() {
    let server = greedy_with(two_keys());
    for path in ["//", "/health/", "/%68ealth", "/health/../info", "/HEALTH"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn any_of_the_keys_opens_and_anthropics_header_carries_one_under_v1() {
    let server = greedy_with(two_keys());
    let models = |name: &'static str, value: &'static str| {
        Request::get("/v1/models")
            .header(name, value)
            .body(Body::empty())
            .unwrap()
    };
    for (name, value, expected) in [
        ("authorization", "Bearer Sekret-Key", 200),
        ("authorization", "bearer other-key", 200),
        ("authorization", "Bearer other-kez", 401),
        ("authorization", "Bearer  other-key", 401),
        ("authorization", "Bearer Sekret-Key,other-key", 401),
        ("authorization", "Bearer ", 401),
        ("x-api-key", "other-key", 200),
        ("x-api-key", "Other-Key", 401),
        ("x-api-key", "Bearer other-key", 401),
    ] {
        let reply = server.send(models(name, value)).await;
        assert_eq!(reply.status, expected, "{name}: {value}");
    }
    let mut both = models("x-api-key", "other-key");
    let wrong = axum::http::HeaderValue::from_static("Bearer unused");
    both.headers_mut().insert("authorization", wrong);
    assert_eq!(server.send(both).await.status, 200);
    // As TGI.
    let mut native = post("/generate", &small());
    let key = axum::http::HeaderValue::from_static("other-key");
    native.headers_mut().insert("x-api-key", key);
    assert_eq!(server.send(native).await.status, 401);
}

#[tokio::test]
async fn public_routes_can_be_read_and_nothing_else() {
    let server = greedy_with(Options {
        public_routes: vec!["/metrics", "/generate"],
        ..two_keys()
    });
    assert_eq!(server.get("/metrics").await.status, 200);
    assert_eq!(server.get("/info").await.status, 401);
    assert_eq!(server.post("/generate", &small()).await.status, 401);
}

#[tokio::test]
async fn keys_that_change_while_serving_count_from_the_next_request_on() {
    let (keys, receiver) = watch::channel(vec![api_key(("old", "old-key"))]);
    let (engine, _submissions) = EngineHandle::new(1);
    let (_phase, phase) = watch::channel(Phase::Ready(Arc::new(app(engine, limits()))));
    let mut config = config(Options::default());
    config.api_keys = receiver;
    let server = Server {
        router: router(config, phase).unwrap(),
        ..greedy()
    };
    let status = async |key: &str| {
        let request = Request::get("/info").header("authorization", format!("Bearer {key}"));
        server
            .send(request.body(Body::empty()).unwrap())
            .await
            .status
    };
    assert_eq!(
        (status("old-key").await, status("new").await),
        (StatusCode::OK, StatusCode::UNAUTHORIZED)
    );
    keys.send_replace(vec![api_key(("new", "new"))]);
    assert_eq!(
        (status("old-key").await, status("new").await),
        (StatusCode::UNAUTHORIZED, StatusCode::OK)
    );
    // Whoever takes the last key away does not open the server.
    keys.send_replace(Vec::new());
    assert_eq!(
        (status("").await, status("new").await),
        (StatusCode::UNAUTHORIZED, StatusCode::UNAUTHORIZED)
    );
}

/// A request for each route that generates.
fn generating() -> [(&'static str, Value); 9] {
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2});
    let completion = json!({"prompt": ["x self", "a"], "max_tokens": 2});
    let mut streamed_chat = chat.clone();
    streamed_chat["stream"] = json!(true);
    let instances = json!({"instances": [small(), chat]});
    [
        ("/", small()),
        ("/generate", small()),
        ("/generate_stream", small()),
        ("/v1/chat/completions", chat.clone()),
        ("/v1/chat/completions", streamed_chat),
        ("/v1/completions", completion.clone()),
        ("/invocations", chat),
        ("/invocations", completion),
        ("/vertex", instances),
    ]
}

#[tokio::test]
async fn every_generating_route_hands_its_tenants_salt_to_each_sequence() {
    let (salts, seen) = std::sync::mpsc::channel();
    let model = Greedy::compat();
    let server = scripted_with(two_keys(), move |spec| {
        let _ = salts.send(spec.cache_salt);
        model.events(spec)
    });
    let salts_of = async |path: &str, body: &Value, key: &'static str| {
        let mut request = post(path, body);
        let value = axum::http::HeaderValue::from_static(key);
        request.headers_mut().insert("authorization", value);
        assert_eq!(server.send(request).await.status, 200, "{path}");
        let mut salts = BTreeSet::new();
        while let Ok(salt) = seen.try_recv() {
            salts.insert(salt);
        }
        assert_eq!(salts.len(), 1, "{path}");
        salts.pop_first().unwrap()
    };
    let one = salts_of("/generate", &small(), "Bearer Sekret-Key").await;
    let two = salts_of("/generate", &small(), "Bearer other-key").await;
    assert!(one != two && one != 0 && two != 0);
    for (path, body) in generating() {
        assert_eq!(salts_of(path, &body, "Bearer Sekret-Key").await, one);
        assert_eq!(salts_of(path, &body, "Bearer other-key").await, two);
    }
}

#[tokio::test]
async fn without_keys_everybody_shares_the_salt_0_whatever_they_send() {
    let (salts, seen) = std::sync::mpsc::channel();
    let model = Greedy::compat();
    let server = scripted(move |spec| {
        let _ = salts.send(spec.cache_salt);
        model.events(spec)
    });
    let mut request = post("/generate", &small());
    let value = axum::http::HeaderValue::from_static("Bearer anything");
    request.headers_mut().insert("authorization", value);
    assert_eq!(server.send(request).await.status, 200);
    assert_eq!(seen.try_recv(), Ok(0));
}
