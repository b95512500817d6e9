//! Changes to JSON and to bytes, drawn from a seed: the same seed gives the same requests.

use super::json::Json;
use crate::types::random::Random;

/// Values that parsers and range checks get wrong.
const LEAVES: [&str; 60] = [
    "null",
    "true",
    "false",
    "0",
    "1",
    "-1",
    "2",
    "-0",
    "-0.0",
    "0.0",
    "1.0",
    "0.5",
    "1e-400",
    "1e400",
    "-1e400",
    "1e308",
    "1e-7",
    "255",
    "256",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "123456789012345678901234567890",
    "NaN",
    "Infinity",
    "01",
    "+1",
    ".5",
    "1.",
    "0x10",
    "''",
    "undefined",
    r#""""#,
    r#"" ""#,
    r#""a""#,
    r#""\u0000""#,
    r#""\ud800""#,
    r#""\udc00\ud800""#,
    r#""\ud83d\ude00""#,
    r#""\uFFFF""#,
    r#""\x41""#,
    "\"\u{202e}\u{feff}\"",
    r#""<|im_end|>""#,
    r#""{{ messages }}{% raw %}""#,
    r#""(?P<a>(a+)+)$""#,
    r#""null""#,
    r#""1e5""#,
    "[]",
    "{}",
    "[[]]",
    r#"{"":null}"#,
];

/// Keys that mean something to one of the routes.
const KEYS: [&str; 34] = [
    "inputs",
    "parameters",
    "messages",
    "prompt",
    "instances",
    "role",
    "content",
    "type",
    "text",
    "image_url",
    "url",
    "tools",
    "tool_choice",
    "tool_calls",
    "function",
    "arguments",
    "response_format",
    "json_schema",
    "grammar",
    "value",
    "stop",
    "n",
    "best_of",
    "seed",
    "logit_bias",
    "stream",
    "stream_options",
    "max_tokens",
    "max_new_tokens",
    "top_n_tokens",
    "truncate",
    "chat_template_kwargs",
    "documents",
    "tokens",
];

/// One change somewhere in the tree. `others` lend their parts.
pub fn tree(random: &mut Random, root: &mut Json, others: &[Json]) {
    let idx = random.below(root.count());
    let Some(node) = root.node(idx) else {
        return;
    };
    match random.below(12) {
        0..4 => *node = Json::Leaf((*random.pick(&LEAVES)).to_owned()),
        4 => *node = part(random, others),
        5 => *node = Json::List(vec![node.clone(); random.below(4)]),
        6 => *node = Json::Map(vec![(key(random), node.clone())]),
        7 => *node = deep(random, node.clone()),
        8 => *node = Json::Leaf(long(random)),
        _ => children(random, node, others),
    }
}

/// One change to the items or the entries of a node.
fn children(random: &mut Random, node: &mut Json, others: &[Json]) {
    match node {
        Json::Leaf(text) => *text = random.pick(&LEAVES).to_string(),
        Json::List(items) if items.is_empty() => items.push(part(random, others)),
        Json::List(items) => {
            let at = random.below(items.len());
            match random.below(3) {
                0 => drop(items.remove(at)),
                1 => items.insert(at, items[at].clone()),
                _ => items.insert(at, part(random, others)),
            }
        }
        Json::Map(entries) => {
            let new = (key(random), part(random, others));
            if entries.is_empty() || random.one_in(3) {
                entries.push(new);
                return;
            }
            let at = random.below(entries.len());
            match random.below(4) {
                0 => drop(entries.remove(at)),
                1 => entries.push(entries[at].clone()),
                2 => entries.push((entries[at].0.clone(), new.1)),
                _ => entries[at].0 = new.0,
            }
        }
    }
}

fn key(random: &mut Random) -> String {
    match random.below(12) {
        0 => r#""\ud800""#.to_owned(),
        1 => r#""""#.to_owned(),
        2 => "unquoted".to_owned(),
        _ => format!("{:?}", random.pick(&KEYS)),
    }
}

/// A part of another body.
fn part(random: &mut Random, others: &[Json]) -> Json {
    let mut other = random.pick(others).clone();
    let idx = random.below(other.count());
    other
        .node(idx)
        .map_or(Json::List(Vec::new()), |node| node.clone())
}

fn deep(random: &mut Random, inner: Json) -> Json {
    let depth = *random.pick(&[2, 20, 100, 126, 127, 128, 200, 5000]);
    let is_list = random.one_in(2);
    let (open, close) = if is_list {
        ("[", "]")
    } else {
        (r#"{"a":"#, "}")
    };
    Json::Leaf(format!(
        "{}{inner}{}",
        open.repeat(depth),
        close.repeat(depth)
    ))
}

fn long(random: &mut Random) -> String {
    let len = *random.pick(&[10, 300, 3000, 30_000]);
    let part = *random.pick(&[
        "a",
        " ",
        "\\n",
        "é",
        "😀",
        "<|im_start|>",
        "a ",
        "\\u0000",
        "ab{",
        "[1,",
    ]);
    match random.below(3) {
        0 => format!("[{}0]", "1,".repeat(len)),
        1 => format!("[{}\"\"]", format!("\"{part}\",").repeat(len.min(3000))),
        _ => format!("\"{}\"", part.repeat(len)),
    }
}

/// Changes that do not know of JSON.
pub fn bytes(random: &mut Random, body: &mut Vec<u8>) {
    const BYTES: [&[u8]; 10] = [
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"\0",
        b"\xef\xbb\xbf",
        b"{",
        b"\"",
        b",",
        b"\\",
        b"[[[[",
    ];
    let at = random.below(body.len() + 1);
    match random.below(4) {
        0 => body.truncate(at),
        1 if at < body.len() => body[at] = random.below(256) as u8,
        2 if at < body.len() => drop(body.remove(at)),
        _ => drop(body.splice(at..at, random.pick(&BYTES).iter().copied())),
    }
}
