//! `{{ value is test }}` where Jinja2 answers differently from minijinja.

use minijinja::value::ValueKind;
use minijinja::{Environment, Value};

use super::containers;

pub fn install(environment: &mut Environment) {
    environment.add_test("iterable", |value: &Value| {
        containers::check_iterable(value).is_ok()
    });
    // Whatever has a length and can be indexed.
    environment.add_test("sequence", |value: &Value| {
        let is_lazy = || containers::view_name(value).is_some() || containers::is_generator(value);
        match value.kind() {
            ValueKind::Seq | ValueKind::String | ValueKind::Undefined => true,
            ValueKind::Iterable => !is_lazy(),
            _ => containers::is_mapping(value),
        }
    });
    environment.add_test("mapping", |value: &Value| containers::is_mapping(value));
    // Truth is a number in Python.
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
}
