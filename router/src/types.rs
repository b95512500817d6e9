//! Plain types that several modules of the router share. No logic, no JSON, no protobuf.

pub mod message_format;

use std::sync::Arc;

/// A key that opens the server, and the name that metrics know its holder by.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub name: String,
    pub key: String,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ApiKey({:?}, ***)", self.name)
    }
}

/// Who asks: the holder of an API key. Where no keys are set, everybody is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenant {
    pub name: Option<Arc<str>>,
    /// Sequences of different salts share no KV blocks.
    pub cache_salt: u64,
}

/// What a client asks for, whatever the route. Nothing is checked yet: numbers are as wide as clients can type them.
#[derive(Debug)]
pub struct Request {
    pub prompt: Prompt,
    /// The answer is streamed. Some parameters are refused then.
    pub streamed: bool,
    /// The text of a stop string that matched stays in the answer.
    pub keep_stop_text: bool,
    pub parameters: Parameters,
    /// What the answer's text must be; `None`: anything.
    pub grammar: Option<Grammar>,
}

/// What a text must be, as the client wrote it. Nothing is checked yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// A JSON value that the schema (JSON text) accepts.
    JsonSchema(String),
    /// Any JSON object.
    JsonObject,
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A grammar in the dialect of Lark that llguidance reads.
    Lark(String),
}

#[derive(Debug)]
pub enum Prompt {
    /// Text as typed; special tokens in it are control, and the tokenizer adds its own (beginning of text).
    Text(String),
    TokenIds(Vec<u32>),
    Chat(Chat),
}

impl Prompt {
    /// Most tokens of reasoning before the answer.
    pub fn reasoning_budget(&self) -> Option<u64> {
        match self {
            Self::Chat(chat) => chat.reasoning_budget,
            Self::Text(_) | Self::TokenIds(_) => None,
        }
    }

    /// What the model may call.
    pub fn tools(&self) -> Option<&ToolUse> {
        match self {
            Self::Chat(chat) => chat.tools.as_ref(),
            Self::Text(_) | Self::TokenIds(_) => None,
        }
    }
}

/// A conversation for the model's chat template.
#[derive(Debug)]
pub struct Chat {
    /// A list of objects with at least `role` and `content`.
    pub messages: minijinja::Value,
    /// The text of the final assistant message, which the answer continues.
    pub continue_final: Option<String>,
    /// Further variables of the template, by name.
    pub variables: Vec<(String, minijinja::Value)>,
    /// What the model may call; `None`: nothing.
    pub tools: Option<ToolUse>,
    /// Most tokens of reasoning before the answer, for models that mark it; `None`: no limit.
    pub reasoning_budget: Option<u64>,
}

/// The tools of a conversation, and whether they may or must be called.
#[derive(Clone, Debug)]
pub struct ToolUse {
    pub tools: Vec<Tool>,
    pub choice: ToolChoice,
    /// More than one call in an answer.
    pub parallel: bool,
    /// What the model is told about calling, in place of our words.
    pub prompt: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Tool {
    pub name: String,
    /// JSON text of the schema that the arguments must fit.
    pub parameters: String,
    /// The tool as the client sent it, for the template.
    pub definition: minijinja::Value,
}

/// Without a choice of "none", which is no `ToolUse` at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    Auto,
    Required,
    Named(String),
}

/// Whether tokens are drawn or the most likely one is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SamplingMode {
    /// Draw if a temperature or a filter is given, else take the most likely token.
    #[default]
    IfFiltered,
    Sample,
    Greedy,
}

