//! Renders the model's chat template as close as possible to transformers' Jinja2 environment. Templates are untrusted: they run
//! with fuel, their output is capped, and they can read nothing but the variables given here.

mod messages;
mod source;

use std::io;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::template_traits::TemplateTraits;
use super::{ValidationError, python, tool_prompt};
use crate::tokenizer::NamedTemplate;
use crate::types::message_format::{CallFormat, MessageFormat};
use crate::types::{Chat, Tool};

/// Template instructions for one prompt. A chat of a thousand messages takes some hundred thousand.
const FUEL: u64 = 10_000_000;
const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// The model's templates: "default", and perhaps "tool_use" for requests with tools.
pub struct ChatTemplates {
    environment: Environment<'static>,
    /// `Err` where a template does not compile: chats are then refused with the reason.
    names: Result<Vec<(String, TemplateTraits)>, String>,
    special_names: Vec<(String, String)>,
}

/// A chat written out, and how its answer is to be read.
#[derive(Debug)]
pub struct RenderedChat {
    pub text: String,
    pub message_format: MessageFormat,
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
                .map(|()| {
                    let (name, source) = (&template.name, &template.source);
                    let traits = TemplateTraits::new(&environment, name, source);
                    (name.clone(), traits)
                })
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
    pub fn render(&self, chat: &Chat) -> Result<RenderedChat, ValidationError> {
        let refused = |reason: String| ValidationError::ChatTemplate(reason);
        let (name, traits) = self.choose(chat)?;
        let template = self
            .environment
            .get_template(name)
            .map_err(|error| refused(explain(&error)))?;
        let mut output = Capped(Vec::new());
        template
            .render_captured_to(self.variables(chat, traits), &mut output)
            .map_err(|error| refused(explain(&error)))?;
        let text = String::from_utf8(output.0).map_err(|error| refused(error.to_string()))?;
        let text = match &chat.continue_final {
            Some(message) => messages::cut_after(text, message).map_err(refused)?,
            None => text,
        };
        Ok(RenderedChat {
            message_format: message_format(chat, traits, &text),
            text,
        })
    }

    /// As transformers gives them: tools and documents are `None` where there are none.
    fn variables(&self, chat: &Chat, traits: &TemplateTraits) -> Value {
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
        let (messages, tools) = tool_prompt::apply(&chat.messages, chat.tools.as_ref(), traits);
        let messages = Value::from(messages);
        let messages = messages::for_template(&messages, chat.continue_final.as_deref());
        let own = [("messages", messages)];
        let tools = tools.map(|tools| ("tools", python::from_json(&tools)));
        let open = chat
            .continue_final
            .is_some()
            .then(|| ("add_generation_prompt", Value::from(false)));
        let names = none.into_iter().chain(prompted).chain(special);
        Value::from_pairs(names.chain(given).chain(own).chain(tools).chain(open))
    }

    fn choose(&self, chat: &Chat) -> Result<&(String, TemplateTraits), ValidationError> {
        let names = self
            .names
            .as_ref()
            .map_err(|reason| ValidationError::ChatTemplate(reason.clone()))?;
        let has_tools =
            chat.tools.is_some() || chat.variables.iter().any(|(name, _)| name == "tools");
        let wanted = if has_tools { "tool_use" } else { "default" };
        [wanted, "default"]
            .into_iter()
            .find_map(|wanted| names.iter().find(|(name, _)| name == wanted))
            .ok_or(ValidationError::NoChatTemplate)
    }
}

/// Some templates open the reasoning themselves.
fn message_format(chat: &Chat, traits: &TemplateTraits, prompt: &str) -> MessageFormat {
    let reasoning = traits.reasoning.map(|mut reasoning| {
        reasoning.opened_by_prompt = match &chat.continue_final {
            Some(said) => said.rfind(reasoning.start) > said.rfind(reasoning.end),
            None => prompt.trim_end().ends_with(reasoning.start),
        };
        reasoning
    });
    let name = |tool: &Tool| tool.name.clone();
    MessageFormat {
        reasoning,
        calls: chat.tools.as_ref().map(|tools| CallFormat {
            format: traits.tool_format,
            names: tools.tools.iter().map(name).collect(),
        }),
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
