//! The messages of `/v1/messages` and their blocks, and the conversation that they are. Consecutive messages of one role are one turn;
//! what a tool gave back comes inside a user's message here, and is a message of its own for the template.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::super::body::{Object, TextOr};
use super::super::conversation::Conversation;
use super::super::openapi::described::{AnthropicBlocks, AnthropicText};

#[derive(Deserialize, ToSchema)]
#[schema(as = AnthropicMessageParam)]
pub struct TypedMessage {
    #[schema(inline)]
    role: Role,
    #[schema(value_type = AnthropicBlocks)]
    content: TextOr<Block>,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Role {
    User,
    Assistant,
    System,
}

#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicBlock)]
pub enum Block {
    Text {
        text: String,
    },
    Thinking {
        thinking: String,
    },
    /// Nobody can read it, so the model is not shown it.
    RedactedThinking {},
    ToolUse {
        id: String,
        name: String,
        #[schema(value_type = Object)]
        input: Value,
    },
    ToolResult {
        tool_use_id: String,
        #[schema(value_type = Option<AnthropicText>)]
        content: Option<TextOr<TextBlock>>,
        is_error: Option<bool>,
    },
}

/// A block where only text is possible.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = AnthropicTextBlock)]
pub enum TextBlock {
    Text { text: String },
}

/// The conversation so far, or what is wrong with it.
pub fn conversation(
    system: Option<TextOr<TextBlock>>,
    messages: Vec<Object<TypedMessage>>,
) -> Result<Conversation, String> {
    let mut conversation = Conversation::default();
    if let Some(system) = system {
        conversation.system(joined(system));
    }
    for (idx, Object(message)) in messages.into_iter().enumerate() {
        let blocks = match message.content {
            TextOr::Text(text) => vec![Block::Text { text }],
            TextOr::List(blocks) => blocks,
        };
        for block in blocks {
            say(&mut conversation, &message.role, block)
                .map_err(|reason| format!("`messages[{idx}]`: {reason}"))?;
        }
    }
    Ok(conversation)
}

fn say(conversation: &mut Conversation, role: &Role, block: Block) -> Result<(), &'static str> {
    match (role, block) {
        (Role::User, Block::Text { text }) => conversation.more_user(text),
        (Role::System, Block::Text { text }) => conversation.system(text),
        (Role::Assistant, Block::Text { text }) => conversation.assistant(&text),
        (Role::Assistant, Block::Thinking { thinking }) => conversation.reasoning(&thinking),
        (Role::Assistant, Block::RedactedThinking {}) => {}
        (Role::Assistant, Block::ToolUse { id, name, input }) => {
            if !input.is_object() {
                return Err("`input` of a `tool_use` block must be an object");
            }
            conversation.call(id, name, input);
        }
        (
            Role::User,
            Block::ToolResult {
                tool_use_id,
                content,
                is_error,
            },
        ) => {
            let mut text = content.map_or_else(String::new, joined);
            if text.is_empty() && is_error == Some(true) {
                text.push_str("error");
            }
            conversation.tool_result(tool_use_id, text);
        }
        (_, Block::ToolResult { .. }) => return Err("only a user's message has `tool_result`"),
        (_, _) => return Err("only the assistant's messages have `thinking` and `tool_use`"),
    }
    Ok(())
}

fn joined(text: TextOr<TextBlock>) -> String {
    match text {
        TextOr::Text(text) => text,
        TextOr::List(blocks) => {
            let texts: Vec<String> = blocks
                .into_iter()
                .map(|TextBlock::Text { text }| text)
                .collect();
            texts.join("\n")
        }
    }
}