/// As typed by the client; `None` where nothing was given.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    pub mode: SamplingMode,
    pub temperature: Option<f64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub typical_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub logit_bias: Vec<(u64, f64)>,
    pub seed: Option<u64>,
    /// Sequences of which the best is answered. TGI's rules apply: it must sample, and without a seed.
    pub best_of: Option<u64>,
    /// Sequences that are all answered.
    pub n: Option<u64>,
    pub max_new_tokens: Option<u64>,
    pub min_new_tokens: Option<u64>,
    pub ignore_eos: bool,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u64>,
    /// Keep only that many tokens at the end of the prompt.
    pub truncate: Option<u64>,
    pub top_n_tokens: Option<u64>,
    /// Log-probabilities of the prompt are wanted, if the server gives them.
    pub prompt_logprobs: bool,
    /// The text is to carry the server's watermark.
    pub watermark: bool,
}

/// Which tokens may come next: one bit for each token id, lowest bit first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask(Arc<[u32]>);

impl TokenMask {
    /// Every token.
    pub fn any() -> Self {
        Self(Arc::default())
    }

    /// `words` cover the vocabulary.
    pub fn new(words: &[u32]) -> Self {
        Self(words.into())
    }

    /// One token of so many.
    pub fn only(token_id: u32, vocab_size: u32) -> Self {
        let mut words = vec![0; vocab_size.div_ceil(u32::BITS) as usize];
        if let Some(word) = words.get_mut((token_id / u32::BITS) as usize) {
            *word = 1 << (token_id % u32::BITS);
        }
        Self::new(&words)
    }

    /// The words; none where every token is allowed.
    pub fn words(&self) -> &[u32] {
        &self.0
    }
}

/// The loaded model, as the shards and the model folder describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// The name clients use: what was given as `--model-id`.
    pub model_id: String,
    /// Commit of the hub snapshot, where the model came from the hub.
    pub revision: Option<String>,
    /// It is the one that comes with the program, for who wants to try the server.
    pub is_demo: bool,
    /// "float32", "bfloat16", "float16".
    pub dtype: String,
    /// "cpu", "cuda".
    pub device: String,
    /// Rows of the logits; every token id is below it.
    pub vocab_size: u32,
    /// Longest sequence the positions allow, in tokens.
    pub max_model_len: u32,
    pub num_shards: usize,
}

/// How text is marked where a request asks for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watermark {
    /// Share of the vocabulary that is green, in (0, 1).
    pub gamma: f32,
    /// Added to the logits of green tokens, above 0.
    pub delta: f32,
}

/// What a request may ask for. Every number is final: defaults and memory limits are already applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    pub max_concurrent_requests: usize,
    /// Most sequences of one request (`best_of`, `n`).
    pub max_best_of: usize,
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    /// Longest prompt, in tokens.
    pub max_input_tokens: usize,
    /// Longest prompt plus generated tokens, in tokens.
    pub max_total_tokens: usize,
    pub max_client_batch_size: usize,
    pub payload_limit_bytes: usize,
    pub max_batch_prefill_tokens: u32,
    pub max_batch_total_tokens: u32,
    pub max_batch_size: u32,
    pub enable_prefill_logprobs: bool,
    /// Requests may have a grammar.
    pub grammar_support: bool,
    pub validation_workers: usize,
    pub watermark: Watermark,
}

#[cfg(test)]
pub(crate) mod mutation;
#[cfg(test)]
pub(crate) mod random;

#[cfg(test)]
pub(crate) mod tests {
    use super::{Limits, Watermark};

    /// Small ones, as the recorded server had them.
    pub(crate) fn limits() -> Limits {
        Limits {
            max_concurrent_requests: 4,
            max_best_of: 2,
            max_stop_sequences: 4,
            max_top_n_tokens: 5,
            max_input_tokens: 512,
            max_total_tokens: 768,
            max_client_batch_size: 4,
            payload_limit_bytes: 2_000_000,
            max_batch_prefill_tokens: 1024,
            max_batch_total_tokens: 4096,
            max_batch_size: 16,
            enable_prefill_logprobs: false,
            grammar_support: true,
            validation_workers: 2,
            watermark: Watermark {
                gamma: 0.5,
                delta: 2.0,
            },
        }
    }
}
