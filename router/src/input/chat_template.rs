//! Renders the model's chat template as close as possible to transformers' Jinja2 environment. Templates are untrusted: they run
//! with fuel, their output is capped, and they can read nothing but the variables given here.

mod messages;
mod source;

use std::io;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::{ValidationError, python};
use crate::tokenizer::NamedTemplate;
use crate::types::Chat;

/// Template instructions for one prompt. A chat of a thousand messages takes some hundred thousand.
const FUEL: u64 = 10_000_000;
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// The model's templates: "default", and perhaps "tool_use" for requests with tools.
pub struct ChatTemplates {
    environment: Environment<'static>,
    /// `Err` where a template does not compile: chats are then refused with the reason.
    names: Result<Vec<String>, String>,
    special_names: Vec<(String, String)>,
}

impl ChatTemplates {
    /// `special_names` are variables of every template (`bos_token`, `eos_token`, ...).
    pub fn new(templates: &[NamedTemplate], special_names: &[(String, String)]) -> Self {
        Self::with_clock(templates, special_names, SystemTime::now)
    }

    /// `strftime_now` tells the time of `clock`.
    pub fn with_clock(
        templates: &[NamedTemplate],
        special_names: &[(String, String)],
        clock: fn() -> SystemTime,
    ) -> Self {
        let mut environment = environment(clock);
        let mut compile = |template: &NamedTemplate| {
            environment
                .add_template_owned(template.name.clone(), source::rewrite(&template.source))
                .map(|()| template.name.clone())
                .map_err(|error| format!("does not compile: {}", explain(&error)))
        };
        let names = templates.iter().map(&mut compile).collect();
        if let Err(reason) = &names {
            tracing::warn!("the model's chat template {reason}");
        }
        Self {
            environment,
            names,
            special_names: special_names.to_vec(),
        }
    }

    /// The prompt of a chat: the answer's beginning is asked for, or the final assistant message is left open.
    pub fn render(&self, chat: &Chat) -> Result<String, ValidationError> {
        let refused = |reason: String| ValidationError::ChatTemplate(reason);
        let name = self.choose(chat)?;
        let template = self
            .environment
            .get_template(name)
            .map_err(|error| refused(explain(&error)))?;
        let mut output = Capped(Vec::new());
        template
            .render_captured_to(self.variables(chat), &mut output)
            .map_err(|error| refused(explain(&error)))?;
        let text = String::from_utf8(output.0).map_err(|error| refused(error.to_string()))?;
        match &chat.continue_final {
            Some(message) => messages::cut_after(text, message).map_err(refused),
            None => Ok(text),
        }
    }

    /// As transformers gives them: tools and documents are `None` where there are none.
    fn variables(&self, chat: &Chat) -> Value {
        let none = ["tools", "documents"].map(|name| (name, Value::from(())));
        let prompted = [("add_generation_prompt", Value::from(true))];
        let special = self
            .special_names
            .iter()
            .map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let given = chat
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), python::from_json(value)));
        let messages = messages::for_template(&chat.messages, chat.continue_final.as_deref());
        let own = [("messages", messages)];
        let open = chat
            .continue_final
            .is_some()
            .then(|| ("add_generation_prompt", Value::from(false)));
        let names = none.into_iter().chain(prompted).chain(special);
        Value::from_pairs(names.chain(given).chain(own).chain(open))
    }

    fn choose(&self, chat: &Chat) -> Result<&str, ValidationError> {
        let names = self
            .names
            .as_ref()
            .map_err(|reason| ValidationError::ChatTemplate(reason.clone()))?;
        let has_tools = chat.variables.iter().any(|(name, _)| name == "tools");
        let wanted = if has_tools { "tool_use" } else { "default" };
        [wanted, "default"]
            .into_iter()
            .find(|wanted| names.iter().any(|name| name == wanted))
            .ok_or(ValidationError::NoChatTemplate)
    }
}

fn environment(clock: fn() -> SystemTime) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_fuel(Some(FUEL));
    python::install(&mut environment);
    environment.add_function("strftime_now", move |format: &str| {
        python::strftime(clock(), format)
    });
    environment
}

/// The error with its cause, and without the template's source.
fn explain(error: &Error) -> String {
    let mut text = match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        _ => error.to_string(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

/// Refuses to grow beyond `MAX_OUTPUT_BYTES`.
struct Capped(Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("the rendered chat is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
