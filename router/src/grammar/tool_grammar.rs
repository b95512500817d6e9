//! What an answer with tools or reasoning may be, as one grammar: content is free (or follows a format of its own) until a call begins,
//! and a call is written in the model's form, with arguments that fit the schema of the tool that it names. Made from the tables that
//! the parser of messages follows; free content never holds what would be read as the beginning of a call.

use std::fmt::Write;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::Value;

use super::{GrammarError, compiler, tool_schema};
use crate::tokenizer::Tokenizer;
use crate::types::message_format::{CallSyntax, MessageFormat, Piece, ReasoningFormat, ToolFormat};
use crate::types::{Grammar, Tool, ToolChoice, ToolUse};

/// Definitions that all grammars share. Whitespace stands behind reasoning, and before a call that is the whole answer.
const COMMON: &str = r#"
ANY: /(?s:.*)/
SPACE: /[ \t\r\n]*/
gap: /[ \n]{1,4}/
"#;

/// Of the reasoning if the model marks it, then of content or calls. `content` is what the content must be, `None`: anything.
pub fn tool_grammar(
    format: &MessageFormat,
    tools: Option<&ToolUse>,
    content: Option<&Grammar>,
    tokenizer: &Tokenizer,
) -> Result<TopLevelGrammar, GrammarError> {
    let mut lark = Lark {
        tokenizer,
        text: COMMON.to_owned(),
        num_terminals: 0,
    };
    let answer = match (tools, &format.calls) {
        (Some(tools), Some(calls)) => lark.with_tools(tools, calls.format, content.is_some())?,
        _ => Answer::content(content.is_some()),
    };
    let start = match &format.reasoning {
        Some(reasoning) => lark.with_reasoning(reasoning, &answer),
        None => answer.rule,
    };
    let text = format!("start: {start}\n{}", lark.text);
    let mut grammars = vec![GrammarWithLexer::from_lark(text)];
    if let Some(content) = content {
        let mut nested = compiler::top_level(content)?.grammars.swap_remove(0);
        nested.name = Some("content".to_owned());
        grammars.push(nested);
    }
    Ok(TopLevelGrammar {
        grammars,
        max_tokens: None,
    })
}

/// The body of a rule.
struct Answer {
    rule: String,
    /// It may begin with whitespace by itself.
    free: bool,
}

impl Answer {
    fn content(has_format: bool) -> Self {
        let rule = if has_format { "@content" } else { "ANY" };
        Self {
            rule: rule.to_owned(),
            free: !has_format,
        }
    }
}

/// A grammar that is being written.
struct Lark<'a> {
    tokenizer: &'a Tokenizer,
    text: String,
    num_terminals: usize,
}

