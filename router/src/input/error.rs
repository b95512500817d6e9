//! What is wrong with a request, in the words that TGI's clients know.

use crate::grammar::GrammarError;

/// Why a request is refused before it costs anything.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ValidationError {
    #[error("`inputs` cannot be empty")]
    EmptyInput,
    #[error("`{0}` must be a finite number")]
    NotFinite(&'static str),
    #[error("`temperature` must be strictly positive")]
    Temperature,
    #[error("`repetition_penalty` must be strictly positive")]
    RepetitionPenalty,
    #[error("`frequency_penalty` must be >= -2.0 and <= 2.0")]
    FrequencyPenalty,
    #[error("`presence_penalty` must be >= -2.0 and <= 2.0")]
    PresencePenalty,
    #[error("`top_p` must be > 0.0 and < 1.0")]
    TopP,
    #[error("`typical_p` must be > 0.0 and < 1.0")]
    TypicalP,
    #[error("`min_p` must be >= 0.0 and <= 1.0")]
    MinP,
    #[error("`top_k` must be strictly positive")]
    TopK,
    #[error("`max_new_tokens` must be strictly positive")]
    MaxNewTokens,
    #[error("`min_tokens` must be <= the number of new tokens, {max}. Given: {given}")]
    MinNewTokens { max: u32, given: u64 },
    #[error("`stop` supports up to {max} stop sequences. Given: {given}")]
    StopCount { max: usize, given: usize },
    #[error("`stop` supports strings of up to {max} bytes. Given: {given}")]
    StopLength { max: usize, given: usize },
    #[error("`{field}` supports up to {max} entries. Given: {given}")]
    TooManyEntries {
        field: &'static str,
        max: usize,
        given: usize,
    },
    #[error("`{field}` names a token outside the vocabulary of {vocab_size}. Given: {given}")]
    TokenId {
        field: &'static str,
        vocab_size: u32,
        given: u64,
    },
    #[error("`logit_bias` must be >= -100.0 and <= 100.0")]
    LogitBias,
    #[error("`best_of` must be > 0 and <= {max}. Given: {given}")]
    BestOf { max: usize, given: u64 },
    #[error("you must use sampling when `best_of` is > 1")]
    BestOfNeedsSampling,
    #[error("`seed` must not be set when `best_of` > 1")]
    BestOfWithSeed,
    #[error("`best_of` != 1 is not supported when streaming tokens")]
    BestOfStreamed,
    #[error("`n` must be > 0 and <= {max}. Given: {given}")]
    N { max: usize, given: u64 },
    #[error("`top_n_tokens` must be >= 0 and <= {max}. Given: {given}")]
    TopNTokens { max: u32, given: u64 },
    #[error("`decoder_input_details` == true is not supported when streaming tokens")]
    PromptLogprobsStreamed,
    #[error("`truncate` must be strictly positive and less than {max}. Given: {given}")]
    Truncate { max: usize, given: u64 },
    /// TGI says "less than", although `max` tokens are accepted; clients match the text.
    #[error("`inputs` must have less than {max} tokens. Given: {given}")]
    InputLength { max: usize, given: usize },
    #[error("`inputs` must have less than {max} tokens. Given: more than {at_least}")]
    InputBytes { max: usize, at_least: usize },
    #[error(
        "`inputs` tokens + `max_new_tokens` must be <= {max}. Given: {prompt_len} `inputs` tokens and {max_new_tokens} `max_new_tokens`"
    )]
    TotalLength {
        max: usize,
        prompt_len: usize,
        max_new_tokens: u64,
    },
    #[error("`{0}` is not supported yet")]
    Unsupported(&'static str),
    #[error("the model has no chat template")]
    NoChatTemplate,
    #[error("chat template: {0}")]
    ChatTemplate(String),
    #[error("grammar is not valid: {0}")]
    Grammar(#[from] GrammarError),
    #[error("grammar is not supported")]
    NoGrammars,
    #[error("tokenizer error {0}")]
    Tokenizer(String),
    #[error("Tool with name {0} not found")]
    ToolNotFound(String),
    #[error("{0}")]
    Invalid(String),
}
