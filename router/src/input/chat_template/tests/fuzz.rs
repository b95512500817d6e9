//! Templates that nobody wrote: pieces of real ones, out of order. Whatever comes of it is rendered or refused with a reason, in time,
//! and never panics. Longer runs as in `http/tests/fuzz`: `TEXT_GEN_FUZZ_SECS=600 TEXT_GEN_FUZZ_SEED=7`,
//! under a limit of memory (`ulimit -v`); the template at hand is `text-gen-fuzz-template` in the folder for temporary files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::rendered::{chat, conversations, folder, read};
use super::*;
use crate::types::random::Random;

const DEADLINE: Duration = Duration::from_secs(60);
const USUAL_CASES: usize = 1500;

/// What is wrong with the rendering, if anything.
fn fuzz_template(source: &str, chat: &Chat) -> Option<String> {
    let started = Instant::now();
    let rendered = catch_unwind(AssertUnwindSafe(|| templates(source).render(chat)));
    if started.elapsed() > DEADLINE {
        return Some(format!("took {:?}", started.elapsed()));
    }
    match rendered {
        Err(_panic) => Some("panicked".to_owned()),
        Ok(Err(error)) if error.to_string().trim_end() == "chat template:" => {
            Some("does not say why".to_owned())
        }
        Ok(_) => None,
    }
}

/// Tags, and the text between them.
fn pieces(source: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = source;
    while !rest.is_empty() {
        let start = if rest.starts_with('{') { 2 } else { 0 };
        let at = rest
            .get(start..)
            .and_then(|behind| behind.find("{{").into_iter().chain(behind.find("{%")).min());
        let (piece, remaining) = rest.split_at(at.map_or(rest.len(), |at| start + at));
        pieces.push(piece.to_owned());
        rest = remaining;
    }
    pieces
}

/// Tokens that change what an expression means.
const TOKENS: [&str; 40] = [
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    "{{",
    "}}",
    "{%",
    "%}",
    "-%}",
    "'",
    "\"",
    ":",
    ",",
    ".",
    "|",
    "~",
    "+",
    "-1",
    "[::-1]",
    "[1:",
    "0",
    "99999999",
    "none",
    "messages",
    "loop",
    "if",
    "else",
    "in",
    "not",
    " is ",
    "|tojson",
    "|list",
    "|map('string')",
    ".split()",
    ".strip('\u{e9}')",
    "\\",
    "\\U0001F600",
    "\u{e9}",
];

fn mutated(random: &mut Random, pool: &[String], source: &str) -> String {
    let mut pieces = pieces(source);
    for _ in 0..1 + random.below(3) {
        let at = random.below(pieces.len().max(1));
        match random.below(6) {
            0 if at < pieces.len() => drop(pieces.remove(at)),
            1 if at < pieces.len() => pieces.insert(at, pieces[at].clone()),
            2 if at < pieces.len() => pieces[at] = random.pick(pool).clone(),
            3 => pieces.insert(at, random.pick(pool).clone()),
            _ if at < pieces.len() => {
                let letters: Vec<char> = pieces[at].chars().collect();
                let cut = random.below(letters.len() + 1);
                let skip = random.below(3).min(letters.len() - cut);
                let (before, behind) = (&letters[..cut], &letters[cut + skip..]);
                let token = random.pick(&TOKENS).chars();
                pieces[at] = before
                    .iter()
                    .copied()
                    .chain(token)
                    .chain(behind.iter().copied())
                    .collect();
            }
            _ => {}
        }
    }
    pieces.concat()
}

#[test]
fn mutated_templates_are_rendered_or_refused_and_never_panic() {
    let mut sources: Vec<String> = read("expressions.txt").lines().map(str::to_owned).collect();
    for file in std::fs::read_dir(folder()).unwrap() {
        let path = file.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "jinja")
        {
            sources.push(std::fs::read_to_string(path).unwrap());
        }
    }
    sources.sort();
    let pool: Vec<String> = sources.iter().flat_map(|source| pieces(source)).collect();
    let chats: Vec<Chat> = conversations().into_iter().map(chat).collect();
    let seed = Random::asked("TEXT_GEN_FUZZ_SEED").unwrap_or(1);
    let secs = Random::asked("TEXT_GEN_FUZZ_SECS").map(Duration::from_secs);
    let until = secs.map(|secs| Instant::now() + secs);
    let mut random = Random::new(seed);
    let mut count = 0;
    let mut problems = Vec::new();
    while until.map_or(count < USUAL_CASES, |until| Instant::now() < until) && problems.len() < 10 {
        let source = mutated(&mut random, &pool, source_of(&sources, count));
        let chat = random.pick(&chats);
        count += 1;
        if until.is_some() {
            // What ends the process leaves no message.
            std::fs::write(std::env::temp_dir().join("text-gen-fuzz-template"), &source).unwrap();
        }
        if let Some(problem) = fuzz_template(&source, chat) {
            problems.push(format!("{problem}\n{source}"));
        }
    }
    println!("{count} templates with seed {seed}");
    assert!(problems.is_empty(), "of {count}\n{}", problems.join("\n\n"));
}

/// Each in turn, so that all are used.
fn source_of(sources: &[String], count: usize) -> &str {
    &sources[count * 7919 % sources.len()]
}
