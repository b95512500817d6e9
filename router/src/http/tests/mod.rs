//! Routes over a scripted engine.

mod access;
mod clouds;
mod conformance;
mod cuts;
mod fuzz;
mod hostile;
mod keys;
mod kserve;
mod measures;
mod messages;
mod openai_routes;
mod openapi;
mod recorded;
mod request_ids;
mod responses;
mod sockets;
mod streams;
mod tokens;
mod tools;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{Request, Response, StatusCode};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tower::ServiceExt;

use conformance::Exchange;

use super::{App, ConnectionLimits, HttpConfig, Phase, ResponseStore, router};
use crate::engine::{EngineHandle, TokenEvent};
use crate::generation::Generator;
use crate::generation::scripted::{Greedy, Held, engine};
use crate::telemetry::MetricsHandle;
use crate::tokenizer::tests::compat;
use crate::types::tests::limits;
use crate::types::{ApiKey, Limits, ModelInfo, Tenant};
use scheduler::SequenceSpec;

/// A server without a socket.
struct Server {
    router: Router,
    phase: watch::Sender<Phase>,
    held: mpsc::Receiver<Held>,
}

struct Options {
    limits: Limits,
    connections: ConnectionLimits,
    /// Names and keys.
    api_keys: Vec<(&'static str, &'static str)>,
    public_routes: Vec<&'static str>,
    cors: Vec<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: limits(),
            connections: ConnectionLimits::for_payload(limits().payload_limit_bytes),
            api_keys: Vec::new(),
            public_routes: Vec::new(),
            cors: Vec::new(),
        }
    }
}

/// Answers greedily, like the test model.
fn greedy() -> Server {
    greedy_with(Options::default())
}

fn greedy_with(options: Options) -> Server {
    let model = Greedy::compat();
    scripted_with(options, move |spec| model.events(spec))
}

fn scripted(script: impl Fn(&SequenceSpec) -> Vec<TokenEvent> + Send + 'static) -> Server {
    scripted_with(Options::default(), script)
}

fn scripted_with(
    options: Options,
    script: impl Fn(&SequenceSpec) -> Vec<TokenEvent> + Send + 'static,
) -> Server {
    let (handle, held) = engine(script);
    let app = app(handle, options.limits);
    Server {
        held,
        ..ready(app, options)
    }
}

fn ready(app: App, options: Options) -> Server {
    let (phase, receiver) = watch::channel(Phase::Ready(Arc::new(app)));
    Server {
        router: router(config(options), receiver).unwrap(),
        phase,
        held: mpsc::channel(1).1,
    }
}

fn config(options: Options) -> HttpConfig {
    HttpConfig {
        cors_allow_origin: options.cors.into_iter().map(str::to_owned).collect(),
        api_keys: watch::channel(options.api_keys.into_iter().map(api_key).collect()).1,
        public_routes: options
            .public_routes
            .into_iter()
            .map(str::to_owned)
            .collect(),
        payload_limit_bytes: options.limits.payload_limit_bytes,
        connections: options.connections,
        metrics: MetricsHandle::default(),
    }
}

fn api_key((name, key): (&str, &str)) -> ApiKey {
    ApiKey {
        name: name.to_owned(),
        key: key.to_owned(),
    }
}

fn app(engine: EngineHandle, limits: Limits) -> App {
    App {
        generator: Generator::new(engine, compat(), limits, 2048),
        info: Arc::new(ModelInfo {
            model_id: "compat".into(),
            revision: None,
            is_demo: false,
            dtype: "bfloat16".into(),
            device: "cpu".into(),
            vocab_size: 2048,
            max_model_len: 2048,
            num_shards: 1,
        }),
        limits,
        tenant: Tenant::default(),
        responses: ResponseStore::default(),
    }
}

struct Reply {
    status: StatusCode,
    headers: axum::http::HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The payloads of a stream, and that it is nothing but `data: ` lines and blank lines.
    fn events(&self) -> Vec<String> {
        let blocks = self.text.strip_suffix("\n\n").unwrap().split("\n\n");
        blocks
            .map(|block| block.strip_prefix("data: ").unwrap().to_owned())
            .collect()
    }
}

impl Server {
    async fn open(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Holds the exchange to the OpenAPI document as well.
    async fn send(&self, request: Request<Body>) -> Reply {
        self.exchange(request, true).await
    }

    /// A body may be one that the document does not describe.
    async fn send_anything(&self, request: Request<Body>) -> Reply {
        self.exchange(request, false).await
    }

    async fn exchange(&self, request: Request<Body>, described: bool) -> Reply {
        let (head, body) = request.into_parts();
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let (body, sent) = match body.size_hint().exact() {
            Some(_) => {
                let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                (
                    Body::from(bytes.clone()),
                    serde_json::from_slice(&bytes).ok().filter(|_| described),
                )
            }
            None => (body, None),
        };
        let answer = self.open(Request::from_parts(head, body)).await;
        let (head, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let reply = Reply {
            status: head.status,
            headers: head.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        };
        let checked = conformance::check(&Exchange {
            method: method.as_str(),
            path: &path,
            sent,
            status: reply.status.as_u16(),
            content_type: reply.header("content-type"),
            text: &reply.text,
        });
        assert_eq!(checked, Ok(()), "{method} {path}");
        reply
    }

    async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(post(path, body)).await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path).body(Body::empty()).unwrap())
            .await
    }
}

fn post(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}
