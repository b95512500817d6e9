//! The methods of Python's strings.

use minijinja::value::{Kwargs, Tuple, from_args};
use minijinja::{Error, ErrorKind, Value};

use super::slices::indices;
use super::{bounds, containers, invalid};

/// What Python calls white space: more control characters than Unicode's property.
pub fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// Removes white space, or the letters of `set`, from the wanted ends.
pub fn strip(text: &str, set: Option<&str>, (left, right): (bool, bool)) -> String {
    let stripped = |letter: char| match set {
        Some(set) => set.contains(letter),
        None => is_space(letter),
    };
    let text = if left {
        text.trim_start_matches(stripped)
    } else {
        text
    };
    let text = if right {
        text.trim_end_matches(stripped)
    } else {
        text
    };
    text.to_owned()
}

pub fn call(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let by_text = |value: &Value| -> Result<String, Error> {
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| invalid(format!("`{method}` takes strings")))
    };
    let first = || {
        args.first()
            .ok_or_else(|| Error::from(ErrorKind::MissingArgument))
    };
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (set,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, set, (method != "rstrip", method != "lstrip")))
        }
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "splitlines" => {
            let (keep_ends,): (Option<bool>,) = from_args(args)?;
            split_lines(text, keep_ends.unwrap_or(false))?
        }
        "partition" => partition(
            text,
            text.find(&by_text(first()?)?),
            &by_text(first()?)?,
            false,
        )?,
        "rpartition" => partition(
            text,
            text.rfind(&by_text(first()?)?),
            &by_text(first()?)?,
            true,
        )?,
        "removeprefix" => {
            let prefix = by_text(first()?)?;
            Value::from(text.strip_prefix(&*prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let suffix = by_text(first()?)?;
            Value::from(text.strip_suffix(&*suffix).unwrap_or(text))
        }
        "startswith" | "endswith" => starts_or_ends(text, method == "endswith", args)?,
        "find" | "rfind" | "index" | "rindex" => find(text, method, args)?,
        "count" => {
            let part = by_text(first()?)?;
            let empty = || text.chars().count() + 1;
            Value::from(if part.is_empty() {
                empty()
            } else {
                text.matches(&*part).count()
            })
        }
        "join" => {
            let items = containers::iterate(first()?)?;
            let items: Vec<String> = items.iter().map(by_text).collect::<Result<_, _>>()?;
            let separators = items.len().saturating_mul(text.len());
            bounds::check_text(separators + items.iter().map(String::len).sum::<usize>())?;
            Value::from(items.join(text))
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            Value::from(bounds::replace(text, old, new, count)?)
        }
        "format" => {
            bounds::check_format(text, args)?;
            return Ok(None);
        }
        "title" => Value::from(title(text)),
        "capitalize" => Value::from(capitalize(text)),
        "swapcase" => Value::from(text.chars().map(swap_case).collect::<String>()),
        "casefold" => Value::from(text.to_lowercase().replace('ß', "ss")),
        "isdigit" => Value::from(is_all(text, |letter| {
            letter.is_ascii_digit() || "²³¹".contains(letter)
        })),
        "isdecimal" => Value::from(is_all(text, |letter| letter.is_ascii_digit())),
        "isspace" => Value::from(is_all(text, is_space)),
        "isidentifier" => Value::from(
            is_all(text, |letter| letter.is_alphanumeric() || letter == '_')
                && !text.starts_with(|letter: char| letter.is_numeric()),
        ),
        "istitle" => Value::from(text.chars().any(char::is_alphabetic) && title(text) == text),
        "ljust" | "rjust" | "center" | "zfill" => padded(text, method, args)?,
        "expandtabs" => {
            let (width,): (Option<usize>,) = from_args(args)?;
            Value::from(expand_tabs(text, width.unwrap_or(8))?)
        }
        _ => return Ok(None),
    }))
}

fn is_all(text: &str, wanted: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(wanted)
}

fn strings<'a>(items: impl IntoIterator<Item = &'a str>) -> Result<Value, Error> {
    let most = bounds::MAX_ITEMS + 1;
    let items: Vec<Value> = items.into_iter().take(most).map(Value::from).collect();
    bounds::check_items(items.len())?;
    Ok(containers::list(items))
}

fn split(text: &str, from_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, max, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let named: Option<Value> = kwargs.get("sep")?;
    let max = max.or(kwargs.get("maxsplit")?).unwrap_or(-1);
    kwargs.assert_all_used()?;
    // Of the parts that remain, the last holds the rest.
    let max = usize::try_from(max).map_or(usize::MAX, |max| max.saturating_add(1));
    let Some(separator) = separator.or(named).filter(|separator| !separator.is_none()) else {
        return strings(split_at_space(text, from_end, max));
    };
    match separator.as_str() {
        None => Err(invalid("a separator must be a string")),
        Some("") => Err(invalid("empty separator")),
        Some(separator) if from_end => {
            let mut parts: Vec<&str> = text.rsplitn(max, separator).collect();
            parts.reverse();
            strings(parts)
        }
        Some(separator) => strings(text.splitn(max, separator)),
    }
}

