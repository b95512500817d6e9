//! What answers mean, however they are cut into tokens.

use proptest::prelude::*;

use super::*;
use crate::types::message_format::{CallFormat, ReasoningFormat, ToolFormat};

mod fuzz;

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

fn calls(format: ToolFormat) -> MessageFormat {
    MessageFormat {
        reasoning: None,
        calls: Some(CallFormat {
            format,
            names: vec!["get".into(), "get_all".into()],
        }),
    }
}

fn thinking(opened_by_prompt: bool) -> Option<ReasoningFormat> {
    Some(ReasoningFormat {
        start: "<think>",
        end: "</think>",
        opened_by_prompt,
    })
}

/// A message in one line: `content`, `(reasoning)`, `name!arguments`.
fn shown(parts: &[MessagePart]) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut calls: Vec<String> = Vec::new();
    let (mut content, mut reasoning) = (String::new(), String::new());
    for part in parts {
        match part {
            MessagePart::Content(text) => content.push_str(text),
            MessagePart::Reasoning(text) => reasoning.push_str(text),
            MessagePart::CallStart { call_idx, name } => {
                assert_eq!(*call_idx, calls.len());
                calls.push(format!("{name}!"));
            }
            MessagePart::CallArguments { call_idx, text } => {
                assert_eq!(*call_idx + 1, calls.len());
                calls[*call_idx].push_str(text);
            }
        }
    }
    if !reasoning.is_empty() {
        lines.push(format!("({reasoning})"));
    }
    if !content.is_empty() {
        lines.push(content);
    }
    lines.extend(calls);
    lines.join(" | ")
}

/// Every piece is pushed on its own; those in `specials` as special tokens.
fn parse(format: &MessageFormat, pieces: &[&str], specials: &[&str]) -> Vec<MessagePart> {
    let mut parser = MessageParser::new(format.clone());
    let mut parts = Vec::new();
    for piece in pieces {
        if specials.contains(piece) {
            parser.push_special(piece);
        } else {
            parser.push_text(piece);
        }
        parts.extend(parser.take_parts());
    }
    parser.finish();
    parts.extend(parser.take_parts());
    parts
}

fn read(format: &MessageFormat, text: &str) -> String {
    shown(&parse(format, &[text], &[]))
}

fn letters(text: &str) -> Vec<String> {
    text.chars().map(String::from).collect()
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    format: String,
    text: String,
    message: String,
}

/// `messages.jsonl` holds texts that were hard to read once, or look as if they would be.
#[test]
fn every_text_of_the_corpus_is_read_as_written_there() {
    let corpus = include_str!("../../../tests/data/messages.jsonl");
    let mut count = 0;
    for line in corpus.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let mut format = match case.format.trim_start_matches("think+") {
            "none" => MessageFormat::default(),
            name => calls(
                *FORMATS
                    .iter()
                    .find(|format| format!("{format:?}") == name)
                    .unwrap(),
            ),
        };
        format.reasoning = thinking(false).filter(|_| case.format.starts_with("think+"));
        assert_eq!(read(&format, &case.text), case.message, "{}", case.name);
        let letters = letters(&case.text);
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        let split = shown(&parse(&format, &letters, &[]));
        assert_eq!(split, case.message, "{}, letter by letter", case.name);
        count += 1;
    }
    assert!(count > 40);
}

#[test]
fn arguments_are_given_out_as_they_come() {
    let mut parser = MessageParser::new(calls(ToolFormat::Hermes));
    let mut push = |text: &str| {
        parser.push_text(text);
        shown_loosely(&parser.take_parts())
    };
    assert_eq!(push("<tool_call>\n{\"name\": \"get"), "");
    assert_eq!(push("\", \"arguments\": "), "");
    assert_eq!(push("{\""), "start get 0, {\"");
    assert_eq!(push("a\": [1, "), "a\":[1,");
    assert_eq!(push("2]}"), "2]}");
    assert_eq!(push("}\n</tool_call>"), "");
}

fn shown_loosely(parts: &[MessagePart]) -> String {
    let show = |part: &MessagePart| match part {
        MessagePart::CallStart { call_idx, name } => format!("start {name} {call_idx}"),
        MessagePart::Content(text)
        | MessagePart::Reasoning(text)
        | MessagePart::CallArguments { text, .. } => text.clone(),
    };
    parts.iter().map(show).collect::<Vec<_>>().join(", ")
}

#[test]
fn marks_that_are_special_tokens_are_understood_and_not_shown() {
    let marks = [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<|other|>",
    ];
    let mut format = calls(ToolFormat::Hermes);
    format.reasoning = thinking(false);
    let call = "{\"name\": \"get\", \"arguments\": {}}";
    let text = [
        "<think>",
        "Hm",
        "<|other|>",
        "m.",
        "</think>",
        "\n\nYes.",
        "<tool_call>",
        call,
        "</tool_call>",
    ];
    assert_eq!(
        shown(&parse(&format, &text, &marks)),
        "(Hmm.) | Yes. | get!{}"
    );
    let broken = ["a", "<tool_call>", "b", "</tool_call>", "<|other|>", "c"];
    assert_eq!(shown(&parse(&format, &broken, &marks)), "abc");
}

#[test]
fn a_prompt_can_open_the_reasoning() {
    let format = MessageFormat {
        reasoning: thinking(true),
        calls: None,
    };
    assert_eq!(read(&format, "\nHm.\n</think>\n\nYes"), "(Hm.) | Yes");
    assert_eq!(read(&format, "Hm, "), "(Hm,)");
    assert_eq!(read(&format, "</think>Yes \n"), "Yes \n");
}

