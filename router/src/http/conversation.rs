//! A conversation in the shape that chat templates read, for the routes whose own shape is another: system text first, one message for
//! each turn, calls of tools inside the assistant's message, results of tools as messages of the role `tool`.

use minijinja::Value;
use minijinja::value::Serde;
use serde::Serialize;

use crate::input::ValidationError;
use crate::types::{Chat, Tool};

/// The messages so far.
#[derive(Default)]
pub struct Conversation(Vec<Turn>);

enum Turn {
    System(String),
    User(String),
    Assistant(AssistantTurn),
    Tool { call_id: String, content: String },
}

#[derive(Default)]
struct AssistantTurn {
    content: String,
    reasoning: String,
    calls: Vec<CallOfTurn>,
}

#[derive(Serialize)]
struct CallOfTurn {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

#[derive(Serialize)]
struct CalledFunction {
    name: String,
    /// An object, because templates print it as JSON.
    arguments: serde_json::Value,
}

impl Conversation {
    /// Several system texts at the beginning become one, because many templates know one only.
    pub fn system(&mut self, text: String) {
        match &mut self.0[..] {
            [Turn::System(first)] => join(first, &text, "\n\n"),
            _ => self.0.push(Turn::System(text)),
        }
    }

    pub fn user(&mut self, text: String) {
        self.0.push(Turn::User(text));
    }

    /// Goes on with the user's message, if that is the last.
    pub fn more_user(&mut self, text: String) {
        match self.0.last_mut() {
            Some(Turn::User(last)) => join(last, &text, "\n"),
            _ => self.user(text),
        }
    }

    pub fn assistant(&mut self, text: &str) {
        join(&mut self.assistant_turn().content, text, "\n");
    }

    pub fn reasoning(&mut self, text: &str) {
        join(&mut self.assistant_turn().reasoning, text, "\n");
    }

    pub fn call(&mut self, id: String, name: String, arguments: serde_json::Value) {
        self.assistant_turn().calls.push(CallOfTurn {
            id,
            kind: "function",
            function: CalledFunction { name, arguments },
        });
    }

    pub fn tool_result(&mut self, call_id: String, content: String) {
        self.0.push(Turn::Tool { call_id, content });
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text of a final message of the assistant, which the answer continues. An empty one is left out.
    pub fn continue_final(&mut self) -> Result<Option<String>, ValidationError> {
        let Some(Turn::Assistant(last)) = self.0.last() else {
            return Ok(None);
        };
        if !last.calls.is_empty() {
            let reason = "`messages` must not end with a call of a tool";
            return Err(ValidationError::Invalid(reason.to_owned()));
        }
        if last.content.is_empty() {
            self.0.pop();
            return Ok(None);
        }
        Ok(Some(last.content.clone()))
    }

    pub fn into_chat(self) -> Chat {
        let names: Vec<(String, String)> = self.0.iter().flat_map(called).collect();
        Chat {
            messages: self.0.into_iter().map(|turn| value(turn, &names)).collect(),
            continue_final: None,
            variables: Vec::new(),
            tools: None,
            reasoning_budget: None,
        }
    }

    /// The pieces of one answer are one message.
    fn assistant_turn(&mut self) -> &mut AssistantTurn {
        if !matches!(self.0.last(), Some(Turn::Assistant(_))) {
            self.0.push(Turn::Assistant(AssistantTurn::default()));
        }
        match self.0.last_mut() {
            Some(Turn::Assistant(turn)) => turn,
            _ => unreachable!("it was just put there"),
        }
    }
}

/// Ids and names of what a turn calls.
fn called(turn: &Turn) -> Vec<(String, String)> {
    let Turn::Assistant(turn) = turn else {
        return Vec::new();
    };
    let pair = |call: &CallOfTurn| (call.id.clone(), call.function.name.clone());
    turn.calls.iter().map(pair).collect()
}

fn value(turn: Turn, names: &[(String, String)]) -> Value {
    let message = |role: &str, content: String| {
        vec![
            ("role", Value::from(role)),
            ("content", Value::from(content)),
        ]
    };
    let fields = match turn {
        Turn::System(text) => message("system", text),
        Turn::User(text) => message("user", text),
        Turn::Assistant(turn) => {
            let mut fields = message("assistant", turn.content);
            if !turn.reasoning.is_empty() {
                fields.push(("reasoning_content", Value::from(turn.reasoning)));
            }
            if !turn.calls.is_empty() {
                if fields[1].1.as_str() == Some("") {
                    fields[1].1 = Value::from(());
                }
                fields.push(("tool_calls", Value::from(Serde(turn.calls))));
            }
            fields
        }
        Turn::Tool { call_id, content } => {
            let mut fields = message("tool", content);
            if let Some((_, name)) = names.iter().rev().find(|(id, _)| *id == call_id) {
                fields.push(("name", Value::from(name.as_str())));
            }
            fields.push(("tool_call_id", Value::from(call_id)));
            fields
        }
    };
    Value::from_pairs(fields)
}

fn join(text: &mut String, more: &str, between: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str(between);
    }
    text.push_str(more);
}

/// A tool as the engine and as templates know it. Without `parameters` its arguments are any object.
pub fn tool(
    name: String,
    description: Option<String>,
    parameters: Option<serde_json::Value>,
) -> Tool {
    let parameters = parameters.unwrap_or_else(|| serde_json::json!({"type": "object"}));
    let mut function = serde_json::Map::new();
    function.insert("name".to_owned(), name.as_str().into());
    if let Some(description) = description {
        function.insert("description".to_owned(), description.into());
    }
    function.insert("parameters".to_owned(), parameters.clone());
    Tool {
        name,
        parameters: parameters.to_string(),
        definition: Value::from(Serde(serde_json::json!({
            "type": "function", "function": function,
        }))),
    }
}
