//! Renders the model's chat template as close as possible to transformers' Jinja2 environment. Templates are untrusted: they run
//! with fuel, their output is capped, and they can read nothing but the variables given here.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

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
pub struct RenderedChat {
    pub text: String,
    pub message_format: MessageFormat,
}

impl ChatTemplates {
    /// `special_names` are variables of every template (`bos_token`, `eos_token`, ...).
    pub fn new(templates: &[NamedTemplate], special_names: &[(String, String)]) -> Self {
        let mut environment = environment();
        let mut compile = |template: &NamedTemplate| {
            let source = without_generation_tags(&template.source);
            environment
                .add_template_owned(template.name.clone(), source)
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
        let add_generation_prompt = chat.continue_final.is_none();
        let special = self
            .special_names
            .iter()
            .map(|(name, text)| (name.as_str(), Value::from(text.as_str())));
        let given = chat
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        let (messages, tools) = tool_prompt::apply(&chat.messages, chat.tools.as_ref(), traits);
        let tools = tools.map(|tools| ("tools", tools));
        let own = [
            ("messages", Value::from(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let context = Value::from_pairs(special.chain(given).chain(own).chain(tools));
        let mut output = Capped(Vec::new());
        template
            .render_captured_to(context, &mut output)
            .map_err(|error| refused(explain(&error)))?;
        let mut text = String::from_utf8(output.0).map_err(|error| refused(error.to_string()))?;
        if let Some(message) = &chat.continue_final {
            cut_after(&mut text, message.trim())?;
        }
        Ok(RenderedChat {
            message_format: message_format(chat, traits, &text),
            text,
        })
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

/// Ends the prompt with the final message, without what the template puts after it.
fn cut_after(text: &mut String, message: &str) -> Result<(), ValidationError> {
    let Some(start) = text.rfind(message) else {
        return Err(ValidationError::ChatTemplate(
            "the final assistant message is not part of the rendered chat".to_owned(),
        ));
    };
    text.truncate(start + message.len());
    Ok(())
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(python::print);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", python::tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The time in UTC, in the notation of C's `strftime`.
fn strftime_now(state: &State, format: String) -> Result<String, Error> {
    let (kwargs,): (Kwargs,) =
        from_args(&[Kwargs::from_iter([("format", Value::from(format))]).into()])?;
    minijinja_contrib::filters::datetimeformat(state, minijinja_contrib::globals::now(), kwargs)
}

/// transformers marks the assistant's text with `{% generation %}`; for rendering the tags mean nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start..start + len];
        let name =
            tag[2..].trim_matches(|letter: char| letter.is_whitespace() || "-+".contains(letter));
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        out.push_str(&rest[..start]);
        out.push_str(&tag.replacen(name, replacement, 1));
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
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
