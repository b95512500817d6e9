//! Filters that make numbers, or round them, as Python does.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, Value};

use super::{invalid, repr};

pub fn install(environment: &mut Environment) {
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
}

/// What is no number becomes `default`.
fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Result<Value, Error> {
    let default = default.unwrap_or_else(|| Value::from(0));
    if value.kind() == ValueKind::Bool {
        return Ok(Value::from(i64::from(value.is_true())));
    }
    if value.kind() == ValueKind::Number {
        let whole = |number: f64| Value::from(number.trunc() as i128);
        return Ok(match value.is_integer() {
            true => value.clone(),
            false => f64::try_from(value.clone()).map(whole).unwrap_or(default),
        });
    }
    let text = repr::text(value)?.trim().replace('_', "");
    let base = base.unwrap_or(10);
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let digits = text.to_lowercase();
    let digits = digits.strip_prefix(prefix).unwrap_or(&digits);
    if !(2..=36).contains(&base) {
        return Err(invalid("the base of `int` must be from 2 to 36"));
    }
    if let Ok(number) = i128::from_str_radix(digits, base) {
        return Ok(Value::from(number));
    }
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    Ok(number.map_or(default, |number| Value::from(number.trunc() as i128)))
}

fn float(value: &Value, default: Option<f64>) -> Result<f64, Error> {
    if let Ok(number) = f64::try_from(value.clone()) {
        return Ok(number);
    }
    let text = repr::text(value)?.trim().replace('_', "");
    Ok(text.parse().unwrap_or(default.unwrap_or(0.0)))
}

/// Halves go to the even neighbour.
fn round(
    value: &Value,
    precision: Option<i32>,
    method: Option<String>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let precision = precision.or(kwargs.get("precision")?).unwrap_or(0);
    let method = method.or(kwargs.get("method")?);
    kwargs.assert_all_used()?;
    if !(-300..=300).contains(&precision) {
        return Err(invalid("the precision of `round` must be from -300 to 300"));
    }
    let number = f64::try_from(value.clone())?;
    let scale = 10f64.powi(precision.abs());
    let scaled = |round: fn(f64) -> f64| match precision {
        0.. => round(number * scale) / scale,
        _ => round(number / scale) * scale,
    };
    let rounded = match method.as_deref().unwrap_or("common") {
        "ceil" => scaled(f64::ceil),
        "floor" => scaled(f64::floor),
        "common" if value.is_integer() && precision >= 0 => return Ok(value.clone()),
        "common" if precision < 0 => scaled(f64::round_ties_even),
        // Rust writes exactly as many digits as asked, from the exact number.
        "common" => format!("{number:.*}", precision as usize)
            .parse()
            .unwrap_or(number),
        other => return Err(invalid(format!("`round` has no method {other:?}"))),
    };
    Ok(Value::from(rounded))
}
