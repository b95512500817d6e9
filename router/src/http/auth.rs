//! One layer over all routes: with a key set, everything but health needs `Authorization: Bearer KEY`. The comparison takes the same
//! time wherever keys differ; the scheme's case does not matter, the key's does.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

/// Open to everybody, for those who watch over the process.
pub const HEALTH_ROUTES: [&str; 7] = [
    "/",
    "/health",
    "/ping",
    "/livez",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
];

#[derive(Clone)]
pub struct ApiKey(Arc<str>);

impl ApiKey {
    pub fn new(key: String) -> Self {
        Self(key.into())
    }

    fn matches(&self, request: &Request) -> bool {
        let header = request.headers().get(AUTHORIZATION);
        let Some((scheme, key)) = header
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.split_once(' '))
        else {
            return false;
        };
        scheme.eq_ignore_ascii_case("bearer") && bool::from(key.as_bytes().ct_eq(self.0.as_bytes()))
    }
}

pub async fn require_key(State(key): State<ApiKey>, request: Request, next: Next) -> Response {
    if is_open(&request) || key.matches(&request) {
        next.run(request).await
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}

fn is_open(request: &Request) -> bool {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    reads && HEALTH_ROUTES.contains(&request.uri().path())
}