#[test]
fn plain_text_is_given_out_unchanged_and_at_once() {
    let mut parser = MessageParser::new(MessageFormat::default());
    parser.push_text(" <think> \n");
    parser.push_special("<think>");
    assert_eq!(
        parser.take_parts(),
        [MessagePart::Content(" <think> \n".into())]
    );
}

#[test]
fn text_that_almost_is_a_call_is_not_held_for_ever() {
    let mut parser = MessageParser::new(calls(ToolFormat::Hermes));
    parser.push_text("<tool_call>");
    for _ in 0..2000 {
        parser.push_text(" ");
    }
    parser.push_text("x");
    let text = shown(&parser.take_parts());
    assert!(
        text.starts_with("<tool_call> ") && text.ends_with(" x"),
        "{text}"
    );
}

#[test]
fn escapes_of_an_answer_in_an_object_are_resolved() {
    let format = calls(ToolFormat::Tgi);
    let answer = |text: &str| {
        let head = r#"{"function": {"_name": "no_tool", "content": ""#;
        read(&format, &format!("{head}{text}\"}}}}"))
    };
    assert_eq!(answer(r"a\n\u00e9\ud83d\ude00"), "a\né😀");
    assert_eq!(answer(r#"\"\\\/"#), r#""\/"#);
    assert_eq!(answer(r"\ud83dx\ude00"), "\u{FFFD}x\u{FFFD}");
    assert_eq!(answer(r"\x\u12g"), r"\x\u12g");
}

/// A value, its text with some whitespace, and without.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        "[a-c\"\\\\{}\\[\\] \n<é☕]{0,6}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map("[a-c\"\\\\ ]{0,3}", inner, 0..4).prop_map(|entries| {
                entries
                    .into_iter()
                    .collect::<serde_json::Map<_, _>>()
                    .into()
            }),
        ]
    })
}

fn object() -> impl Strategy<Value = serde_json::Value> {
    prop::collection::btree_map("[a-c\"\\\\ ]{1,3}", json(), 0..4).prop_map(|entries| {
        entries
            .into_iter()
            .collect::<serde_json::Map<_, _>>()
            .into()
    })
}

/// Text of a call as the tables say, with the arguments in a generous notation.
fn written(format: ToolFormat, name: &str, arguments: &serde_json::Value) -> String {
    let syntax = format.syntax();
    let pretty = serde_json::to_string_pretty(arguments).unwrap();
    let pieces = syntax.first.iter().chain(syntax.call).chain(syntax.last);
    let text = |piece: &Piece| match piece {
        Piece::Text(text) | Piece::Space(text) | Piece::Mark(text) => (*text).to_owned(),
        Piece::OptionalMark(_) | Piece::Answer => String::new(),
        Piece::Name => name.to_owned(),
        Piece::Arguments => pretty.clone(),
        Piece::Members if pretty.len() == 2 => "}".to_owned(),
        Piece::Members => format!(", {}", &pretty[1..]),
    };
    pieces.map(text).collect()
}

fn cut<'a>(text: &'a str, cuts: &[prop::sample::Index]) -> Vec<&'a str> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
    at.retain(|at| text.is_char_boundary(*at));
    at.extend([0, text.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// Pieces of formats, in any order, and other text.
fn confusing() -> impl Strategy<Value = String> {
    let fragments = vec![
        "<tool_call>",
        "</tool_call>",
        "<tool_",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "<think>",
        "</think>",
        "</thi",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "\\",
        ",",
        ":",
        ";",
        " ",
        "\n",
        "\"name\"",
        "\"arguments\"",
        "\"parameters\"",
        "get",
        "get_all",
        "{\"name\": \"get\", \"arguments\": {",
        "{\"name\":\"get_all\",\"parameters\":{\"a\": 1",
        "```json",
        "```",
        "function",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "{\"function\": {\"_name\": \"get\"",
        "\"no_tool\", \"content\": \"",
        "é",
        "☕",
        "text",
        "\\u00",
        "<|tool_call|>",
    ];
    prop::collection::vec(prop::sample::select(fragments), 0..14).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_text_is_read_the_same_however_it_is_cut(
        text in confusing(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        format in prop::sample::select(FORMATS.to_vec()),
        reasoning in prop::sample::select(vec![None, thinking(false), thinking(true)]),
    ) {
        let format = MessageFormat { reasoning, ..calls(format) };
        let whole = shown(&parse(&format, &[&text], &[]));
        prop_assert_eq!(shown(&parse(&format, &cut(&text, &cuts), &[])), whole);
    }

    #[test]
    fn calls_are_read_with_their_arguments_byte_for_byte(
        format in prop::sample::select(FORMATS.to_vec()),
        name in prop::sample::select(vec!["get", "get_all"]),
        arguments in object(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let text = written(format, name, &arguments);
        let parts = parse(&calls(format), &cut(&text, &cuts), &[]);
        prop_assert_eq!(shown(&parts), format!("{name}!{arguments}"));
    }

    #[test]
    fn text_without_a_format_is_content_letter_for_letter(
        text in "[a-z\\[\\]{}<>\"\\\\ \n|]{0,60}",
        format in prop::sample::select(FORMATS.to_vec()),
    ) {
        prop_assert_eq!(read(&calls(format), &text), text);
    }
}
