//! Answers that the grammar allows are read back as calls that fit, and those that it must not allow are not.

use std::sync::Arc;

use scheduler::FinishReason;
use scheduler::plan::SampledToken;
use serde_json::{Value, json};

use super::*;
use crate::grammar::{Constraint, GrammarCompiler};
use crate::output::{MessagePart, SequenceText};
use crate::tokenizer::tests::compat_with;
use crate::types::message_format::CallFormat;

mod texts;

const FORMATS: [ToolFormat; 8] = [
    ToolFormat::Hermes,
    ToolFormat::Llama,
    ToolFormat::MistralList,
    ToolFormat::MistralNamed,
    ToolFormat::Granite,
    ToolFormat::DeepSeekFenced,
    ToolFormat::DeepSeek,
    ToolFormat::Tgi,
];

const MARKS: [&str; 13] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|tool_call|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
];

/// How the marks are spelled in the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spelled {
    Letters,
    Added,
    Special,
}

const SPELLINGS: [Spelled; 3] = [Spelled::Letters, Spelled::Added, Spelled::Special];

struct Model {
    tokenizer: Arc<Tokenizer>,
    grammars: GrammarCompiler,
    vocab_size: u32,
}

fn model(spelled: Spelled) -> Model {
    let added: Vec<(&str, bool)> = match spelled {
        Spelled::Letters => Vec::new(),
        _ => MARKS
            .map(|mark| (mark, spelled == Spelled::Special))
            .to_vec(),
    };
    let tokenizer = compat_with(&added);
    let vocab_size = 2048 + added.len() as u32;
    Model {
        grammars: GrammarCompiler::new(tokenizer.clone(), vocab_size),
        tokenizer,
        vocab_size,
    }
}

fn tool(name: &str, parameters: &Value) -> Tool {
    Tool {
        name: name.to_owned(),
        parameters: parameters.to_string(),
        definition: minijinja::Value::default(),
    }
}

