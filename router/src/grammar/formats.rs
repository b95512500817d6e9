//! Formats and bounds of JSON schema more strictly than the grammar library takes them, so that what validators refuse is never
//! written: 30 February, the second 60, host names without end, a bound that does not belong to its range.

use serde_json::{Map, Value};

use super::schema::each;

/// RFC 1035, and RFC 5321 for the whole address.
const MAX_HOSTNAME_CHARS: usize = 253;
const MAX_EMAIL_CHARS: usize = 254;
/// Of a bound that is 1 or less; of others it is a part.
const SMALLEST_STEP: f64 = 1e-9;

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
    include_bounds(fields);
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

/// The library writes the bound itself where a fraction must be above it or below it, so the next billionth takes its place.
fn include_bounds(fields: &mut Map<String, Value>) {
    if fields.get("type").is_some_and(|kind| kind == "integer") {
        return;
    }
    for (exclusive, inclusive, sign) in [
        ("exclusiveMinimum", "minimum", 1.0),
        ("exclusiveMaximum", "maximum", -1.0),
    ] {
        let Some(bound) = fields.get(exclusive).and_then(Value::as_f64) else {
            continue;
        };
        let beyond = bound + sign * bound.abs().max(1.0) * SMALLEST_STEP;
        let other = fields.get(inclusive).and_then(Value::as_f64);
        // Whichever leaves less.
        let narrower = match other {
            Some(other) if sign * other > sign * beyond => other,
            _ => beyond,
        };
        fields.remove(exclusive);
        fields.insert(inclusive.to_owned(), Value::from(narrower));
    }
}

fn limit(fields: &mut Map<String, Value>, max_chars: usize) {
    fields.entry("maxLength").or_insert(Value::from(max_chars));
}
