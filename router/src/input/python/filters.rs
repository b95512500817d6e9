//! Filters that answer differently in Jinja2 than in minijinja: most take any value and work on its text.

use minijinja::value::{Kwargs, Rest, Tuple};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::{bounds, containers, invalid, json, numbers, repr, strings};

pub fn install(environment: &mut Environment) {
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: &Value| repr::text(value));
    environment.add_filter("join", join);
    environment.add_filter("indent", indent);
    environment.add_filter("items", items);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter("list", list);
    environment.add_filter("trim", trim);
    environment.add_filter("upper", |value: &Value| {
        repr::text(value).map(|text| text.to_uppercase())
    });
    environment.add_filter("lower", |value: &Value| {
        repr::text(value).map(|text| text.to_lowercase())
    });
    environment.add_filter("capitalize", |value: &Value| {
        repr::text(value).map(|text| strings::capitalize(&text))
    });
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_filter("replace", replace);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("first", first);
    environment.add_filter("last", last);
    environment.add_filter("max", max);
    environment.add_filter("wordcount", |value: &Value| {
        let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
        let words = |text: String| {
            text.split(|letter| !is_part(letter))
                .filter(|part| !part.is_empty())
                .count()
        };
        repr::text(value).map(words)
    });
    numbers::install(environment);
    bounds::install(environment);
    environment.add_filter("safe", |value: &Value| repr::text(value));
}

/// Each can be given by place or by name.
struct Arguments<'a> {
    by_place: &'a [Value],
    by_name: &'a Kwargs,
}

impl<'a> Arguments<'a> {
    fn new(by_place: &'a [Value], by_name: &'a Kwargs) -> Self {
        Self { by_place, by_name }
    }

    fn get(&self, idx: usize, name: &str) -> Result<Option<Value>, Error> {
        let named: Option<Value> = self.by_name.get(name)?;
        Ok(self.by_place.get(idx).cloned().or(named))
    }

    fn is_true(&self, idx: usize, name: &str) -> Result<bool, Error> {
        Ok(self.get(idx, name)?.is_some_and(|value| value.is_true()))
    }
}

fn trim(value: &Value, set: Option<&str>) -> Result<String, Error> {
    Ok(strings::strip(&repr::text(value)?, set, (true, true)))
}

fn join(
    value: &Value,
    separator: Option<Value>,
    attribute: Option<Value>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let separator = separator.or(kwargs.get("d")?).unwrap_or_default();
    let attribute = attribute.or(kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let text = |item: Value| -> Result<String, Error> {
        match &attribute {
            Some(name) => repr::text(&item.get_item(name)?),
            None => repr::text(&item),
        }
    };
    let separator = repr::text(&separator)?;
    let mut out = String::new();
    for (idx, item) in containers::iterate(value)?.into_iter().enumerate() {
        out.push_str(if idx == 0 { "" } else { &separator });
        out.push_str(&text(item)?);
        bounds::check_text(out.len())?;
    }
    Ok(out)
}

/// Lines behind the first get spaces in front; empty ones only if `blank`.
fn indent(value: &Value, by_place: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let arguments = Arguments::new(&by_place, &kwargs);
    let width = arguments.get(0, "width")?.unwrap_or_else(|| Value::from(4));
    let first = arguments.is_true(1, "first")?;
    let blank = arguments.is_true(2, "blank")?;
    kwargs.assert_all_used()?;
    let space = match (width.as_str(), width.as_i64()) {
        (Some(text), _) => text.to_owned(),
        (_, Some(width)) => " ".repeat(usize::try_from(width.min(1000)).unwrap_or(0)),
        _ => {
            return Err(invalid(
                "the width of `indent` must be a number or a string",
            ));
        }
    };
    // Jinja2 adds a line, so that one at the end is not lost.
    let text = repr::text(value)? + "\n";
    let lines = containers::iterate(&strings::split_lines(&text, false)?)?;
    let mut out = String::new();
    for (idx, line) in lines.iter().enumerate() {
        let line = line.as_str().unwrap_or_default();
        out.push_str(if idx == 0 { "" } else { "\n" });
        let wanted = if idx == 0 {
            first
        } else {
            blank || !line.is_empty()
        };
        out.push_str(if wanted { &space } else { "" });
        out.push_str(line);
        bounds::check_text(out.len())?;
    }
    Ok(out)
}

fn items(value: &Value) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(containers::list(Vec::new()));
    }
    if !containers::is_mapping(value) {
        return Err(invalid("can only get item pairs from a mapping"));
    }
    let pair = |key: Value| {
        let item = value.get_item(&key)?;
        Ok(Value::from(Tuple::from([key, item])))
    };
    let pairs = value.try_iter()?.map(pair).collect::<Result<_, Error>>()?;
    Ok(containers::list(pairs))
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let missing = || Error::new(ErrorKind::InvalidOperation, "the value has no length");
    value.len().ok_or_else(missing)
}

fn list(value: &Value) -> Result<Value, Error> {
    containers::iterate(value).map(containers::list)
}

fn default(value: &Value, by_place: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(&by_place, &kwargs);
    let other = arguments
        .get(0, "default_value")?
        .unwrap_or_else(|| Value::from(""));
    let is_boolean = arguments.is_true(1, "boolean")?;
    kwargs.assert_all_used()?;
    let is_missing = value.is_undefined() || (is_boolean && !value.is_true());
    Ok(if is_missing { other } else { value.clone() })
}

fn replace(value: &Value, old: &Value, new: &Value, count: Option<i64>) -> Result<String, Error> {
    let (text, old, new) = (repr::text(value)?, repr::text(old)?, repr::text(new)?);
    bounds::replace(&text, &old, &new, count)
}

fn escape(value: &Value) -> Result<String, Error> {
    let text = repr::text(value)?
        .replace('&', "&amp;")
        .replace('<', "&lt;");
    let text = text.replace('>', "&gt;").replace('"', "&#34;");
    Ok(text.replace('\'', "&#39;"))
}

/// Pairs of a map, by key or by value; strings without regard to case unless asked.
fn dictsort(value: &Value, by_place: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let arguments = Arguments::new(&by_place, &kwargs);
    let is_case_sensitive = arguments.is_true(0, "case_sensitive")?;
    let by_value = arguments
        .get(1, "by")?
        .is_some_and(|by| by.as_str() == Some("value"));
    let is_reversed = arguments.is_true(2, "reverse")?;
    kwargs.assert_all_used()?;
    let mut pairs = containers::iterate(&items(value)?)?;
    let order = |pair: &Value| {
        let part = pair
            .get_item_by_index(usize::from(by_value))
            .unwrap_or_default();
        match part.as_str() {
            Some(text) if !is_case_sensitive => Value::from(text.to_lowercase()),
            _ => part,
        }
    };
    pairs.sort_by(|a, b| match is_reversed {
        true => order(b).cmp(&order(a)),
        false => order(a).cmp(&order(b)),
    });
    Ok(containers::list(pairs))
}

fn first(value: &Value) -> Result<Value, Error> {
    Ok(containers::iterate(value)?
        .into_iter()
        .next()
        .unwrap_or_default())
}

fn last(value: &Value) -> Result<Value, Error> {
    Ok(containers::iterate(value)?.pop().unwrap_or_default())
}

/// The first of the largest.
fn max(state: &State, value: Value, kwargs: Kwargs) -> Result<Value, Error> {
    let mut items = containers::iterate(&value)?;
    items.reverse();
    minijinja::filters::max(state, containers::list(items), kwargs)
}
