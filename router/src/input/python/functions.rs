//! Functions of templates, among them those that the rewritten source calls (`chat_template/source.rs`).

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, Value};

use super::{containers, invalid};

/// Around literals and after `in` of a loop, in templates as they are compiled.
pub const LIST: &str = "__list__";
pub const DICT: &str = "__dict__";
pub const ITERATE: &str = "__iter__";

pub fn install(environment: &mut Environment) {
    environment.add_function(LIST, |items: Value| -> Result<Value, Error> {
        Ok(containers::list(containers::iterate(&items)?))
    });
    environment.add_function(DICT, |entries: Value| containers::map(entries));
    environment.add_function(ITERATE, iterated);
    environment.add_function("dict", dict);
    environment.add_function("namespace", namespace);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("cycler", |items: Rest<Value>| {
        minijinja_contrib::globals::cycler(items.to_vec())
    });
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
}

/// What a loop runs over. Several values are a tuple without its brackets.
fn iterated(mut values: Rest<Value>) -> Result<Value, Error> {
    if values.len() != 1 {
        return Ok(Value::from(Tuple::from(std::mem::take(&mut *values))));
    }
    let value = values.remove(0);
    containers::check_iterable(&value)?;
    Ok(value)
}

/// `dict({..}, a=1)`, `dict([(key, value), ..])`.
fn dict(entries: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    match entries {
        None => {}
        Some(entries) if entries.kind() == ValueKind::Map => {
            for key in entries.try_iter()? {
                let value = entries.get_item(&key)?;
                pairs.push((key, value));
            }
        }
        Some(entries) => {
            for pair in containers::iterate(&entries)? {
                match &containers::iterate(&pair)?[..] {
                    [key, value] => pairs.push((key.clone(), value.clone())),
                    _ => return Err(invalid("`dict` takes pairs of a key and a value")),
                }
            }
        }
    }
    for name in kwargs.args() {
        pairs.push((Value::from(name), kwargs.get(name)?));
    }
    Ok(containers::map(Value::from_pairs(pairs)))
}

fn namespace(entries: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let entries = dict(entries, kwargs)?;
    for name in entries.try_iter()? {
        if name.as_str().is_some_and(|name| name.starts_with('_')) {
            return Err(invalid(format!("a namespace cannot hold {name}")));
        }
    }
    minijinja::functions::namespace(Some(minijinja::value::from_args::<(_,)>(&[entries])?.0))
}

fn raise_exception(message: Value) -> Result<Value, Error> {
    let words = super::repr::text(&message)?;
    Err(invalid(match words.trim() {
        "" => "the template refuses the conversation".to_owned(),
        _ => words,
    }))
}
