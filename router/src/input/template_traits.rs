//! What a chat template's source tells about its model: whether it shows tools, in which form the model calls them, and how it marks
//! its reasoning. Only read, never run.

use minijinja::Environment;

use crate::types::message_format::{ReasoningFormat, ToolFormat};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TemplateTraits {
    /// The template writes the definitions of the tools.
    pub shows_tools: bool,
    /// The template writes earlier calls.
    pub shows_calls: bool,
    pub tool_format: ToolFormat,
    /// As if the prompt did not open it.
    pub reasoning: Option<ReasoningFormat>,
}

/// Marks that stand around reasoning.
const REASONING_MARKS: [(&str, &str); 4] = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
];

impl TemplateTraits {
    /// Of the template of that name, which must compile.
    pub fn new(environment: &Environment, name: &str, source: &str) -> Self {
        let variables = environment
            .get_template(name)
            .map(|template| template.undeclared_variables(false))
            .unwrap_or_default();
        let shows_tools = variables.contains("tools");
        Self {
            shows_tools,
            shows_calls: source.contains("tool_calls"),
            tool_format: if shows_tools {
                tool_format(source)
            } else {
                ToolFormat::Tgi
            },
            reasoning: reasoning(source),
        }
    }
}

/// By the marks that the template shows to the model. Without any that are known, calls are asked for as TGI did.
fn tool_format(source: &str) -> ToolFormat {
    let has = |text: &str| source.contains(text);
    // Calls in XML share their outer mark with Hermes.
    let is_xml = has("<function=") || has("<arg_key>") || has("<parameter=");
    if has("<tool_call>") && has("</tool_call>") && !is_xml {
        ToolFormat::Hermes
    } else if has("[TOOL_CALLS]") && has("[ARGS]") {
        ToolFormat::MistralNamed
    } else if has("[TOOL_CALLS]") {
        ToolFormat::MistralList
    } else if has("<｜tool▁calls▁begin｜>") && has("```json") {
        ToolFormat::DeepSeekFenced
    } else if has("<｜tool▁calls▁begin｜>") {
        ToolFormat::DeepSeek
    } else if has("<|tool_call|>") && has("granite") {
        ToolFormat::Granite
    } else if has("<|python_tag|>") || (has("<|eot_id|>") && has("\"parameters\": ")) {
        ToolFormat::Llama
    } else {
        ToolFormat::Tgi
    }
}

fn reasoning(source: &str) -> Option<ReasoningFormat> {
    let (start, end) = REASONING_MARKS
        .into_iter()
        .find(|(_, end)| source.contains(end))?;
    Some(ReasoningFormat {
        start,
        end,
        opened_by_prompt: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traits(source: &'static str) -> TemplateTraits {
        let mut environment = Environment::new();
        environment.add_template("t", source).unwrap();
        TemplateTraits::new(&environment, "t", source)
    }

    #[test]
    fn a_template_shows_tools_if_it_reads_them() {
        assert!(traits("{% if tools %}{{ tools | length }}{% endif %}").shows_tools);
        assert!(traits("{% if tools is defined %}<tool_call></tool_call>{% endif %}").shows_tools);
        assert!(!traits("You have no tools. {{ messages }}").shows_tools);
        assert!(!traits("{% set tools = [] %}{{ tools }}").shows_tools);
    }

    #[test]
    fn the_form_of_calls_is_known_by_its_marks() {
        for (text, expected) in [
            ("<tool_call>{}</tool_call>", ToolFormat::Hermes),
            ("<tool_call><function=f></tool_call>", ToolFormat::Tgi),
            ("[TOOL_CALLS] [", ToolFormat::MistralList),
            ("[TOOL_CALLS]f[ARGS]", ToolFormat::MistralNamed),
            ("<｜tool▁calls▁begin｜>```json", ToolFormat::DeepSeekFenced),
            ("<｜tool▁calls▁begin｜>", ToolFormat::DeepSeek),
            ("<|python_tag|>", ToolFormat::Llama),
            (r#"<|eot_id|>{"parameters": "#, ToolFormat::Llama),
            ("granite <|tool_call|>", ToolFormat::Granite),
            ("call: f()", ToolFormat::Tgi),
        ] {
            assert_eq!(tool_format(text), expected, "{text}");
        }
    }

    #[test]
    fn a_template_that_shows_no_tools_is_asked_in_tgis_form() {
        let traits = traits("{{ messages }}<tool_call></tool_call>");
        assert_eq!(traits.tool_format, ToolFormat::Tgi);
    }

    #[test]
    fn reasoning_is_known_by_its_end() {
        let marks = |source| reasoning(source).map(|reasoning| (reasoning.start, reasoning.end));
        assert_eq!(
            marks("{{ content.split('</think>')[-1] }}"),
            Some(("<think>", "</think>"))
        );
        assert_eq!(marks("[THINK]a[/THINK]"), Some(("[THINK]", "[/THINK]")));
        assert_eq!(marks("I think so"), None);
    }
}