fn split_at_space(text: &str, from_end: bool, max: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let trimmed = |text| match from_end {
        true => str::trim_end_matches(text, is_space),
        false => str::trim_start_matches(text, is_space),
    };
    let mut rest = trimmed(text);
    while !rest.is_empty() && parts.len() + 1 < max {
        let (part, remaining) = if from_end {
            let start = rest
                .rfind(is_space)
                .map_or(0, |at| at + letter_len(rest, at));
            (&rest[start..], &rest[..start])
        } else {
            rest.split_at(rest.find(is_space).unwrap_or(rest.len()))
        };
        parts.push(part);
        rest = trimmed(remaining);
    }
    parts.extend(Some(rest).filter(|rest| !rest.is_empty()));
    if from_end {
        parts.reverse();
    }
    parts
}

fn letter_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(1, char::len_utf8)
}

pub fn split_lines(text: &str, keep_ends: bool) -> Result<Value, Error> {
    let is_end = |letter: char| {
        matches!(
            letter,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let len = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => letter_len(rest, at),
        };
        lines.push(&rest[..if keep_ends { at + len } else { at }]);
        rest = &rest[at + len..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    strings(lines)
}

fn partition(
    text: &str,
    at: Option<usize>,
    separator: &str,
    from_end: bool,
) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let parts = match at {
        Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// The text from character `start` to character `stop`.
fn between(text: &str, start: Option<i64>, stop: Option<i64>) -> (usize, String) {
    let letters: Vec<char> = text.chars().collect();
    let picked: Vec<usize> = indices(start, stop, 1, letters.len()).collect();
    let first = picked.first().copied().unwrap_or(0);
    (first, picked.iter().map(|&idx| letters[idx]).collect())
}

fn starts_or_ends(text: &str, is_end: bool, args: &[Value]) -> Result<Value, Error> {
    let (wanted, start, stop): (&Value, Option<i64>, Option<i64>) = from_args(args)?;
    let (_, text) = between(text, start, stop);
    let wanted = match wanted.is_tuple() {
        true => containers::iterate(wanted)?,
        false => vec![wanted.clone()],
    };
    for wanted in wanted {
        let Some(wanted) = wanted.as_str() else {
            return Err(invalid(
                "a prefix or suffix must be a string or a tuple of strings",
            ));
        };
        if if is_end {
            text.ends_with(wanted)
        } else {
            text.starts_with(wanted)
        } {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

fn find(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (wanted, start, stop): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let (first, text) = between(text, start, stop);
    let at = if method.starts_with('r') {
        text.rfind(wanted)
    } else {
        text.find(wanted)
    };
    match at {
        Some(at) => Ok(Value::from(first + text[..at].chars().count())),
        None if method.ends_with("index") => Err(invalid("substring not found")),
        None => Ok(Value::from(-1)),
    }
}

/// Every letter behind a letter is lower case, every other upper case.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for letter in text.chars() {
        match inside {
            true => out.extend(letter.to_lowercase()),
            false => out.extend(letter.to_uppercase()),
        }
        inside = letter.is_lowercase() || letter.is_uppercase();
    }
    out
}

pub fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first
        .chain(letters.as_str().to_lowercase().chars())
        .collect()
}

fn swap_case(letter: char) -> String {
    match letter.is_uppercase() {
        true => letter.to_lowercase().collect(),
        false => letter.to_uppercase().collect(),
    }
}

fn padded(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, given): (usize, Option<&str>) = from_args(args)?;
    let given = given.and_then(|fill| fill.chars().next()).unwrap_or(' ');
    bounds::check_text(width.saturating_mul(4))?;
    let len = text.chars().count();
    let missing = width.saturating_sub(len);
    let fill = |count: usize, fill: char| fill.to_string().repeat(count);
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", fill(missing, given)),
        "rjust" => format!("{}{text}", fill(missing, given)),
        "zfill" => {
            let digits = text.trim_start_matches(['+', '-']);
            let (sign, digits) = text.split_at(usize::from(digits.len() < text.len()));
            format!("{sign}{}{digits}", fill(missing, '0'))
        }
        _ => {
            // Python puts the odd one on the left where the width is odd.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill(left, given), fill(missing - left, given))
        }
    }))
}

fn expand_tabs(text: &str, width: usize) -> Result<String, Error> {
    if width > 1000 {
        return Err(invalid("the width is too large"));
    }
    let mut out = String::new();
    let mut column = 0;
    for letter in text.chars() {
        bounds::check_text(out.len())?;
        match letter {
            '\t' => {
                let spaces = if width == 0 {
                    0
                } else {
                    width - column % width
                };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(letter);
                column = 0;
            }
            _ => {
                out.push(letter);
                column += 1;
            }
        }
    }
    Ok(out)
}
