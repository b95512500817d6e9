//! Lists and maps that print themselves as Python does wherever they are turned into text, and what the methods of a map return.
//! They never change.

use std::fmt;
use std::sync::{Arc, Mutex};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, Value};

use super::{bounds, invalid, repr};

/// A list.
#[derive(Debug)]
struct List(Vec<Value>);

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let idx = key
            .as_i64()
            .filter(|_| key.is_integer() || key.kind() == ValueKind::Bool)?;
        let from_end = usize::try_from(idx.unsigned_abs()).ok()?;
        let idx = match idx {
            0.. => from_end,
            _ => self.0.len().checked_sub(from_end)?,
        };
        self.0.get(idx).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(&Value::from_dyn_object(self.clone()), out)
    }
}

/// A map, around one of minijinja's.
#[derive(Debug)]
struct Map(DynObject);

impl Object for Map {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get_value(key)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.0.get_value_by_str(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.0.enumerate()
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.0.enumerator_len()
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(&Value::from_dyn_object(self.clone()), out)
    }
}

/// `dict.keys()`, `dict.values()`, `dict.items()`.
#[derive(Debug)]
struct View {
    name: &'static str,
    items: Vec<Value>,
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(&Value::from_dyn_object(self.clone()), out)
    }
}

fn write(value: &Value, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    out.write_str(&repr::text(value).map_err(|_| fmt::Error)?)
}

pub fn list(items: Vec<Value>) -> Value {
    Value::from_object(List(items))
}

/// A map with the entries of another one.
pub fn map(entries: Value) -> Value {
    match entries.as_object() {
        Some(object) => Value::from_object(Map(object.clone())),
        None => entries,
    }
}

pub fn view(name: &'static str, items: Vec<Value>) -> Value {
    Value::from_object(View { name, items })
}

/// "dict_items", ...; `None` for everything else.
pub fn view_name(value: &Value) -> Option<&'static str> {
    value.downcast_object_ref::<View>().map(|view| view.name)
}

/// Whether it is a map of data; namespaces and loops are not.
pub fn is_mapping(value: &Value) -> bool {
    value.downcast_object_ref::<Map>().is_some()
}

/// What filters such as `select` return: true even if nothing comes, without a length, and gone once it was read.
#[derive(Debug)]
struct Generator(Mutex<Option<Vec<Value>>>);

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let items = self.0.lock().ok().and_then(|mut items| items.take());
        Enumerator::Iter(Box::new(items.unwrap_or_default().into_iter()))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("<generator object>")
    }
}

pub fn generator(items: Vec<Value>) -> Value {
    Value::from_object(Generator(Mutex::new(Some(items))))
}

pub fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

/// Data that came as JSON, with the lists and maps of this module all the way down.
pub fn from_json(value: &Value) -> Value {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable if !value.is_tuple() => {
            let items = value.try_iter().into_iter().flatten();
            list(items.map(|item| from_json(&item)).collect())
        }
        ValueKind::Map => {
            let keys = value.try_iter().into_iter().flatten();
            let entries = keys.map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                (key, from_json(&item))
            });
            map(Value::from_pairs(entries))
        }
        _ => value.clone(),
    }
}

/// What Python can loop over; anything not defined is an empty list.
pub fn iterate(value: &Value) -> Result<Vec<Value>, Error> {
    check_iterable(value)?;
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        bounds::check_items(items.len() + 1)?;
        items.push(item?);
    }
    Ok(items)
}

pub fn check_iterable(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Plain => {
            Err(invalid(format!("{} is not iterable", repr::text(value)?)))
        }
        _ => Ok(()),
    }
}
