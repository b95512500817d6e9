//! Python's view of template values, because chat templates were written for Jinja2: how values are printed, what their methods
//! do, and which filters and tests answer differently there. Whatever is not here is minijinja's own.

mod bounds;
mod containers;
mod filters;
mod functions;
mod json;
mod methods;
mod numbers;
mod repr;
mod slices;
mod strftime;
mod strings;
mod tests_of_values;

use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

pub use containers::from_json;
pub use strftime::strftime;

/// Makes an environment answer as Jinja2 does.
pub fn install(environment: &mut Environment) {
    environment.set_formatter(print);
    environment.set_unknown_method_callback(methods::call);
    functions::install(environment);
    filters::install(environment);
    tests_of_values::install(environment);
}

/// How `{{ value }}` is printed.
fn print(out: &mut Output, _state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(string) => out.write_str(string).map_err(Error::from),
        None => out.write_str(&repr::text(value)?).map_err(Error::from),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
