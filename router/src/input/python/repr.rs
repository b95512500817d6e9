//! Values as Python writes them: `str(value)` and `repr(value)`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::{bounds, invalid};

/// Lists and maps nest no deeper than this; JSON that clients send is shallower.
const MAX_DEPTH: usize = 200;

/// Python's `str`, and nothing for what is not defined.
pub fn text(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.as_str() {
        Some(string) => {
            bounds::check_text(string.len())?;
            out.push_str(string);
        }
        None if value.is_undefined() => {}
        None => write(&mut out, value, 0)?,
    }
    Ok(out)
}

/// Python's `repr`.
fn write(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("the value is nested too deeply to be printed"));
    }
    bounds::check_text(out.len())?;
    match value.kind() {
        ValueKind::String => quote(out, value.as_str().unwrap_or_default()),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number => number(out, value),
        ValueKind::Iterable if super::containers::is_generator(value) => {
            out.push_str("<generator object>");
        }
        ValueKind::Seq | ValueKind::Iterable => write_list(out, value, depth)?,
        ValueKind::Map => {
            out.push('{');
            for (idx, key) in value.try_iter()?.enumerate() {
                out.push_str(if idx == 0 { "" } else { ", " });
                write(out, &key, depth + 1)?;
                out.push_str(": ");
                write(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

fn write_list(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    let is_tuple = value.is_tuple();
    let view = super::containers::view_name(value);
    if let Some(name) = view {
        out.push_str(name);
        out.push('(');
    }
    out.push(if is_tuple { '(' } else { '[' });
    let mut len = 0;
    for item in super::containers::iterate(value)? {
        out.push_str(if len == 0 { "" } else { ", " });
        write(out, &item, depth + 1)?;
        len += 1;
    }
    if is_tuple && len == 1 {
        out.push(',');
    }
    out.push(if is_tuple { ')' } else { ']' });
    if view.is_some() {
        out.push(')');
    }
    Ok(())
}

fn number(out: &mut String, value: &Value) {
    if value.is_integer() {
        out.push_str(&value.to_string());
    } else {
        let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
        out.push_str(&float(number));
    }
}

/// The shortest digits that give the number back; with an exponent below 1e-4 and from 1e16 on.
pub fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') {
        plain
    } else {
        format!("{plain}.0")
    }
}

/// Single quotes, unless only those occur in the text. What cannot be seen is escaped.
fn quote(out: &mut String, text: &str) {
    let mark = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(mark);
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if letter == mark => out.extend(['\\', letter]),
            _ if is_printable(letter) => out.push(letter),
            _ => escape(out, letter),
        }
    }
    out.push(mark);
}

fn escape(out: &mut String, letter: char) {
    let code = u32::from(letter);
    // Writing to a string cannot fail.
    let _ = match code {
        0..0x100 => write!(out, "\\x{code:02x}"),
        0x100..0x10000 => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

/// Rust's own debug output escapes by the same categories as Python; the letter in front keeps combining marks as they are.
fn is_printable(letter: char) -> bool {
    if letter.is_ascii() {
        return (' '..='~').contains(&letter);
    }
    let text: String = ['x', letter].iter().collect();
    text.escape_debug().count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_have_pythons_digits_and_exponents() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (5e-324, "5e-324"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (number, expected) in cases {
            assert_eq!(float(number), expected);
        }
    }

    #[test]
    fn a_value_that_is_nested_without_end_is_refused() {
        let mut value = Value::from(1);
        for _ in 0..MAX_DEPTH + 2 {
            value = Value::from(vec![value]);
        }
        assert!(text(&value).is_err());
    }
}
