//! `tojson` as transformers defines it: `json.dumps(value, ensure_ascii=False)`, without HTML escapes.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::{bounds, containers, invalid, repr};

const MAX_DEPTH: usize = 200;

/// `{{ value | tojson(ensure_ascii, indent, separators, sort_keys) }}`, each by place or by name.
pub fn tojson(
    value: &Value,
    by_place: minijinja::value::Rest<Value>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let argument = |idx: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        let given = by_place.get(idx).cloned().or(named);
        Ok(given.filter(|value| !value.is_none()))
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let ascii = is_true(argument(0, "ensure_ascii")?);
    let indent = argument(1, "indent")?.map(indent).transpose()?;
    let (item, key) = separators(argument(2, "separators")?, indent.is_some())?;
    let style = Json {
        indent,
        item,
        key,
        sort_keys: is_true(argument(3, "sort_keys")?),
        ascii,
    };
    kwargs.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    Ok(Value::from(out))
}

fn indent(given: Value) -> Result<String, Error> {
    match given.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => given
            .as_i64()
            .map(|width| " ".repeat(usize::try_from(width.min(1000)).unwrap_or(0)))
            .ok_or_else(|| invalid("`indent` must be a number or a string")),
    }
}

fn separators(given: Option<Value>, is_indented: bool) -> Result<(String, String), Error> {
    let Some(given) = given else {
        let item = if is_indented { "," } else { ", " };
        return Ok((item.to_owned(), ": ".to_owned()));
    };
    let parts: Vec<Value> = given.try_iter()?.collect();
    match parts.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
        [Some(item), Some(key)] => Ok((item.to_owned(), key.to_owned())),
        _ => Err(invalid("`separators` must be a pair of strings")),
    }
}

struct Json {
    /// Of one level.
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ascii: bool,
}

impl Json {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("the value is nested too deeply for JSON"));
        }
        bounds::check_text(out.len())?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)?),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable if is_list(value) => {
                let items = containers::iterate(value)?;
                self.list(out, ('[', ']'), depth, items.len(), |out, idx| {
                    self.write(out, &items[idx], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(out, ('{', '}'), depth, keys.len(), |out, idx| {
                    self.string(out, &key_text(&keys[idx])?);
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(&keys[idx])?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("{kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn list(
        &self,
        out: &mut String,
        (open, close): (char, char),
        depth: usize,
        len: usize,
        mut write_item: impl FnMut(&mut String, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for idx in 0..len {
            out.push_str(if idx == 0 { "" } else { &self.item });
            self.new_line(out, depth + 1);
            write_item(out, idx)?;
        }
        if len > 0 {
            self.new_line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                letter if letter < ' ' || (self.ascii && !(' '..='~').contains(&letter)) => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                letter => out.push(letter),
            }
        }
        out.push('"');
    }
}

fn is_list(value: &Value) -> bool {
    containers::view_name(value).is_none() && !containers::is_generator(value)
}

fn number(value: &Value) -> Result<String, Error> {
    let text = repr::text(value)?;
    Ok(match text.as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        _ => text,
    })
}

fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => number(key),
        kind => Err(invalid(format!("keys of JSON cannot be of type {kind}"))),
    }
}
