//! Grammars that nobody means to write: schemas, regexes, lists of choices, Lark grammars and tools. Whatever comes of them is compiled or
//! refused with a reason, in time; no token is allowed that cannot be taken; and a JSON text that ends by itself is what its schema says, in
//! the eyes of another validator. Longer runs as in `http/tests/fuzz`: `TEXT_GEN_FUZZ_SECS=600 TEXT_GEN_FUZZ_SEED=7`, under a limit of
//! memory (`ulimit -v`). What they find goes into `tests/fuzz/corpus/grammars`: the kind in the first line, the grammar behind it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::*;
use crate::tokenizer::Tokenizer;
use crate::tokenizer::tests::compat;
use crate::types::message_format::{CallFormat, MessageFormat, ToolFormat};
use crate::types::random::Random;
use crate::types::{Grammar, Tool, ToolChoice, ToolUse, mutation};

/// Of a compilation, which has a limit of its own, on a machine that does much else.
const COMPILE_DEADLINE: Duration = Duration::from_secs(15);
/// Of a token; the usual ones take microseconds.
const TOKEN_DEADLINE: Duration = Duration::from_secs(3);
const USUAL_CASES: usize = 400;
const VOCAB_SIZE: u32 = 2048;
const MAX_TOKENS: usize = 60;

/// Keywords of JSON Schema with values of their kind, as JSON.
const KEYWORDS: [&str; 62] = [
    r#""type":"object""#,
    r#""type":"array""#,
    r#""type":"string""#,
    r#""type":"integer""#,
    r#""type":"number""#,
    r#""type":["null","boolean"]"#,
    r#""type":"unheard of""#,
    r#""type":[]"#,
    r#""enum":["a",1,null,{"b":[]}]"#,
    r#""enum":[]"#,
    r#""const":"é☕\u0000""#,
    r#""const":1.50"#,
    r#""minimum":-3"#,
    r#""maximum":2.5"#,
    r#""minimum":9007199254740993"#,
    r#""exclusiveMinimum":0"#,
    r#""exclusiveMaximum":0"#,
    r#""exclusiveMaximum":true"#,
    r#""multipleOf":3"#,
    r#""multipleOf":0.01"#,
    r#""multipleOf":0"#,
    r#""minLength":2"#,
    r#""maxLength":1"#,
    r#""maxLength":4294967296"#,
    r#""maxLength":-1"#,
    r#""pattern":"^[a-c]+$""#,
    r#""pattern":"b""#,
    r#""pattern":"(a|b)*(?=c)""#,
    r#""pattern":"((""#,
    r#""format":"date""#,
    r#""format":"uuid""#,
    r#""format":"email""#,
    r#""format":"unheard of""#,
    r#""minItems":1"#,
    r#""maxItems":3"#,
    r#""minItems":1000000000"#,
    r#""uniqueItems":true"#,
    r#""items":{"type":"integer"}"#,
    r#""items":false"#,
    r#""items":[{"type":"integer"}]"#,
    r#""prefixItems":[{"type":"string"},true]"#,
    r#""contains":{"const":1}"#,
    r#""properties":{"a":{"type":"integer"},"b":{}}"#,
    r#""properties":{"":{"const":""},"é\"\\":true}"#,
    r#""required":["a"]"#,
    r#""required":["unheard of","a"]"#,
    r#""additionalProperties":false"#,
    r#""additionalProperties":{"type":"boolean"}"#,
    r#""patternProperties":{"^x":{"type":"null"}}"#,
    r#""propertyNames":{"maxLength":3}"#,
    r#""minProperties":2"#,
    r#""maxProperties":1"#,
    r#""dependentRequired":{"a":["b"]}"#,
    r##""$ref":"#""##,
    r##""$ref":"#/$defs/a""##,
    r#""$ref":"https://example.com/schema""#,
    r#""$defs":{"a":{"type":"array","items":{"$ref":"\#/$defs/a"}}}"#,
    r#""anyOf":[{"type":"string"},{"minimum":3}]"#,
    r#""oneOf":[{"const":1},{"const":2}]"#,
    r#""allOf":[{"required":["a"]},{"maximum":7}]"#,
    r#""not":{"type":"string"}"#,
    r#""if":{"required":["a"]},"then":{"minProperties":2}"#,
];

/// Of regexes and Lark grammars.
const WORDS: [&str; 50] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "|",
    "*",
    "+",
    "?",
    "{2,5}",
    "{1000}",
    "{0,100000}",
    "(?:",
    "(?=a)",
    "(?<!b)",
    "(?i)",
    "\\d",
    "\\w+",
    "\\p{L}",
    "\\b",
    "\\1",
    "\\u00e9",
    "[^\"]",
    "[a-z]",
    "[z-a]",
    "^",
    "$",
    ".",
    "é",
    "\u{0}",
    "\\",
    "start: ",
    "\n",
    "x: ",
    "TEXT: ",
    "/a+/",
    "\"a\"",
    "%json {\"type\":\"integer\"}",
    "%regex {\"substring_words\":\"a b\"}",
    "%ignore /\\s+/\n",
    "%import common.WS\n",
    "@other",
    "<[5]>",
    "<|im_end|>",
    "[lazy]",
    "~",
    "&",
    "-> a",
    "#",
];