/// One name begins with another; one schema has parts of its own.
fn tools(choice: ToolChoice, parallel: bool) -> ToolUse {
    let get = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]});
    let get_all = json!({"properties": {"n": {"$ref": "#/$defs/n"}, "ok": {"type": "boolean"}}, "required": ["n"],
        "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 12}}});
    let ping = json!({"type": "object", "properties": {}});
    ToolUse {
        tools: vec![
            tool("get", &get),
            tool("get_all", &get_all),
            tool("ping", &ping),
        ],
        choice,
        parallel,
        prompt: None,
    }
}

fn fits(name: &str, arguments: &Value) -> bool {
    let fields = arguments.as_object().unwrap();
    match name {
        "get" => fields.len() == 1 && [json!("Rome"), json!("Oslo")].contains(&fields["city"]),
        "get_all" => {
            let count = fields["n"].as_i64().unwrap();
            let others = fields.iter().filter(|(name, _)| *name != "n");
            (1..=12).contains(&count)
                && others
                    .into_iter()
                    .all(|(name, value)| name == "ok" && value.is_boolean())
        }
        "ping" => fields.is_empty(),
        _ => false,
    }
}

fn format(format: ToolFormat, reasoning: Option<ReasoningFormat>) -> MessageFormat {
    let names = ["get", "get_all", "ping"].map(str::to_owned).to_vec();
    MessageFormat {
        reasoning,
        calls: Some(CallFormat { format, names }),
    }
}

const THINKING: ReasoningFormat = ReasoningFormat {
    start: "<think>",
    end: "</think>",
    opened_by_prompt: true,
};

/// The text of calls as the tables say.
fn written(format: ToolFormat, calls: &[(&str, &str)]) -> String {
    let syntax = format.syntax();
    let mut text = String::new();
    let mut write = |pieces: &[Piece], (name, arguments): (&str, &str)| {
        for piece in pieces {
            match piece {
                Piece::Text(piece) | Piece::Space(piece) | Piece::Mark(piece) => {
                    text.push_str(piece)
                }
                Piece::OptionalMark(_) | Piece::Answer => {}
                Piece::Name => text.push_str(name),
                Piece::Arguments => text.push_str(arguments),
                Piece::Members if arguments == "{}" => text.push('}'),
                Piece::Members => {
                    text.push(',');
                    text.push_str(&arguments[1..]);
                }
            }
        }
    };
    for (idx, call) in calls.iter().enumerate() {
        write(
            if idx == 0 {
                syntax.first
            } else {
                syntax.between
            },
            *call,
        );
        write(syntax.call, *call);
    }
    write(syntax.last, ("", ""));
    text
}

#[derive(Debug, Default)]
struct Read {
    content: String,
    reasoning: String,
    calls: Vec<(String, String)>,
    ended: bool,
}

impl Model {
    fn compile(
        &self,
        format: &MessageFormat,
        tools: &ToolUse,
        content: Option<&Grammar>,
    ) -> Constraint {
        let compiled = self.grammars.compile_answer(format, Some(tools), content);
        compiled.unwrap_or_else(|error| panic!("{format:?}: {error}"))
    }

    fn allows(&self, constraint: &Constraint, id: u32) -> bool {
        let mask = constraint.mask();
        mask.words()[id as usize / 32] >> (id % 32) & 1 == 1
    }

    /// Pushes the text as far as it is allowed; true if it is and the answer may end behind it.
    fn accepts(&self, mut constraint: Constraint, text: &str) -> bool {
        self.push(&mut constraint, text).is_none()
            && self.allows(&constraint, self.tokenizer.end_token_ids()[0])
    }

    /// What of the text was not allowed.
    fn push(&self, constraint: &mut Constraint, text: &str) -> Option<String> {
        let ids = self.tokenizer.encode(text, false).unwrap();
        for (at, id) in ids.iter().enumerate() {
            if !self.allows(constraint, *id) {
                return Some(self.tokenizer.decode(&ids[at..], false));
            }
            constraint.push(*id).unwrap();
        }
        None
    }

    /// After the text, takes allowed tokens as a small generator wills, and reads the answer.
    fn walk(
        &self,
        constraint: &mut Constraint,
        format: &MessageFormat,
        text: &str,
        seed: u64,
    ) -> Read {
        let mut tokens = self.tokenizer.encode(text, false).unwrap();
        assert_eq!(self.push(constraint, text), None);
        let mut chance = seed.wrapping_mul(2).wrapping_add(1);
        let mut ended = false;
        for _ in 0..300 {
            let allowed: Vec<u32> = (0..self.vocab_size)
                .filter(|id| self.allows(constraint, *id))
                .collect();
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let token = allowed[(chance >> 33) as usize % allowed.len()];
            tokens.push(token);
            ended = self.tokenizer.end_token_ids().contains(&token);
            if ended {
                break;
            }
            constraint.push(token).unwrap();
        }
        Read {
            ended,
            ..self.read(format, &tokens)
        }
    }

    fn read(&self, format: &MessageFormat, tokens: &[u32]) -> Read {
        let mut text = SequenceText::new(
            self.tokenizer.clone(),
            &[],
            Vec::new(),
            false,
            format.clone(),
        );
        let mut read = Read::default();
        for (at, id) in tokens.iter().enumerate() {
            let reason = if self.tokenizer.end_token_ids().contains(id) {
                Some(FinishReason::EndToken)
            } else {
                (at + 1 == tokens.len()).then_some(FinishReason::Length)
            };
            let token = SampledToken {
                token_id: *id,
                logprob: 0.0,
                top_tokens: Vec::new(),
            };
            for part in text.push(token, reason).parts {
                match part {
                    MessagePart::Content(text) => read.content.push_str(&text),
                    MessagePart::Reasoning(text) => read.reasoning.push_str(&text),
                    MessagePart::CallStart { name, .. } => read.calls.push((name, String::new())),
                    MessagePart::CallArguments { call_idx, text } => {
                        read.calls[call_idx].1.push_str(&text)
                    }
                }
            }
        }
        read
    }
}

fn assert_calls_fit(read: &Read, what: &str) {
    for (name, arguments) in &read.calls {
        let arguments = serde_json::from_str(arguments)
            .unwrap_or_else(|error| panic!("{what}: {error}, {read:?}"));
        assert!(fits(name, &arguments), "{what}: {read:?}");
    }
}

#[test]
fn every_required_call_parses_and_fits_its_tool() {
    for spelled in SPELLINGS {
        let model = model(spelled);
        for kind in FORMATS {
            let format = format(kind, None);
            let what = format!("{kind:?} {spelled:?}");
            let constraint = model.compile(&format, &tools(ToolChoice::Required, true), None);
            let mut num_ended = 0;
            for seed in 0..6 {
                let mut constraint = constraint.for_another_sequence();
                let read = model.walk(&mut constraint, &format, "", seed);
                if read.ended {
                    num_ended += 1;
                    assert!(
                        !read.calls.is_empty() && read.content.is_empty(),
                        "{what}: {read:?}"
                    );
                    assert_calls_fit(&read, &what);
                }
            }
            assert!(num_ended > 2, "{what}: {num_ended} walks ended");
        }
    }
}

#[test]
fn a_named_tool_is_called_once_and_no_other() {
    for spelled in SPELLINGS {
        let model = model(spelled);
        for kind in FORMATS {
            let format = format(kind, None);
            let choice = ToolChoice::Named("get_all".to_owned());
            let mut constraint = model.compile(&format, &tools(choice, true), None);
            let read = model.walk(&mut constraint, &format, "", 7);
            assert!(
                read.ended && read.calls.len() == 1,
                "{kind:?} {spelled:?}: {read:?}"
            );
            assert_eq!(read.calls[0].0, "get_all");
            assert_calls_fit(&read, &format!("{kind:?}"));
        }
    }
}

const ROME: (&str, &str) = ("get", r#"{"city":"Rome"}"#);
const THREE: (&str, &str) = ("get_all", r#"{"n":3}"#);

#[test]
fn text_is_free_until_a_call_begins_and_the_call_is_not() {
    for spelled in SPELLINGS {
        let model = model(spelled);
        for kind in FORMATS.into_iter().filter(|kind| *kind != ToolFormat::Tgi) {
            let what = format!("{kind:?} {spelled:?}");
            let format = format(kind, None);
            let auto = model.compile(&format, &tools(ToolChoice::Auto, true), None);
            let accepts = |text: &str| model.accepts(auto.for_another_sequence(), text);
            for text in [
                "",
                "Hello, [you] <b>there</b>. {}\n",
                "{ \"a\": 1 }",
                "é日本☕",
            ] {
                assert!(accepts(text), "{what}: {text}");
            }
            let call = written(kind, &[ROME]);
            assert!(accepts(&call), "{what}: {call}");
            assert!(accepts(&written(kind, &[THREE])), "{what}");
            assert!(accepts(&written(kind, &[ROME, THREE])), "{what}");
            assert!(!accepts(&call.replace("Rome", "Bonn")), "{what}");
            assert!(!accepts(&call.replace("\"Rome\"", "1")), "{what}");
            assert!(!accepts(&written(kind, &[("rm", "{}")])), "{what}");
            assert!(!accepts(&written(kind, &[("get_al", "{}")])), "{what}");
            assert!(!accepts(&written(kind, &[("get", "{}")])), "{what}");
            let after_text = kind.syntax().after_text;
            assert_eq!(
                accepts(&format!("Let me see.\n{call}\nDone.")),
                after_text || kind == ToolFormat::Llama,
                "{what}"
            );
        }
    }
}

#[test]
fn one_call_is_the_end_of_calls_where_they_may_not_be_parallel() {
    for spelled in SPELLINGS {
        let model = model(spelled);
        for kind in FORMATS {
            for choice in [ToolChoice::Auto, ToolChoice::Required] {
                let what = format!("{kind:?} {spelled:?} {choice:?}");
                let format = format(kind, None);
                let one = model.compile(&format, &tools(choice, false), None);
                let accepts = |text: &str| model.accepts(one.for_another_sequence(), text);
                assert!(accepts(&written(kind, &[ROME])), "{what}");
                assert!(!accepts(&written(kind, &[ROME, THREE])), "{what}");
            }
        }
    }
}

#[test]
fn a_call_that_has_begun_ends_as_one() {
    for spelled in SPELLINGS {
        let model = model(spelled);
        for kind in FORMATS.into_iter().filter(|kind| kind.syntax().after_text) {
            let format = format(kind, None);
            let auto = model.compile(&format, &tools(ToolChoice::Auto, false), None);
            let Some(Piece::Mark(mark)) =
                kind.syntax().first.iter().chain(kind.syntax().call).next()
            else {
                panic!("{kind:?}");
            };
            let start = format!("Yes.\n{mark}");
            for seed in 0..6 {
                let mut constraint = auto.for_another_sequence();
                let read = model.walk(&mut constraint, &format, &start, seed);
                let what = format!("{kind:?} {spelled:?}");
                assert!(read.content.starts_with("Yes."), "{what}: {read:?}");
                if read.ended {
                    assert_eq!(read.calls.len(), 1, "{what}: {read:?}");
                    assert_calls_fit(&read, &what);
                }
            }
        }
    }
}
