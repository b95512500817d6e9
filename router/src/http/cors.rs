//! Which web pages may call the server. Off until origins are configured; then they may send whatever headers they ask for, such as
//! the API key and those that SDKs add of their own accord. Cookies mean nothing to this server.

use axum::extract::Request;
use axum::http::header::{ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use axum::http::{HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a valid origin for CORS")]
pub struct BadOrigin(String);

/// `None` where no origin is allowed.
pub fn layer(origins: &[String]) -> Result<Option<CorsLayer>, BadOrigin> {
    if origins.is_empty() {
        return Ok(None);
    }
    let allow_origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let parse =
            |origin: &String| HeaderValue::from_str(origin).map_err(|_| BadOrigin(origin.clone()));
        AllowOrigin::list(origins.iter().map(parse).collect::<Result<Vec<_>, _>>()?)
    };
    Ok(Some(
        CorsLayer::new()
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .allow_origin(allow_origin)
            // Named in full, because caches between us and the browser go by it, also for `*`.
            .vary([
                ORIGIN,
                ACCESS_CONTROL_REQUEST_METHOD,
                ACCESS_CONTROL_REQUEST_HEADERS,
            ]),
    ))
}

/// A preflight that names no headers is answered as one for JSON, as TGI does.
pub async fn ask_for_headers(mut request: Request) -> Request {
    if request.method() == Method::OPTIONS {
        let asked = request.headers_mut().entry(ACCESS_CONTROL_REQUEST_HEADERS);
        asked.or_insert(HeaderValue::from_static("content-type"));
    }
    request
}
