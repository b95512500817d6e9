//! Texts that no model means to write. However wrong they are and however they are cut, they are read in time, the same each time, and
//! what they say is theirs. Longer runs as in `http/tests/fuzz`: `TEXT_GEN_FUZZ_SECS=600 TEXT_GEN_FUZZ_SEED=7`, under a limit of
//! memory (`ulimit -v`). What they find goes into `tests/fuzz/corpus/messages`: the format in the first line, the text behind it.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::types::mutation;
use crate::types::random::Random;

const DEADLINE: Duration = Duration::from_secs(10);
const USUAL_CASES: usize = 20_000;

const WORDS: [&str; 44] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "<|tool_call|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "```json\n",
    "```",
    "{\"name\": \"get\", \"arguments\": {",
    "{\"name\":\"get_all\",\"parameters\":{",
    "{\"function\": {\"_name\": \"get\"",
    "{\"function\": {\"_name\": \"no_tool\", \"content\": \"",
    "\"arguments\"",
    "\"parameters\"",
    "\"name\"",
    "get",
    "get_all",
    "unknown",
    "{",
    "}",
    "}}",
    "[",
    "]",
    ",",
    ":",
    ";",
    "\"",
    "\\",
    "\\\"",
    "\\u00e9",
    "\\ud83d",
    " ",
    "\n",
    "\t",
    "\u{a0}",
    "é☕",
    "\u{0}",
];

/// What is wrong with the reading, if anything.
fn fuzz_message(random: &mut Random, format: &MessageFormat, text: &str) -> Option<String> {
    let started = Instant::now();
    let read = |pieces: &[&str]| {
        catch_unwind(AssertUnwindSafe(|| parse(format, pieces, &[])))
            .map_err(|_panic| "panicked".to_owned())
    };
    let whole = match read(&[text]) {
        Ok(whole) => whole,
        Err(problem) => return Some(problem),
    };
    let letters = letters(text);
    let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
    for pieces in [letters, cut_anywhere(random, text)] {
        match read(&pieces) {
            Ok(parts) if shown(&parts) == shown(&whole) => {}
            Ok(parts) => return Some(format!("{} or {}", shown(&whole), shown(&parts))),
            Err(problem) => return Some(problem),
        }
    }
    if started.elapsed() > DEADLINE {
        return Some(format!("took {:?}", started.elapsed()));
    }
    invented(&whole, text)
}

fn cut_anywhere<'a>(random: &mut Random, text: &'a str) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = 1 + random.below(9);
        let at = rest
            .char_indices()
            .nth(end)
            .map_or(rest.len(), |(at, _)| at);
        let (piece, behind) = rest.split_at(at);
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

/// Names that are no tool's, and letters that the text does not have in that order.
fn invented(parts: &[MessagePart], text: &str) -> Option<String> {
    // Escapes of an answer are resolved, and a brace that members lack is added.
    let mut rest = text.chars();
    for part in parts {
        match part {
            MessagePart::CallStart { name, .. } if !["get", "get_all"].contains(&name.as_str()) => {
                return Some(format!("called {name:?}"));
            }
            MessagePart::Reasoning(said) | MessagePart::Content(said)
                if !text.contains("no_tool") =>
            {
                if let Some(letter) = said
                    .chars()
                    .find(|letter| !rest.any(|other| other == *letter))
                {
                    return Some(format!("{letter:?} of {said:?} is not there"));
                }
            }
            _ => {}
        }
    }
    None
}

/// Formats, some with reasoning.
fn formats() -> Vec<(String, MessageFormat)> {
    let thinkings = [
        ("", None),
        ("think+", thinking(false)),
        ("thinking+", thinking(true)),
    ];
    let mut formats = vec![("none".to_owned(), MessageFormat::default())];
    for (prefix, reasoning) in thinkings {
        for format in FORMATS {
            let with = MessageFormat {
                reasoning,
                ..calls(format)
            };
            formats.push((format!("{prefix}{format:?}"), with));
        }
    }
    formats
}

/// Texts that once were read wrongly, or that no mutation would find.
fn corpus() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/messages");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let whole = fs::read_to_string(path).unwrap();
        let (format, text) = whole.split_once('\n').unwrap();
        (format.to_owned(), text.to_owned())
    };
    paths.iter().map(read).collect()
}

#[test]
fn texts_that_were_read_wrongly_once_are_read() {
    let formats = formats();
    for (name, text) in corpus() {
        let (_, format) = formats.iter().find(|(known, _)| *known == name).unwrap();
        let problem = fuzz_message(&mut Random::new(1), format, &text);
        assert_eq!(problem, None, "{name}\n{text}");
    }
}

#[test]
fn mutated_texts_are_read_the_same_however_they_are_cut() {
    let cases = include_str!("../../../../tests/data/messages.jsonl").lines();
    let cases = cases.map(|line| serde_json::from_str::<Case>(line).unwrap());
    let cases: Vec<(String, String)> = cases
        .map(|case| (case.format, case.text))
        .chain(corpus())
        .collect();
    let texts: Vec<String> = cases.iter().map(|(_, text)| text.clone()).collect();
    let formats = formats();
    let seed = Random::asked("TEXT_GEN_FUZZ_SEED").unwrap_or(1);
    let secs = Random::asked("TEXT_GEN_FUZZ_SECS").map(Duration::from_secs);
    let until = secs.map(|secs| Instant::now() + secs);
    let mut random = Random::new(seed);
    let (mut count, mut num_calls) = (0, 0);
    let mut problems = Vec::new();
    while until.map_or(count < USUAL_CASES, |until| Instant::now() < until) && problems.len() < 10 {
        let (own, source) = random.pick(&cases);
        let text = mutation::text(&mut random, source, &WORDS, &texts);
        let (name, format) = match formats.iter().find(|(name, _)| name == own) {
            Some(found) if !random.one_in(4) => found,
            _ => random.pick(&formats),
        };
        count += 1;
        if let Some(problem) = fuzz_message(&mut random, format, &text) {
            problems.push(format!("{problem}\n{name}\n{text}"));
        }
        let is_call = |part: &MessagePart| matches!(part, MessagePart::CallStart { .. });
        num_calls += usize::from(parse(format, &[&text], &[]).iter().any(is_call));
    }
    println!("{count} texts with seed {seed}, {num_calls} of them with calls");
    assert!(problems.is_empty(), "of {count}\n{}", problems.join("\n\n"));
    assert!(num_calls * 20 > count, "{num_calls} of {count} have calls");
}