#[derive(Clone, Debug)]
struct Case {
    kind: Kind,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Schema,
    Tool,
    Regex,
    Lark,
    Choice,
}

const KINDS: [(&str, Kind); 5] = [
    ("schema", Kind::Schema),
    ("tool", Kind::Tool),
    ("regex", Kind::Regex),
    ("lark", Kind::Lark),
    ("choice", Kind::Choice),
];

struct Fuzzed {
    tokenizer: Arc<Tokenizer>,
    compiler: GrammarCompiler,
    num_compiled: usize,
    num_ended: usize,
}

impl Fuzzed {
    fn new() -> Self {
        Self {
            tokenizer: compat(),
            compiler: GrammarCompiler::new(compat(), VOCAB_SIZE),
            num_compiled: 0,
            num_ended: 0,
        }
    }

    /// What is wrong with what became of a grammar, if anything.
    fn check(&mut self, random: &mut Random, case: &Case) -> Option<String> {
        let started = Instant::now();
        let compiled = self.compile(case);
        if started.elapsed() > COMPILE_DEADLINE {
            return Some(format!("compiled in {:?}", started.elapsed()));
        }
        let mut constraint = match compiled {
            Ok(constraint) => constraint,
            Err(error) => return unexplained(&error),
        };
        self.num_compiled += 1;
        let mut tokens = Vec::new();
        while tokens.len() < MAX_TOKENS {
            let allowed = allowed(&constraint);
            let token = *random.pick(&allowed);
            if self.tokenizer.end_token_ids().contains(&token) {
                self.num_ended += 1;
                return self.wrong_text(case, &tokens);
            }
            tokens.push(token);
            let started = Instant::now();
            let pushed = constraint.push(token);
            if started.elapsed() > TOKEN_DEADLINE {
                return Some(format!("a token took {:?}", started.elapsed()));
            }
            match pushed {
                // The limits of one mask.
                Err(GrammarError::TooComplex(_)) => return None,
                Err(error) => return Some(format!("after {tokens:?}: {error}")),
                Ok(()) => {}
            }
        }
        None
    }

    fn compile(&self, case: &Case) -> Result<Constraint, GrammarError> {
        let text = case.text.clone();
        let grammar = match case.kind {
            Kind::Schema => Grammar::JsonSchema(text),
            Kind::Regex => Grammar::Regex(text),
            Kind::Lark => Grammar::Lark(text),
            Kind::Choice => Grammar::Choice(text.split('|').map(str::to_owned).collect()),
            Kind::Tool => return self.compile_tool(text),
        };
        self.compiler.compile(&grammar)
    }

    fn compile_tool(&self, parameters: String) -> Result<Constraint, GrammarError> {
        let name = "get".to_owned();
        let format = MessageFormat {
            reasoning: None,
            calls: Some(CallFormat {
                format: ToolFormat::Llama,
                names: vec![name.clone()],
            }),
        };
        let tools = ToolUse {
            prompt: None,
            tools: vec![Tool {
                name,
                parameters,
                definition: minijinja::Value::default(),
            }],
            choice: ToolChoice::Required,
            parallel: false,
        };
        self.compiler.compile_answer(&format, Some(&tools), None)
    }

    /// A JSON text that is none, or not what its schema says.
    fn wrong_text(&self, case: &Case, tokens: &[u32]) -> Option<String> {
        let text = self.tokenizer.decode(tokens, true);
        let text = text.strip_prefix("<|python_tag|>").unwrap_or(&text);
        let schema: Value = match case.kind {
            Kind::Schema | Kind::Tool => serde_json::from_str(&case.text).ok()?,
            _ => return None,
        };
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            // JSON sets no limit to exponents; parsers do.
            Err(error) if error.to_string().contains("number out of range") => return None,
            Err(error) => return Some(format!("{text:?}: {error}")),
        };
        let value = match case.kind {
            Kind::Tool => &value["parameters"],
            _ => &value,
        };
        let validator = jsonschema::validator_for(&schema).ok()?;
        let error = validator.iter_errors(value).next()?;
        Some(format!("{text:?}: {error}"))
    }
}

fn unexplained(error: &GrammarError) -> Option<String> {
    let message = error.to_string();
    let is_explained = message.len() > 10 && !message.contains('\n') && message.len() < 2500;
    (!is_explained).then(|| format!("refused with {message:?}"))
}

