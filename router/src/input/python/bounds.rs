//! Bounds on what one filter or method may take or make. Fuel counts a template's instructions, not the work within one; without
//! these, a single filter could fill the memory.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Rest, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value, filters};

use super::{containers, invalid};

pub const MAX_ITEMS: usize = 1 << 20;
pub const MAX_TEXT_BYTES: usize = 16 << 20;
/// Digits of a width or a precision in a format.
const MAX_FORMAT_DIGITS: usize = 4;

pub fn check_items(len: usize) -> Result<(), Error> {
    match len > MAX_ITEMS {
        true => Err(invalid(format!("more than {MAX_ITEMS} items"))),
        false => Ok(()),
    }
}

pub fn check_text(num_bytes: usize) -> Result<(), Error> {
    match num_bytes > MAX_TEXT_BYTES {
        true => Err(invalid(format!(
            "a text of more than {MAX_TEXT_BYTES} bytes"
        ))),
        false => Ok(()),
    }
}

/// `text.replace(old, new, count)`.
pub fn replace(text: &str, old: &str, new: &str, count: Option<i64>) -> Result<String, Error> {
    let count = count
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(usize::MAX);
    let found = match old.is_empty() {
        true => text.chars().count() + 1,
        false => text.matches(old).count(),
    };
    check_text(text.len() + found.min(count).saturating_mul(new.len()))?;
    Ok(text.replacen(old, new, count))
}

/// Widths, and values that hold them, are refused where they are absurd.
pub fn check_format(format: &str, arguments: &[Value]) -> Result<(), Error> {
    let is_digit = |letter: char| letter.is_ascii_digit();
    let longest = format.split(|letter| !is_digit(letter)).map(str::len).max();
    let is_large = |value: &Value| {
        value.is_integer()
            && value
                .as_i64()
                .is_none_or(|number| number.unsigned_abs() > 10_000)
    };
    let takes_width = format.contains('*') || format.matches('{').count() > 1;
    let is_absurd = longest > Some(MAX_FORMAT_DIGITS)
        || takes_width && format.contains([':', '*']) && arguments.iter().any(is_large);
    check_text(format.len())?;
    match is_absurd {
        true => Err(invalid("the width of a format is too large")),
        false => Ok(()),
    }
}

/// A list instead of anything lazy.
fn finite(value: &Value) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        check_text(text.len())?;
        return Ok(value.clone());
    }
    if containers::is_mapping(value) || value.is_undefined() {
        return Ok(value.clone());
    }
    containers::iterate(value).map(containers::list)
}

/// minijinja's own filters for lists, within bounds; filters that Jinja2 does not have are taken away.
pub fn install(environment: &mut Environment) {
    for name in ["bool", "chain", "lines", "split", "zip"] {
        environment.remove_filter(name);
    }
    environment.add_filter("reverse", |value: &Value| filters::reverse(&finite(value)?));
    environment.add_filter("sort", |state: &State, value: &Value, kwargs: Kwargs| {
        filters::sort(state, finite(value)?, kwargs)
    });
    environment.add_filter("unique", |state: &State, value: &Value, kwargs: Kwargs| {
        filters::unique(state, finite(value)?, kwargs)
    });
    environment.add_filter("min", |state: &State, value: &Value, kwargs: Kwargs| {
        filters::min(state, finite(value)?, kwargs)
    });
    environment.add_filter(
        "groupby",
        |value: &Value, name: Option<&str>, kwargs: Kwargs| {
            filters::groupby(finite(value)?, name, kwargs)
        },
    );
    environment.add_filter(
        "sum",
        |state: &State, value: &Value, name: Option<&str>, start: Option<Value>, kwargs: Kwargs| {
            filters::sum(state, finite(value)?, name, start, kwargs)
        },
    );
    environment.add_filter(
        "batch",
        |state: &State, value: &Value, count: usize, fill: Option<Value>| {
            check_items(count)?;
            filters::batch(state, finite(value)?, count, fill)
        },
    );
    environment.add_filter(
        "slice",
        |state: &State, value: &Value, count: usize, fill: Option<Value>| {
            check_items(count)?;
            filters::slice(state, finite(value)?, count, fill)
        },
    );
    environment.add_filter(
        "format",
        |state: &mut State, format: &Value, by_place: Rest<Value>, kwargs: Kwargs| {
            let mut arguments = by_place.to_vec();
            arguments.extend(kwargs.args().next().map(|_| Value::from(kwargs.clone())));
            check_format(format.as_str().unwrap_or_default(), &arguments)?;
            filters::format(state, format, given(&arguments)?)
        },
    );
    generators(environment);
}

fn given(arguments: &[Value]) -> Result<Rest<ValueOrKwargs>, Error> {
    minijinja::value::from_args::<(Rest<ValueOrKwargs>,)>(arguments).map(|(arguments,)| arguments)
}

/// Filters that give one item after the other.
fn generators(environment: &mut Environment) {
    type Arguments = Rest<ValueOrKwargs>;
    type Test<'a> = Option<Cow<'a, str>>;
    environment.add_filter(
        "map",
        |state: &mut State, value: Value, arguments: Arguments| {
            let value = finite(&value)?;
            filters::map(state, value, arguments).map(containers::generator)
        },
    );
    environment.add_filter(
        "select",
        |state: &mut State, value: Value, test: Test, arguments: Arguments| {
            let value = finite(&value)?;
            filters::select(state, value, test, arguments).map(containers::generator)
        },
    );
    environment.add_filter(
        "reject",
        |state: &mut State, value: Value, test: Test, arguments: Arguments| {
            let value = finite(&value)?;
            filters::reject(state, value, test, arguments).map(containers::generator)
        },
    );
    environment.add_filter(
        "selectattr",
        |state: &mut State, value: Value, name: Value, test: Test, arguments: Arguments| {
            let value = finite(&value)?;
            let name = Cow::Owned(super::repr::text(&name)?);
            filters::selectattr(state, value, name, test, arguments).map(containers::generator)
        },
    );
    environment.add_filter(
        "rejectattr",
        |state: &mut State, value: Value, name: Value, test: Test, arguments: Arguments| {
            let value = finite(&value)?;
            let name = Cow::Owned(super::repr::text(&name)?);
            filters::rejectattr(state, value, name, test, arguments).map(containers::generator)
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replacement_that_would_be_too_long_is_refused() {
        let long = "a".repeat(MAX_TEXT_BYTES / 2);
        assert!(replace(&long, "", "bb", None).is_err());
        assert!(replace(&long, "a", "bbb", None).is_err());
        assert!(replace(&long, "a", "bbb", Some(2)).is_ok());
        assert_eq!(replace("aXbX", "X", "-", Some(-1)).unwrap(), "a-b-");
    }

    #[test]
    fn absurd_widths_are_refused_and_usual_ones_are_not() {
        let large = [Value::from(99_999_999)];
        assert!(check_format("%99999d", &[]).is_err());
        assert!(check_format("{:>99999}", &[]).is_err());
        assert!(check_format("%*d", &large).is_err());
        assert!(check_format("{:{}}", &large).is_err());
        assert!(check_format("{:,} %5.2f", &large).is_ok());
        assert!(check_format("%s", &large).is_ok());
    }
}
