//! JSON as text in the shape of a tree, so that it can also be what no JSON type can hold: keys that occur twice, numbers without
//! bounds, halves of surrogate pairs.

use std::fmt;

#[derive(Clone)]
pub enum Json {
    /// A number, a string or a constant as it is written; perhaps not JSON at all.
    Leaf(String),
    List(Vec<Json>),
    /// Keys as they are written, with quotes.
    Map(Vec<(String, Json)>),
}

impl Json {
    /// `None` if it is not JSON.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<serde_json::Value>(bytes)
            .ok()
            .map(Self::from)
    }

    /// This node and all below it.
    pub fn count(&self) -> usize {
        1 + match self {
            Self::Leaf(_) => 0,
            Self::List(items) => items.iter().map(Self::count).sum(),
            Self::Map(entries) => entries.iter().map(|(_, item)| item.count()).sum(),
        }
    }

    /// The node with that number, from the root's 0.
    pub fn node(&mut self, mut idx: usize) -> Option<&mut Self> {
        if idx == 0 {
            return Some(self);
        }
        idx -= 1;
        let children: Vec<&mut Self> = match self {
            Self::Leaf(_) => return None,
            Self::List(items) => items.iter_mut().collect(),
            Self::Map(entries) => entries.iter_mut().map(|(_, item)| item).collect(),
        };
        for child in children {
            let len = child.count();
            if idx < len {
                return child.node(idx);
            }
            idx -= len;
        }
        None
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        match value {
            serde_json::Value::Array(items) => {
                Self::List(items.into_iter().map(Self::from).collect())
            }
            serde_json::Value::Object(entries) => {
                let entry = |(key, item)| (serde_json::Value::String(key).to_string(), item);
                let entries = entries.into_iter().map(entry);
                Self::Map(entries.map(|(key, item)| (key, Self::from(item))).collect())
            }
            leaf => Self::Leaf(leaf.to_string()),
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leaf(text) => out.write_str(text),
            Self::List(items) => {
                out.write_str("[")?;
                for (idx, item) in items.iter().enumerate() {
                    out.write_str(if idx == 0 { "" } else { "," })?;
                    item.fmt(out)?;
                }
                out.write_str("]")
            }
            Self::Map(entries) => {
                out.write_str("{")?;
                for (idx, (key, item)) in entries.iter().enumerate() {
                    out.write_str(if idx == 0 { "" } else { "," })?;
                    write!(out, "{key}:{item}")?;
                }
                out.write_str("}")
            }
        }
    }
}
