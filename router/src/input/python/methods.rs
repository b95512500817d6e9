//! The methods of Python's strings, lists and maps that a template can call. None changes its value: what would, does not exist,
//! as in the sandbox of transformers. `__slice__` is `value[start:stop:step]` in a rewritten template.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::slices::slice;
use super::{bounds, containers, invalid, repr, strings};

pub const SLICE: &str = "__slice__";

pub fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    bounds::check_text(value.as_str().map_or(0, str::len))?;
    if method == SLICE {
        return slice(value, args);
    }
    let done = match value.kind() {
        ValueKind::String => strings::call(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map => map(value, method, args)?,
        ValueKind::Seq | ValueKind::Iterable => sequence(value, method, args)?,
        _ => None,
    };
    match done {
        Some(result) => Ok(result),
        None if value.kind() == ValueKind::String => {
            minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
        }
        None => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn map(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if !containers::is_mapping(value) {
        return Ok(None);
    }
    let entry = |key: Value| -> Result<(Value, Value), Error> {
        let item = value.get_item(&key)?;
        Ok((key, item))
    };
    let entries = || {
        value
            .try_iter()?
            .map(entry)
            .collect::<Result<Vec<_>, Error>>()
    };
    Ok(Some(match method {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = value.as_object().and_then(|object| object.get_value(key));
            found.or(default).unwrap_or_else(|| Value::from(()))
        }
        "keys" => {
            let () = from_args(args)?;
            let keys = entries()?.into_iter().map(|(key, _)| key);
            containers::view("dict_keys", keys.collect())
        }
        "values" => {
            let () = from_args(args)?;
            let values = entries()?.into_iter().map(|(_, item)| item);
            containers::view("dict_values", values.collect())
        }
        "items" => {
            let () = from_args(args)?;
            let pairs = entries()?.into_iter();
            let pairs = pairs.map(|(key, item)| Value::from(Tuple::from([key, item])));
            containers::view("dict_items", pairs.collect())
        }
        "copy" => value.clone(),
        _ => return Ok(None),
    }))
}

fn sequence(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "count" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let items = containers::iterate(value)?;
            Value::from(items.iter().filter(|item| *item == wanted).count())
        }
        "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let items = containers::iterate(value)?;
            let at = items.iter().position(|item| item == wanted);
            let missing = || repr::text(wanted).unwrap_or_default();
            Value::from(at.ok_or_else(|| invalid(format!("{} is not in the list", missing())))?)
        }
        "copy" => value.clone(),
        _ => return Ok(None),
    }))
}
