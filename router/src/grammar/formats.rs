//! Formats of JSON schema more strictly than the grammar library takes them, so that what validators refuse is never written: 30 February, the
//! second 60, host names without end.

use serde_json::{Map, Value};

use super::schema::each;

/// RFC 1035, and RFC 5321 for the whole address.
const MAX_HOSTNAME_CHARS: usize = 253;
const MAX_EMAIL_CHARS: usize = 254;

/// Days that exist, of years with four digits.
const DATE: &str = concat!(
    r"(?:[1-9][0-9]{3}-(?:",
    r"(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    // The 29th: years that 4 divides and 100 does not, or 400 does.
    r"|[1-9][0-9](?:0[48]|[2468][048]|[13579][26])-02-29",
    r"|(?:1[26]|[2468][048]|[3579][26])00-02-29)"
);
/// Hours and minutes are the library's.
const SECONDS_OF_A_TIME: &str = ".{6}[0-5]";

/// Narrows every format in a schema.
pub(super) fn tighten(schema: &mut Value) {
    let Value::Object(fields) = schema else {
        return;
    };
    narrow(fields);
    for (keyword, value) in fields.iter_mut() {
        match keyword.as_str() {
            "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" => {
                each(value, tighten);
            }
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => each(value, tighten),
            "items" if value.is_array() => each(value, tighten),
            "items" | "additionalProperties" | "contains" | "unevaluatedProperties" => {
                tighten(value);
            }
            _ => {}
        }
    }
}

fn narrow(fields: &mut Map<String, Value>) {
    let Some(format) = fields.get("format").and_then(Value::as_str) else {
        return;
    };
    let pattern = match format {
        "date" => format!("^{DATE}$"),
        "time" => format!("^{SECONDS_OF_A_TIME}"),
        "date-time" => format!("^{DATE}[tT]{SECONDS_OF_A_TIME}"),
        "hostname" => return limit(fields, MAX_HOSTNAME_CHARS),
        "email" => return limit(fields, MAX_EMAIL_CHARS),
        _ => return,
    };
    fields.entry("pattern").or_insert(Value::String(pattern));
}

fn limit(fields: &mut Map<String, Value>, max_chars: usize) {
    fields.entry("maxLength").or_insert(Value::from(max_chars));
}
