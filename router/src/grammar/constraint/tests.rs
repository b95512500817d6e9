use std::sync::Arc;

use serde_json::{Value, json};

use crate::grammar::{Constraint, GrammarCompiler, GrammarError};
use crate::tokenizer::Tokenizer;
use crate::tokenizer::tests::compat;
use crate::types::{Grammar, TokenMask};

const VOCAB_SIZE: u32 = 2048;

struct Model {
    tokenizer: Arc<Tokenizer>,
    grammars: GrammarCompiler,
}

fn model() -> Model {
    Model {
        tokenizer: compat(),
        grammars: GrammarCompiler::new(compat(), VOCAB_SIZE),
    }
}

impl Model {
    fn compile(&self, grammar: Grammar) -> Result<Constraint, GrammarError> {
        self.grammars.compile(&grammar)
    }

    /// Takes allowed tokens, as a small generator wills, until an end token comes or there are enough.
    fn walk(&self, mut constraint: Constraint, seed: u64, max_tokens: usize) -> (String, bool) {
        let mut chance = seed.wrapping_mul(2).wrapping_add(1);
        let mut tokens = Vec::new();
        for _ in 0..max_tokens {
            let allowed = allowed(&constraint.mask());
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let token = allowed[(chance >> 33) as usize % allowed.len()];
            if self.tokenizer.end_token_ids().contains(&token) {
                return (self.tokenizer.decode(&tokens, true), true);
            }
            tokens.push(token);
            constraint.push(token).unwrap();
        }
        (self.tokenizer.decode(&tokens, true), false)
    }

    /// Whether the tokens of a text, and then an end, are allowed one after the other.
    fn accepts(&self, grammar: Grammar, text: &str) -> bool {
        let mut constraint = self.compile(grammar).unwrap();
        for token in self.tokenizer.encode(text, false).unwrap() {
            if !allowed(&constraint.mask()).contains(&token) {
                return false;
            }
            constraint.push(token).unwrap();
        }
        let end = self.tokenizer.end_token_ids()[0];
        allowed(&constraint.mask()).contains(&end)
    }
}

fn allowed(mask: &TokenMask) -> Vec<u32> {
    let bit = |id: &u32| mask.words()[*id as usize / 32] >> (id % 32) & 1 == 1;
    (0..VOCAB_SIZE).filter(bit).collect()
}

fn schema(schema: &Value) -> Grammar {
    Grammar::JsonSchema(schema.to_string())
}

#[test]
fn every_walk_that_ends_gives_a_value_of_the_schema() {
    let model = model();
    let grammar = schema(&json!({
        "type": "object",
        "properties": {
            "color": {"enum": ["red", "green"]},
            "sizes": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
            "ok": {"type": "boolean"},
        },
        "required": ["color", "sizes"],
        "additionalProperties": false,
    }));
    let mut num_ended = 0;
    for seed in 0..60 {
        let constraint = model.compile(grammar.clone()).unwrap();
        let (text, ended) = model.walk(constraint, seed, 200);
        if !ended {
            continue;
        }
        num_ended += 1;
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(
            ["red", "green"].contains(&value["color"].as_str().unwrap()),
            "{text}"
        );
        let sizes = value["sizes"].as_array().unwrap();
        assert!(
            (1..=2).contains(&sizes.len()) && sizes.iter().all(Value::is_number),
            "{text}"
        );
        assert!(value.get("ok").is_none_or(Value::is_boolean), "{text}");
    }
    assert!(num_ended > 30, "{num_ended} of 60 walks ended");
}

