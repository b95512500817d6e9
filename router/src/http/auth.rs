//! One layer over all routes: with keys set, everything but health needs one, as `Authorization: Bearer KEY` or, where Anthropic's
//! clients ask, as `x-api-key: KEY`. Whose key it was goes along with the request as a `Tenant`. Comparing takes the same time
//! wherever keys differ; the scheme's case does not matter, the key's does.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::watch;

use crate::types::{ApiKey, Tenant};

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

/// TGI answers it with 401, and its routes go on to do so.
const KEY_HEADER: &str = "x-api-key";
const KEY_HEADER_ROUTES: &str = "/v1/";

/// Who may ask for what. Cheap to clone.
#[derive(Clone)]
pub struct Access {
    keys: watch::Receiver<Vec<ApiKey>>,
    public_routes: Arc<[String]>,
    /// Makes salts that nobody outside this process can know.
    hasher: Arc<RandomState>,
}

impl Access {
    /// `public_routes` can be read without a key.
    pub fn new(keys: watch::Receiver<Vec<ApiKey>>, public_routes: Vec<String>) -> Self {
        Self {
            keys,
            public_routes: public_routes.into(),
            hasher: Arc::default(),
        }
    }

    /// Looks at every key, whichever is the right one.
    fn tenant_of(&self, given: &str) -> Option<Tenant> {
        let keys = self.keys.borrow();
        let mut found = None;
        for key in keys.iter() {
            let is_equal: Choice = key.key.as_bytes().ct_eq(given.as_bytes());
            if bool::from(is_equal) {
                found = Some(key);
            }
        }
        let key = found?;
        Some(Tenant {
            name: Some(key.name.as_str().into()),
            // 0 belongs to servers without keys.
            cache_salt: self.hasher.hash_one(&key.key).max(1),
        })
    }

    fn tenant(&self, request: &Request) -> Option<Tenant> {
        given_keys(request).find_map(|key| self.tenant_of(key))
    }

    fn is_open(&self, request: &Request) -> bool {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let path = request.uri().path();
        let is_public = || self.public_routes.iter().any(|route| route == path);
        reads && (HEALTH_ROUTES.contains(&path) || is_public())
    }
}

fn given_keys(request: &Request) -> impl Iterator<Item = &str> {
    let headers = request.headers();
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let takes_header = request.uri().path().starts_with(KEY_HEADER_ROUTES);
    let header = headers
        .get(KEY_HEADER)
        .filter(|_| takes_header)
        .and_then(|value| value.to_str().ok());
    bearer.into_iter().chain(header)
}

pub async fn require_key(
    State(access): State<Access>,
    mut request: Request,
    next: Next,
) -> Response {
    match access.tenant(&request) {
        Some(tenant) => {
            request.extensions_mut().insert(tenant);
        }
        None if access.is_open(&request) => {}
        None => return StatusCode::UNAUTHORIZED.into_response(),
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_is_the_same_for_the_whole_process_and_cannot_be_told_from_the_key() {
        let access = || {
            let key = ApiKey {
                name: "a".to_owned(),
                key: "key".to_owned(),
            };
            Access::new(watch::channel(vec![key]).1, Vec::new())
        };
        let salt = |access: &Access| access.tenant_of("key").unwrap().cache_salt;
        let first = access();
        assert_eq!(salt(&first), salt(&first.clone()));
        assert_ne!(salt(&first), salt(&access()));
    }
}
