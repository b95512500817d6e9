//! Turns a log object into the line that people or machines read: `TIMESTAMP LEVEL target: message key=value`, or JSON.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::Source;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Json,
    Text,
    /// Text with colours, for terminals.
    Colored,
}

const DIM: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

impl Style {
    /// One line, with its end. A message with several lines stays so in text.
    pub(super) fn render(self, object: &Map<String, Value>, source: Source) -> String {
        if self == Style::Json {
            return format!("{}\n", Value::Object(object.clone()));
        }
        let empty = Map::new();
        let fields = object
            .get("fields")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        let message = fields.get("message").or_else(|| object.get("message"));
        let (dim, reset) = if self == Style::Colored {
            (DIM, RESET)
        } else {
            ("", "")
        };
        let mut line = format!(
            "{dim}{}{reset} {} {dim}{}:{reset} {}",
            text(object.get("timestamp")),
            self.level(&text(object.get("level"))),
            object.get("target").map_or_else(
                || default_target(source).to_owned(),
                |target| text(Some(target))
            ),
            text(message),
        );
        // What the line belongs to, such as a request with its id.
        let span = object.get("span").and_then(Value::as_object);
        let of_span = span.unwrap_or(&empty).iter();
        let of_span = of_span.filter(|(key, _)| *key != "name");
        let own = fields.iter().filter(|(key, _)| *key != "message");
        for (key, value) in own.chain(of_span) {
            let _ = write!(line, " {dim}{key}={reset}{}", text(Some(value)));
        }
        line.push('\n');
        line
    }

    fn level(self, level: &str) -> String {
        let level = level.to_uppercase();
        let color = match level.as_str() {
            "ERROR" | "CRITICAL" => "\x1b[31m",
            "WARN" | "WARNING" => "\x1b[33m",
            "INFO" => "\x1b[32m",
            _ => "\x1b[34m",
        };
        if self == Style::Colored {
            format!("{color}{level:>5}{RESET}")
        } else {
            format!("{level:>5}")
        }
    }
}

fn default_target(source: Source) -> &'static str {
    match source {
        Source::Launcher => "text_gen_launcher",
        Source::Router => "text_gen_router",
        Source::Resolver | Source::Shard { .. } => "text_gen_server",
    }
}

/// A value as people read it. Control characters are escaped, so that no text can command the terminal.
fn text(value: Option<&Value>) -> String {
    let plain = match value {
        None => return String::new(),
        Some(Value::String(plain)) => plain.clone(),
        Some(other) => other.to_string(),
    };
    let is_harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !plain.contains(is_harmful) {
        return plain;
    }
    plain
        .chars()
        .map(|c| {
            if is_harmful(c) {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(style: Style, json: &str) -> String {
        let object = serde_json::from_str(json).expect("the test's own JSON is right");
        style.render(&object, Source::Router)
    }

    #[test]
    fn text_has_time_level_target_message_and_fields() {
        let json = r#"{"timestamp":"T","level":"INFO","target":"text_gen_router::http","fields":{"message":"listening","port":3000}}"#;
        assert_eq!(
            render(Style::Text, json),
            "T  INFO text_gen_router::http: listening port=3000\n"
        );
    }

    #[test]
    fn text_has_the_fields_of_the_span_it_belongs_to() {
        let json = r#"{"timestamp":"T","level":"INFO","fields":{"message":"m","a":1},"span":{"name":"request","request_id":"r"}}"#;
        assert_eq!(
            render(Style::Text, json),
            "T  INFO text_gen_router: m a=1 request_id=r\n"
        );
    }

    #[test]
    fn json_stays_one_object_with_everything_in_it() {
        let json =
            r#"{"level":"INFO","fields":{"message":"two\nlines"},"spans":[1],"timestamp":"T"}"#;
        let line = render(Style::Json, json);
        assert_eq!(line.matches('\n').count(), 1);
        let (before, after): (Value, Value) = (
            serde_json::from_str(json).expect("JSON"),
            serde_json::from_str(&line).expect("JSON"),
        );
        assert_eq!(before, after);
    }

    #[test]
    fn an_incomplete_object_is_still_readable() {
        assert_eq!(
            render(Style::Text, r#"{"level":"warning","message":"odd"}"#),
            " WARNING text_gen_router: odd\n"
        );
    }

    #[test]
    fn text_cannot_command_the_terminal() {
        let line = render(Style::Text, r#"{"fields":{"message":"a\u001b[2Jb"}}"#);
        assert!(!line.contains('\x1b'), "{line:?}");
    }
}