#[test]
fn properties_come_in_the_order_of_the_schema_with_at_most_one_space_between_tokens() {
    let model = model();
    let grammar = schema(
        &json!({"type": "object", "properties": {"b": {"const": 1}, "a": {"const": 2}}, "required": ["b", "a"]}),
    );
    assert!(model.accepts(grammar.clone(), r#"{"b":1,"a":2}"#));
    assert!(model.accepts(grammar.clone(), r#"{ "b": 1, "a": 2 }"#));
    assert!(!model.accepts(grammar.clone(), r#"{"a":2,"b":1}"#));
    assert!(!model.accepts(grammar.clone(), "{\n\"b\":1,\"a\":2}"));
    assert!(!model.accepts(grammar, r#"{  "b":1,"a":2}"#));
}

#[test]
fn a_regex_matches_the_whole_answer() {
    let model = model();
    let grammar = || Grammar::Regex("[0-9]{2,3}".to_owned());
    assert!(model.accepts(grammar(), "12"));
    assert!(model.accepts(grammar(), "123"));
    assert!(!model.accepts(grammar(), "1"));
    assert!(!model.accepts(grammar(), "1234"));
    assert!(model.accepts(Grammar::Regex("é{2}|漢".to_owned()), "éé"));
}

#[test]
fn a_choice_is_one_of_its_texts_to_the_letter() {
    let model = model();
    let texts = [
        "yes",
        "no way",
        "a \"quoted\" \\ text\nof two lines",
        "é|漢",
    ];
    let choice = || Grammar::Choice(texts.map(str::to_owned).to_vec());
    for text in texts {
        assert!(model.accepts(choice(), text), "{text}");
    }
    assert!(!model.accepts(choice(), "no"));
    assert!(!model.accepts(choice(), "é"));
}

#[test]
fn a_lark_grammar_is_obeyed() {
    let model = model();
    let lark = "start: sum\nsum: NUMBER (\"+\" NUMBER)*\nNUMBER: /[0-9]+/";
    assert!(model.accepts(Grammar::Lark(lark.to_owned()), "1+22+3"));
    assert!(!model.accepts(Grammar::Lark(lark.to_owned()), "1+"));
}

#[test]
fn an_answer_is_kept_from_ending_only_while_the_grammar_can_go_on() {
    let model = model();
    let compiled = |regex: &str| model.compile(Grammar::Regex(regex.to_owned())).unwrap();
    let end = model.tokenizer.end_token_ids()[0];
    let optional = compiled("(ab)?");
    assert!(allowed(&optional.mask()).contains(&end));
    let optional = optional.with_min_new_tokens(5).unwrap();
    assert!(!allowed(&optional.mask()).contains(&end));
    let mut short = compiled("7").with_min_new_tokens(5).unwrap();
    let seven = model.tokenizer.encode("7", false).unwrap()[0];
    short.push(seven).unwrap();
    assert!(allowed(&short.mask()).contains(&end));
}

#[test]
fn sequences_of_one_request_do_not_share_their_progress() {
    let model = model();
    let mut first = model.compile(Grammar::Regex("ab".to_owned())).unwrap();
    let second = first.for_another_sequence();
    let before = allowed(&second.mask());
    first
        .push(model.tokenizer.encode("a", false).unwrap()[0])
        .unwrap();
    assert_ne!(allowed(&first.mask()), before);
    assert_eq!(allowed(&second.mask()), before);
}

#[test]
fn what_is_wrong_with_a_grammar_is_said_in_one_line() {
    let model = model();
    for grammar in [
        Grammar::Regex("(((".to_owned()),
        Grammar::Regex(r"(a)\1".to_owned()),
        Grammar::Regex(String::new()),
        Grammar::Regex("(".repeat(100_000)),
        Grammar::Regex("a".repeat(600_000)),
        Grammar::Lark("start: other".to_owned()),
        Grammar::Lark(format!(
            "start: {}\"a\"{}",
            "(".repeat(5000),
            ")".repeat(5000)
        )),
        Grammar::Choice(Vec::new()),
        Grammar::JsonSchema("{".to_owned()),
        Grammar::JsonSchema("3".to_owned()),
        Grammar::JsonSchema("[".repeat(100_000)),
        schema(&json!({"type": "strnig"})),
        schema(&json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})),
        schema(&json!({"$ref": "#/$defs/none"})),
        schema(&json!({"$ref": "https://example.com/schema.json"})),
        schema(&json!({"type": "integer", "minimum": 5, "maximum": 3})),
    ] {
        let start = format!("{grammar:?}").chars().take(60).collect::<String>();
        let refused = model.compile(grammar).map(|_| ()).unwrap_err().to_string();
        assert!(
            !refused.contains('\n') && refused.len() < 600,
            "{start}: {refused}"
        );
        assert!(
            !refused.contains("coerce")
                && !refused.contains("panic")
                && !refused.contains("llguidance"),
            "{start}: {refused}"
        );
    }
}

#[test]
fn dates_and_times_exist() {
    let model = model();
    let accepts = |format: &str, text: &str| {
        let grammar = schema(&json!({"type": "string", "format": format}));
        model.accepts(grammar, &format!("\"{text}\""))
    };
    for (format, right, wrong) in [
        ("date", "2024-02-29", "2023-02-29"),
        ("date", "2000-02-29", "1900-02-29"),
        ("date", "1999-12-31", "1999-11-31"),
        ("time", "23:59:59Z", "23:59:60Z"),
        ("time", "07:00:00.5+02:00", "24:00:00Z"),
        ("date-time", "2024-02-29T00:00:00Z", "2024-02-30T00:00:00Z"),
        ("date-time", "2024-03-01T00:00:59Z", "2024-03-01T00:00:60Z"),
        ("hostname", "a.example", "-a.example"),
    ] {
        assert!(accepts(format, right), "{format} {right}");
        assert!(!accepts(format, wrong), "{format} {wrong}");
    }
}

#[test]
fn a_schema_cannot_ask_for_leniency() {
    let model = model();
    let lenient =
        json!({"type": "string", "format": "no-such-format", "x-guidance": {"lenient": true}});
    assert!(model.compile(schema(&lenient)).is_err());
}

#[test]
fn the_place_of_a_mistake_in_a_schema_is_named() {
    let model = model();
    let wrong = json!({"type": "object", "properties": {"outer": {"type": "object", "properties": {"inner": {"type": "strnig"}}}}});
    let refused = model
        .compile(schema(&wrong))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("inner") || refused.contains("strnig"),
        "{refused}"
    );
}
