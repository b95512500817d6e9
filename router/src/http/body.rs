//! How JSON bodies are read, and the shapes that several share, and that serde alone would take too generously or too strictly.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use axum::Json;
use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::timeout;
use utoipa::ToSchema;

use super::HttpState;
use super::errors::ApiError;
use crate::input::ValidationError;

/// What axum says of a body that it has read as far as it may.
const TOO_LARGE: &str = "Failed to buffer the request body: length limit exceeded";

/// What axum says of a body that does not parse.
const NO_JSON: &str = "Failed to parse the request body as JSON";

/// The JSON of a request. Refused before it is read if it says that it is too large, and given up if it does not arrive in time.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<HttpState> for JsonBody<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &HttpState) -> Result<Self, Response> {
        let announced_bytes = request.body().size_hint().lower();
        if announced_bytes > state.payload_limit_bytes as u64 {
            return Err((StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE).into_response());
        }
        match timeout(state.body_timeout, read(request, state)).await {
            Ok(Ok(value)) => Ok(Self(value)),
            Ok(Err(rejection)) => Err(rejection),
            Err(_elapsed) => Err(late(state.body_timeout)),
        }
    }
}

/// Also where no field reads the bytes that are no text, which the parser alone would skip.
async fn read<T: DeserializeOwned>(request: Request, state: &HttpState) -> Result<T, Response> {
    let (head, body) = request.into_parts();
    let request = Request::from_parts(head.clone(), body);
    let bytes = Bytes::from_request(request, state).await;
    let bytes = bytes.map_err(IntoResponse::into_response)?;
    if let Err(error) = std::str::from_utf8(&bytes) {
        let message = format!("{NO_JSON}: {error}");
        return Err((StatusCode::BAD_REQUEST, message).into_response());
    }
    let request = Request::from_parts(head, bytes.into());
    let parsed = Json::from_request(request, state).await;
    let Json(value) = parsed.map_err(IntoResponse::into_response)?;
    Ok(value)
}

fn late(allowed: Duration) -> Response {
    let message = format!("the body did not arrive within {} s", allowed.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, message, "timeout").into_response()
}

/// A JSON object. A derived type alone would also accept an array of its fields in order.
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnlyMaps<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OnlyMaps<T> {
            type Value = Object<T>;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(OnlyMaps(PhantomData))
    }
}

/// The objects of clouds hold the body of another route; a key that only this body has tells which. `null` means absent.
#[derive(Deserialize)]
pub struct TellingKeys {
    pub inputs: Option<IgnoredAny>,
    pub messages: Option<IgnoredAny>,
    pub prompt: Option<IgnoredAny>,
}

/// JSON that was read once, to find out what it is, as what it is.
pub fn parse<T: DeserializeOwned, E: serde::de::Error>(json: &RawValue) -> Result<T, E> {
    let Object(value) = serde_json::from_str(json.get()).map_err(E::custom)?;
    Ok(value)
}

/// Refuses the first field that was given although nothing here can do what it asks for.
pub fn refuse_given(fields: &[(&str, bool)]) -> Result<(), ValidationError> {
    match fields.iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(ValidationError::Invalid(format!(
            "`{field}` is not supported"
        ))),
        None => Ok(()),
    }
}

/// A string or a list. The place of a fault in the list is told, which an untagged enum could not.
pub enum TextOr<T> {
    Text(String),
    List(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrSequence<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for TextOrSequence<T> {
            type Value = TextOr<T>;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("a string or a list")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(TextOr::List(list))
            }
        }
        deserializer.deserialize_any(TextOrSequence(PhantomData))
    }
}

/// OpenAI's `stop`: one string or a list.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub fn into_list(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(list) => list,
        }
    }
}

/// Token ids as text, with what is added to their logits. TGI took a list of numbers and ignored it.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
pub enum LogitBias {
    /// From -100 to 100 for each token id.
    #[schema(value_type = BTreeMap<String, f64>)]
    ByToken(TokenBiases),
    Ignored(Vec<f64>),
}

/// In the order in which they were written, each token once.
pub struct TokenBiases(Vec<(String, f64)>);

impl<'de> Deserialize<'de> for TokenBiases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = TokenBiases;

            fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
                out.write_str("an object of numbers by token id")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries: Vec<(String, f64)> = Vec::new();
                let mut seen = HashSet::new();
                while let Some((id, bias)) = map.next_entry::<String, f64>()? {
                    if !seen.insert(id.clone()) {
                        return Err(serde::de::Error::custom(format!(
                            "token {id:?} comes twice"
                        )));
                    }
                    entries.push((id, bias));
                }
                Ok(TokenBiases(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl LogitBias {
    pub fn into_entries(self) -> Result<Vec<(u64, f64)>, ValidationError> {
        let entry = |(id, bias): (String, f64)| match id.parse() {
            Ok(id) => Ok((id, bias)),
            Err(_) => Err(ValidationError::Invalid(format!(
                "`logit_bias` must be keyed by token ids. Given: {id:?}"
            ))),
        };
        match self {
            Self::ByToken(TokenBiases(entries)) => entries.into_iter().map(entry).collect(),
            Self::Ignored(numbers) => {
                tracing::debug!(
                    "a `logit_bias` of {} bare numbers is ignored",
                    numbers.len()
                );
                Ok(Vec::new())
            }
        }
    }
}
