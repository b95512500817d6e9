//! Shapes that the document names and that no type of their own reads or writes: alternatives, texts with fixed values, and what is
//! taken as any JSON first. Only described, never made; the tests hold recorded bodies and answers to them.

// Every type is read by the derive alone.
#![allow(dead_code)]

use serde::Serialize;
use serde_json::Value;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::http::chat::{Chunk as ChatCompletionChunk, Completion as ChatCompletion};
use crate::http::chat_body::{ChatBody, Part};
use crate::http::completion_stream::Chunk;
use crate::http::completions::{Completion as CompletionFinal, CompletionBody};
use crate::http::generate::{GenerateBody, GenerateResponse};
use crate::http::generate_stream::StreamResponse;
use crate::http::messages::content::{Block, TextBlock};
use crate::http::responses::items::{Part as ResponsePart, TypedItem};
use crate::http::tokenize::SimpleToken;

// Native routes.

/// A body of `/generate`.
pub struct CompatGenerateRequest;

impl PartialSchema for CompatGenerateRequest {
    fn schema() -> RefOr<Schema> {
        GenerateBody::schema()
    }
}

impl ToSchema for CompatGenerateRequest {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        GenerateBody::schemas(schemas);
    }
}

/// Why a text ended: the limit, the model's end of text or a stop token, or a stop string.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    Length,
    EosToken,
    StopSequence,
}

/// What an answer must be.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", content = "value", rename_all = "snake_case")]
pub enum GrammarType {
    /// A JSON value that this JSON schema accepts; an object, or the same as a string.
    Json(Value),
    /// The same as `json`.
    JsonObject(Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar in Lark's language, as llguidance reads it.
    Lark(String),
    /// A JSON value that the schema accepts.
    JsonSchema(JsonSchemaConfig),
}

#[derive(Serialize, ToSchema)]
pub struct JsonSchemaConfig {
    name: Option<String>,
    /// A JSON schema.
    schema: Value,
}

#[derive(Serialize, ToSchema)]
pub struct TokenizeResponse(Vec<SimpleToken>);

// Routes of OpenAI.

/// Why a text ended: the limit, its natural end or a stop, or calls of tools.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    Length,
    Stop,
    ToolCalls,
}

/// One or several prompts.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum Prompt {
    #[schema(examples("import os"))]
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

/// A whole completion, or a piece of a streamed one.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum Completion {
    Chunk(Chunk<'static>),
    Final(CompletionFinal),
}

/// A message of a conversation: it has content, or calls of tools.
#[derive(Serialize, ToSchema)]
pub struct Message {
    #[serde(flatten)]
    body: MessageBody,
    #[schema(example = "user")]
    role: String,
    name: Option<String>,
    /// In the answer of a tool, the call that it answers.
    tool_call_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum MessageBody {
    Content {
        #[schema(value_type = Content)]
        content: Value,
    },
    Calls {
        tool_calls: Vec<PastToolCall>,
    },
}

/// A call of a tool that an earlier answer made.
#[derive(Serialize, ToSchema)]
pub struct PastToolCall {
    id: Option<String>,
    #[schema(example = "function")]
    r#type: Option<String>,
    function: PastFunction,
}

#[derive(Serialize, ToSchema)]
pub struct PastFunction {
    name: String,
    /// An object, or its JSON text.
    arguments: Value,
}

/// A format of TGI, with `value`, or of OpenAI.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum AnyFormat {
    Grammar(GrammarType),
    Format(ResponseFormat),
}

/// What the content of an answer must be, as OpenAI says it.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Anything.
    Text {},
    /// Any JSON object.
    JsonObject {},
    /// A JSON value that the schema accepts.
    JsonSchema { json_schema: NamedSchema },
}

#[derive(Serialize, ToSchema)]
pub struct NamedSchema {
    name: Option<String>,
    description: Option<String>,
    /// A JSON schema. Without one, any JSON object.
    schema: Option<Value>,
    /// Makes no difference: the schema always holds.
    strict: Option<bool>,
}

/// What the model may call.
#[derive(Serialize, ToSchema)]
pub struct Tool {
    #[schema(example = "function")]
    r#type: String,
    function: FunctionDefinition,
}

