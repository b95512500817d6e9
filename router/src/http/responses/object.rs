//! The response object: what was asked for, how it is going, and what came out.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::super::answer;
use super::super::errors::ApiError;
use super::super::openai;
use super::body::TypedFormat;
use super::items::Item;
use super::tools::{AnyTool, TypedChoice};

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ResponseObject {
    pub id: String,
    #[schema(example = "response")]
    pub object: &'static str,
    pub created_at: u64,
    pub status: Status,
    pub completed_at: Option<u64>,
    pub error: Option<Failure>,
    pub incomplete_details: Option<IncompleteDetails>,
    pub model: String,
    pub output: Vec<Item>,
    pub usage: Option<Usage>,
    #[serde(flatten)]
    #[schema(value_type = Asked)]
    pub asked: Arc<Asked>,
}

/// What the client asked for, with the defaults that apply.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ResponseAsked)]
pub struct Asked {
    pub background: bool,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<u32>,
    pub max_tool_calls: Option<u32>,
    pub metadata: BTreeMap<String, String>,
    pub parallel_tool_calls: bool,
    pub previous_response_id: Option<String>,
    pub prompt_cache_key: Option<String>,
    pub reasoning: Reasoning,
    pub safety_identifier: Option<String>,
    pub service_tier: &'static str,
    pub store: bool,
    pub temperature: f64,
    pub text: TextConfig,
    #[schema(value_type = TypedChoice)]
    pub tool_choice: Value,
    #[schema(value_type = Vec<AnyTool>)]
    pub tools: Vec<Value>,
    pub top_logprobs: u32,
    pub top_p: f64,
    pub truncation: &'static str,
    pub user: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ResponseReasoning)]
pub struct Reasoning {
    pub effort: Option<String>,
    /// Reasoning is answered as it is, and never summarised.
    pub summary: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ResponseText)]
pub struct TextConfig {
    #[schema(value_type = TypedFormat)]
    pub format: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbosity: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResponseStatus)]
pub enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponseFailure)]
pub struct Failure {
    code: &'static str,
    message: String,
}

impl From<&ApiError> for Failure {
    fn from(error: &ApiError) -> Self {
        Self {
            code: "server_error",
            message: error.message.clone(),
        }
    }
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponseIncompleteDetails)]
pub struct IncompleteDetails {
    pub reason: &'static str,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ResponseUsage)]
pub struct Usage {
    input_tokens: usize,
    #[schema(inline)]
    input_tokens_details: InputTokensDetails,
    output_tokens: usize,
    #[schema(inline)]
    output_tokens_details: OutputTokensDetails,
    total_tokens: usize,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct InputTokensDetails {
    cached_tokens: u32,
    cache_write_tokens: u32,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
struct OutputTokensDetails {
    reasoning_tokens: usize,
}

impl Usage {
    pub fn new(usage: &answer::Usage, reasoning_tokens: usize) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.num_cached_tokens,
                cache_write_tokens: 0,
            },
            output_tokens: usage.generated_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens },
            total_tokens: usage.prompt_tokens + usage.generated_tokens,
        }
    }
}

impl ResponseObject {
    /// One that has not begun.
    pub fn new(model: String, asked: Asked) -> Self {
        Self {
            id: openai::underscored_id("resp"),
            object: "response",
            created_at: openai::now(),
            status: if asked.background {
                Status::Queued
            } else {
                Status::InProgress
            },
            completed_at: None,
            error: None,
            incomplete_details: None,
            model,
            output: Vec::new(),
            usage: None,
            asked: Arc::new(asked),
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Queued | Status::InProgress)
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        let asked = &self.asked;
        let tools: usize = asked.tools.iter().map(|tool| tool.to_string().len()).sum();
        let texts = [
            &asked.instructions,
            &asked.user,
            &asked.prompt_cache_key,
            &asked.safety_identifier,
            &asked.previous_response_id,
        ];
        let texts: usize = texts.iter().copied().flatten().map(String::len).sum();
        let metadata: usize = asked
            .metadata
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        let format = asked.text.format.to_string().len() + asked.tool_choice.to_string().len();
        let output: usize = self.output.iter().map(Item::bytes).sum();
        size_of::<Self>() + size_of::<Asked>() + tools + texts + metadata + format + output
    }
}
