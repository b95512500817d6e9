//! Every template, conversation and expression of `tests/data/chat_templates` against what transformers renders
//! (`tools/chat_template_cases.py`). Where transformers refuses, so must we, whatever the words.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;

/// 2026-02-03 14:05:06, as in the script.
const NOW: Duration = Duration::from_secs(1_770_127_506);

#[derive(serde::Deserialize)]
struct Rendered {
    templates: BTreeMap<String, BTreeMap<String, Expected>>,
    expressions: BTreeMap<String, Expected>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Text(String),
    Error(String),
}

#[derive(Clone, serde::Deserialize)]
pub(super) struct Conversation {
    name: String,
    messages: Value,
    tools: Option<Value>,
    documents: Option<Value>,
    #[serde(default)]
    variables: BTreeMap<String, Value>,
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    continue_final: bool,
}

pub(super) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat_templates")
}

pub(super) fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn load<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&read(name)).unwrap()
}

pub(super) fn conversations() -> Vec<Conversation> {
    load("conversations.json")
}

/// The text of the final message, or of its last part.
fn final_text(messages: &Value) -> String {
    let last = messages.try_iter().unwrap().last().unwrap();
    let content = last.get_attr("content").unwrap();
    if let Some(text) = content.as_str() {
        return text.to_owned();
    }
    let part = content.try_iter().unwrap().last().unwrap();
    part.get_attr("text").unwrap().as_str().unwrap().to_owned()
}

pub(super) fn chat(conversation: Conversation) -> Chat {
    let continue_final = conversation
        .continue_final
        .then(|| final_text(&conversation.messages));
    let mut variables: Vec<_> = conversation.variables.into_iter().collect();
    let given = [
        ("tools", conversation.tools),
        ("documents", conversation.documents),
        (
            "add_generation_prompt",
            conversation.add_generation_prompt.map(Value::from),
        ),
    ];
    for (name, value) in given {
        variables.extend(value.map(|value| (name.to_owned(), value)));
    }
    Chat {
        messages: conversation.messages,
        continue_final,
        variables,
        tools: None,
        reasoning_budget: None,
    }
}

fn render(source: &str, chat: &Chat) -> Result<String, ValidationError> {
    let template = NamedTemplate {
        name: "default".into(),
        source: source.into(),
    };
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")]
        .map(|(name, text)| (name.to_owned(), text.to_owned()));
    let clock = || SystemTime::UNIX_EPOCH + NOW;
    ChatTemplates::with_clock(&[template], &special, clock).render(chat)
}

/// `None` where both agree.
fn difference(source: &str, chat: &Chat, expected: &Expected) -> Option<String> {
    match (render(source, chat), expected) {
        (Ok(got), Expected::Text(expected)) if got == *expected => None,
        (Err(_), Expected::Error(_)) => None,
        (Ok(got), Expected::Text(expected)) => {
            Some(format!("expected {expected:?}\n     got {got:?}"))
        }
        (Err(got), Expected::Text(expected)) => {
            Some(format!("expected {expected:?}\n  failed {got}"))
        }
        (Ok(got), Expected::Error(error)) => {
            Some(format!("expected the error {error}\n     got {got:?}"))
        }
    }
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let rendered: Rendered = load("rendered.json");
    let conversations = conversations();
    let mut differences = Vec::new();
    let mut count = 0;
    for (name, cases) in rendered.templates {
        let source = read(&format!("{name}.jinja"));
        for conversation in &conversations {
            let expected = &cases[&conversation.name];
            count += 1;
            if let Some(difference) = difference(&source, &chat(conversation.clone()), expected) {
                differences.push(format!("{name} / {}: {difference}", conversation.name));
            }
        }
    }
    assert!(count > 1500, "{count}");
    assert!(
        differences.is_empty(),
        "{} differ\n{}",
        differences.len(),
        differences.join("\n")
    );
}

/// Expressions that are known to differ.
fn known_differences() -> Vec<String> {
    let text = read("differences.txt");
    let lines = text.lines();
    let expressions = lines.filter(|line| !line.is_empty() && !line.starts_with("# "));
    expressions.map(str::to_owned).collect()
}

#[test]
fn expressions_have_the_value_that_jinja2_gives_them() {
    let rendered: Rendered = load("rendered.json");
    let known = known_differences();
    let chat = chat(Conversation {
        name: String::new(),
        messages: serde_json::from_str(r#"[{"role": "user", "content": "Hi"}]"#).unwrap(),
        tools: None,
        documents: None,
        variables: BTreeMap::from([("data".to_owned(), load("data.json"))]),
        add_generation_prompt: None,
        continue_final: false,
    });
    assert!(rendered.expressions.len() > 250);
    for source in &known {
        assert!(rendered.expressions.contains_key(source), "{source}");
    }
    let mut problems = Vec::new();
    for (source, expected) in &rendered.expressions {
        let is_known = known.contains(source);
        match difference(source, &chat, expected) {
            Some(difference) if !is_known => problems.push(format!("{source}\n{difference}")),
            None if is_known => problems.push(format!("{source}\ndiffers no longer")),
            _ => {}
        }
    }
    assert!(
        problems.is_empty(),
        "{} problems\n{}",
        problems.len(),
        problems.join("\n")
    );
}