#[derive(Serialize, ToSchema)]
pub struct FunctionDefinition {
    name: String,
    description: Option<String>,
    /// A JSON schema of the arguments. Without one, any JSON object.
    parameters: Option<Value>,
    /// Another name for `parameters`.
    arguments: Option<Value>,
}

/// `auto`: the model may call, and is the default. `none`: it must not. `required`: it must. A name, or an object with a name: it must
/// call that tool.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    Named(String),
    Function {
        #[schema(example = "function")]
        r#type: Option<String>,
        function: FunctionName,
    },
}

#[derive(Serialize, ToSchema)]
pub struct FunctionName {
    name: String,
}

/// What the model said, or what it calls.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum OutputMessage {
    Text(TextMessage),
    Calls(ToolCallMessage),
}

/// A message, or a piece of one.
#[derive(Serialize, ToSchema)]
pub struct TextMessage {
    #[schema(example = "assistant")]
    role: String,
    content: Option<String>,
    /// What the model thought before it answered, for models that mark it.
    reasoning_content: Option<String>,
    /// Never in an answer.
    tool_call_id: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct ToolCallMessage {
    #[schema(example = "assistant")]
    role: String,
    /// What the model said besides.
    content: Option<String>,
    /// What the model thought before it called, for models that mark it.
    reasoning_content: Option<String>,
    tool_calls: Vec<ToolCall>,
}

#[derive(Serialize, ToSchema)]
pub struct ToolCall {
    id: String,
    #[schema(example = "function")]
    r#type: String,
    function: Function,
}

#[derive(Serialize, ToSchema)]
pub struct Function {
    /// In a stream only in a call's first piece.
    name: Option<String>,
    /// JSON text of an object, unless the answer was cut off; in a stream a piece of it.
    arguments: String,
}

/// What a chunk adds to a message.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ChatCompletionDelta {
    Text(TextMessage),
    Calls(ToolCallDelta),
}

#[derive(Serialize, ToSchema)]
pub struct ToolCallDelta {
    role: Option<String>,
    content: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Vec<DeltaToolCall>,
}

/// A piece of a call.
#[derive(Serialize, ToSchema)]
pub struct DeltaToolCall {
    /// Counts the calls of a message, from 0.
    index: usize,
    /// Only in a call's first piece, as its type.
    id: Option<String>,
    r#type: Option<String>,
    function: Function,
}

// Routes of clouds.

/// A body of `/`, of `/v1/chat/completions` or of `/v1/completions`.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum SagemakerRequest {
    Generate(GenerateBody),
    Chat(ChatBody),
    Completion(CompletionBody),
}

#[derive(ToSchema)]
#[serde(untagged)]
pub enum SagemakerResponse {
    Generate(Vec<GenerateResponse>),
    Chat(ChatCompletion),
    Completion(CompletionFinal),
}

#[derive(ToSchema)]
#[serde(untagged)]
pub enum SagemakerStreamResponse {
    Generate(StreamResponse),
    Chat(ChatCompletionChunk<'static>),
    Completion(Chunk<'static>),
}

/// A body of `/generate` or of `/v1/chat/completions`.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum VertexInstance {
    Generate(GenerateBody),
    Chat(ChatBody),
}

/// The content of a message: a text or parts.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(as = MessageContent)]
pub enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// What a response answers: a text, or items.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum ResponseInput {
    Text(String),
    Items(Vec<TypedItem>),
}

/// A text, or parts of one.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum ResponseContent {
    Text(String),
    Parts(Vec<ResponsePart>),
}

// Routes of Anthropic.

/// A text, or blocks of text.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum AnthropicText {
    Text(String),
    Blocks(Vec<TextBlock>),
}

/// A text, or blocks.
#[derive(ToSchema)]
#[serde(untagged)]
pub enum AnthropicBlocks {
    Text(String),
    Blocks(Vec<Block>),
}

/// Why a message ended: its natural end, the limit, a stop sequence, or calls of tools.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnthropicStopReason {
    EndTurn,
    MaxTokens,
    StopSequence,
    ToolUse,
}
