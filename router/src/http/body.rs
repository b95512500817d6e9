//! Shapes that several JSON bodies share, and that serde alone would take too generously or too strictly.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::input::ValidationError;

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

/// OpenAI's `stop`: one string or a list.
#[derive(Deserialize)]
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
#[derive(Deserialize)]
#[serde(untagged)]
pub enum LogitBias {
    ByToken(BTreeMap<String, f64>),
    Ignored(Vec<f64>),
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
            Self::ByToken(entries) => entries.into_iter().map(entry).collect(),
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