fn allowed(constraint: &Constraint) -> Vec<u32> {
    let mask = constraint.mask();
    let bit = |id: &u32| mask.words()[*id as usize / 32] >> (id % 32) & 1 == 1;
    (0..VOCAB_SIZE).filter(bit).collect()
}

/// Changes one place of a schema, mostly one that is a schema itself.
fn mutate_schema(random: &mut Random, schema: &mut Value, others: &[Value]) {
    let num_places = count(schema);
    let anywhere = random.one_in(8);
    let mut place = random.below(num_places);
    for _ in 0..num_places {
        if anywhere || node(schema, &mut { place }).is_some_and(|node| is_schema(node)) {
            break;
        }
        place = (place + 1) % num_places;
    }
    let Some(place) = node(schema, &mut { place }) else {
        return;
    };
    match random.below(6) {
        0 => *place = random.pick(others).clone(),
        1 => *place = json!({"anyOf": [place.clone(), random.pick(others).clone()]}),
        2 => *place = json!({"type": "array", "items": place.clone()}),
        _ => {
            let keyword = random.pick(&KEYWORDS).replace("\\#", "#");
            let more: Map<String, Value> = serde_json::from_str(&format!("{{{keyword}}}")).unwrap();
            match place {
                Value::Object(fields) => fields.extend(more),
                place => *place = Value::Object(more),
            }
        }
    }
}

fn is_schema(value: &Value) -> bool {
    let keywords = ["type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf"];
    keywords.iter().any(|keyword| !value[keyword].is_null())
}

fn children(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => Vec::new(),
    }
}

fn count(value: &mut Value) -> usize {
    1 + children(value).into_iter().map(count).sum::<usize>()
}

/// The node with that number, from the root's 0.
fn node<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    children(value)
        .into_iter()
        .find_map(|child| node(child, left))
}

fn mutated(random: &mut Random, case: &Case, texts: &[String], schemas: &[Value]) -> Case {
    let parsed = serde_json::from_str::<Value>(&case.text);
    let text = match (case.kind, parsed) {
        (Kind::Schema | Kind::Tool, Ok(mut schema)) if !random.one_in(12) => {
            for _ in 0..1 + random.below(3) {
                mutate_schema(random, &mut schema, schemas);
            }
            schema.to_string()
        }
        _ => mutation::text(random, &case.text, &WORDS, texts),
    };
    Case {
        kind: case.kind,
        text,
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/grammars")
}

/// Grammars that once failed, or that no mutation would find.
fn corpus() -> Vec<Case> {
    let mut paths: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let whole = fs::read_to_string(path).unwrap();
        let (kind, text) = whole.split_once('\n').unwrap();
        let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == kind).unwrap();
        let text = text.to_owned();
        Case { kind, text }
    };
    paths.iter().map(read).collect()
}

#[test]
fn grammars_that_once_failed_are_compiled_or_refused() {
    let mut fuzzed = Fuzzed::new();
    for case in corpus() {
        for seed in 0..5 {
            let problem = fuzzed.check(&mut Random::new(seed), &case);
            assert_eq!(problem, None, "{case:?}");
        }
    }
    assert!(fuzzed.num_compiled > 20, "{}", fuzzed.num_compiled);
}

#[test]
fn mutated_grammars_are_compiled_or_refused_and_kept() {
    let cases = corpus();
    let texts: Vec<String> = cases.iter().map(|case| case.text.clone()).collect();
    let schemas = texts
        .iter()
        .filter_map(|text| serde_json::from_str(text).ok());
    let schemas: Vec<Value> = schemas.collect();
    let seed = Random::asked("TEXT_GEN_FUZZ_SEED").unwrap_or(1);
    let secs = Random::asked("TEXT_GEN_FUZZ_SECS").map(Duration::from_secs);
    let until = secs.map(|secs| Instant::now() + secs);
    let mut random = Random::new(seed);
    let mut fuzzed = Fuzzed::new();
    let mut count = 0;
    let mut problems = Vec::new();
    while until.map_or(count < USUAL_CASES, |until| Instant::now() < until) && problems.len() < 10 {
        let source = random.pick(&cases);
        let case = mutated(&mut random, source, &texts, &schemas);
        count += 1;
        if until.is_some() {
            // What ends the process leaves no message.
            let file = std::env::temp_dir().join("text-gen-fuzz-grammar");
            fs::write(file, format!("{:?}\n{}", case.kind, case.text)).unwrap();
        }
        if let Some(problem) = fuzzed.check(&mut random, &case) {
            problems.push(format!("{problem}\n{:?}\n{}", case.kind, case.text));
        }
    }
    let (compiled, ended) = (fuzzed.num_compiled, fuzzed.num_ended);
    println!("{count} grammars with seed {seed}: {compiled} compiled, {ended} answers ended");
    assert!(problems.is_empty(), "of {count}\n{}", problems.join("\n\n"));
    assert!(
        compiled * 5 > count && ended > 0,
        "{compiled} and {ended} of {count}"
    );
}