impl Lark<'_> {
    fn define(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{name}: {body}");
    }

    /// A mark that is a special token is that token and never its letters.
    fn special(&self, mark: &str) -> Option<String> {
        let id = self.tokenizer.special_id(mark)?;
        Some(format!("<[{id}]>"))
    }

    fn mark(&self, mark: &str) -> String {
        self.special(mark).unwrap_or_else(|| quoted(mark))
    }

    fn with_reasoning(&mut self, reasoning: &ReasoningFormat, answer: &Answer) -> String {
        let end = quoted(reasoning.end);
        match self.special(reasoning.end) {
            Some(token) => {
                self.define("THOUGHT", &format!("ANY & ~(ANY {end} ANY)"));
                self.define("thinking", &format!("THOUGHT {token}"));
            }
            None => self.define("thinking[lazy]", &format!("ANY {end}")),
        }
        let gap = if answer.free { "" } else { "gap? " };
        self.define("answer", &format!("{gap}({})", answer.rule));
        if reasoning.opened_by_prompt {
            return "thinking answer".to_owned();
        }
        let start = self.mark(reasoning.start);
        format!("({start} thinking)? answer")
    }

    fn with_tools(
        &mut self,
        tools: &ToolUse,
        format: ToolFormat,
        has_format: bool,
    ) -> Result<Answer, GrammarError> {
        let callable: Vec<&Tool> = match &tools.choice {
            ToolChoice::Named(name) => tools
                .tools
                .iter()
                .filter(|tool| tool.name == *name)
                .collect(),
            ToolChoice::Auto | ToolChoice::Required => tools.tools.iter().collect(),
        };
        if format == ToolFormat::Tgi {
            return self.tgi(&callable, &tools.choice, has_format);
        }
        let may_answer = tools.choice == ToolChoice::Auto;
        if may_answer && has_format && !format.syntax().after_text {
            // Written as the content may be: of two terminals that begin alike the lexer would keep one.
            let schema = tool_schema::named_object(&callable)?;
            self.define("call", &format!("%json {schema}"));
            return Ok(Answer {
                rule: "@content | call".to_owned(),
                free: false,
            });
        }
        for (idx, tool) in callable.iter().enumerate() {
            let schema = tool_schema::arguments(tool)?;
            self.define(&format!("args_{idx}"), &format!("%json {schema}"));
        }
        let writer = Calls {
            syntax: format.syntax(),
            tools: &callable,
            // A tool that was chosen by name is called once.
            parallel: tools.parallel && !matches!(tools.choice, ToolChoice::Named(_)),
        };
        Ok(match (&tools.choice, has_format) {
            (ToolChoice::Auto, false) if writer.syntax.after_text => self.text_and_calls(&writer),
            (ToolChoice::Auto, false) => self.text_or_calls(&writer),
            (ToolChoice::Auto, true) => {
                let calls = self.only_calls(&writer);
                Answer {
                    rule: format!("@content | {calls}"),
                    free: false,
                }
            }
            (ToolChoice::Required | ToolChoice::Named(_), _) => Answer {
                rule: self.only_calls(&writer),
                free: false,
            },
        })
    }

    /// Free text, with calls in it: it may not hold what they begin with.
    fn text_and_calls(&mut self, calls: &Calls) -> Answer {
        let beginning = match calls.syntax.first.iter().chain(calls.syntax.call).next() {
            Some(Piece::Mark(mark)) => *mark,
            _ => "",
        };
        let literal = quoted(beginning);
        self.define("TEXT", &format!("ANY & ~(ANY {literal} ANY)"));
        match self.special(beginning) {
            Some(token) => self.define("head", &format!("TEXT {token}")),
            None => self.define("head[lazy]", &format!("ANY {literal}")),
        }
        let whole = [calls.syntax.first, calls.syntax.call].concat();
        let first = self.alternatives(&whole[1..], calls, "");
        self.define("first", &first);
        let further = calls.parallel && !calls.syntax.first.is_empty();
        let block = self.block("first", further, calls);
        let repeat = if calls.parallel { "*" } else { "?" };
        Answer {
            rule: format!("(head {block}){repeat} TEXT"),
            free: true,
        }
    }

    /// Text that does not begin like a call, or calls and nothing else.
    fn text_or_calls(&mut self, calls: &Calls) -> Answer {
        let texts = calls.syntax.call.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(quoted(text)),
            _ => None,
        });
        let beginning: Vec<String> = texts.take(2).collect();
        let mut not_text = format!("(SPACE {} ANY)", beginning.join(" SPACE "));
        for piece in calls.syntax.first {
            if let Piece::OptionalMark(mark) = piece {
                let _ = write!(not_text, " & ~(SPACE {} ANY)", quoted(mark));
            }
        }
        self.define("TEXT", &format!("ANY & ~{not_text}"));
        let whole = [calls.syntax.first, calls.syntax.call].concat();
        // In one terminal with the call, so that it is not taken for text.
        let first = self.alternatives(&whole, calls, "/[ \\n]{0,4}/");
        self.define("first", &first);
        let block = self.block("first", calls.parallel, calls);
        Answer {
            rule: format!("TEXT | {block}"),
            free: true,
        }
    }

    fn only_calls(&mut self, calls: &Calls) -> String {
        let whole = [calls.syntax.first, calls.syntax.call].concat();
        let first = self.alternatives(&whole, calls, "");
        self.define("first", &first);
        self.block("first", calls.parallel, calls)
    }

    /// A first call, further ones if there may be any, and the end of all.
    fn block(&mut self, first: &str, further: bool, calls: &Calls) -> String {
        let mut block = first.to_owned();
        if further {
            let next = [calls.syntax.between, calls.syntax.call].concat();
            let next = self.alternatives(&next, calls, "");
            self.define("next", &next);
            block.push_str(" next*");
        }
        if !calls.syntax.last.is_empty() {
            let last = self.sequence(calls.syntax.last, None, "");
            block.push(' ');
            block.push_str(&last);
        }
        block
    }

    fn alternatives(&mut self, pieces: &[Piece], calls: &Calls, lead: &str) -> String {
        let alternatives: Vec<String> = calls
            .tools
            .iter()
            .enumerate()
            .map(|(idx, tool)| self.sequence(pieces, Some((idx, &tool.name)), lead))
            .collect();
        alternatives.join(" | ")
    }

    /// Text between tokens and arguments is one terminal: of several that fit, the lexer keeps only the longest.
    fn sequence(&mut self, pieces: &[Piece], tool: Option<(usize, &str)>, lead: &str) -> String {
        let mut parts = Vec::new();
        let mut terminal = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Space("") => {}
                Piece::Space(" ") => terminal.push("\" \"?".to_owned()),
                Piece::Text(text) | Piece::Space(text) => terminal.push(quoted(text)),
                Piece::Name => terminal.extend(tool.map(|(_, name)| quoted(name))),
                Piece::Mark(mark) => match self.special(mark) {
                    Some(token) => {
                        self.end_terminal(&mut terminal, &mut parts);
                        parts.push(token);
                    }
                    None => terminal.push(quoted(mark)),
                },
                Piece::OptionalMark(mark) => match self.special(mark) {
                    Some(token) => parts.push(format!("{token}?")),
                    None => terminal.push(format!("{}?", quoted(mark))),
                },
                Piece::Arguments | Piece::Members | Piece::Answer => {
                    self.end_terminal(&mut terminal, &mut parts);
                    parts.extend(tool.map(|(idx, _)| format!("args_{idx}")));
                }
            }
            if terminal.len() == 1
                && !lead.is_empty()
                && parts.iter().all(|part| part.ends_with('?'))
            {
                terminal.insert(0, lead.to_owned());
            }
        }
        self.end_terminal(&mut terminal, &mut parts);
        parts.join(" ")
    }

    fn end_terminal(&mut self, terminal: &mut Vec<String>, parts: &mut Vec<String>) {
        if terminal.is_empty() {
            return;
        }
        self.num_terminals += 1;
        let name = format!("T{}", self.num_terminals);
        self.define(&name, &terminal.join(" "));
        terminal.clear();
        parts.push(name);
    }

    /// One object for the whole answer, as TGI had it.
    fn tgi(
        &mut self,
        tools: &[&Tool],
        choice: &ToolChoice,
        has_format: bool,
    ) -> Result<Answer, GrammarError> {
        let may_answer = *choice == ToolChoice::Auto;
        let schema: Value = tool_schema::tgi_object(tools, may_answer && !has_format)?;
        self.define("call", &format!("%json {schema}"));
        let rule = if may_answer && has_format {
            "@content | call"
        } else {
            "call"
        };
        Ok(Answer {
            rule: rule.to_owned(),
            free: false,
        })
    }
}

/// What is called, and how.
struct Calls<'a> {
    syntax: &'static CallSyntax,
    tools: &'a [&'a Tool],
    parallel: bool,
}

/// Lark's strings are JSON's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
