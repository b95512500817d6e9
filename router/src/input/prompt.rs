//! From a prompt to token ids within the limits. Nothing is tokenized before its bytes are known to be few enough.

use std::ops::Range;

use super::ValidationError;
use super::chat_template::ChatTemplates;
use super::parameters::{CheckedParameters, check_token_id};
use super::typed::Quotes;
use crate::tokenizer::{ControlTokens, TokenSpan, Tokenizer, TokenizerError};
use crate::types::message_format::MessageFormat;
use crate::types::{Limits, Prompt};

/// TGI counts at most that many new tokens when it explains that a request is too long, and clients match the text.
const MAX_EXPLAINED_NEW_TOKENS: u64 = 1024;

/// A prompt before its text is tokens.
pub(super) enum Rendered {
    Text(PromptText),
    TokenIds(Vec<u32>),
}

pub(super) struct PromptText {
    pub text: String,
    kind: PromptKind,
    /// How the answer is to be read.
    pub message_format: MessageFormat,
}

enum PromptKind {
    /// What it spells is control, and the tokenizer adds its own special tokens.
    Raw,
    /// The template wrote the beginning of text itself. These parts spell a special token and are none, in order.
    Chat { typed: Vec<Range<usize>> },
}

impl PromptText {
    pub fn spans(&self, tokenizer: &Tokenizer) -> Result<Vec<TokenSpan>, ValidationError> {
        let spans = match &self.kind {
            PromptKind::Raw => tokenizer.encode_spans(&self.text, true),
            PromptKind::Chat { typed } => tokenizer.encode_typed(&self.text, typed),
        };
        spans.map_err(|error| ValidationError::Tokenizer(error.to_string()))
    }

    /// The tokens of the text from `start` on.
    fn ids_from(&self, start: usize, tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
        let text = &self.text[start..];
        let PromptKind::Chat { typed } = &self.kind else {
            return tokenizer.encode(text, true);
        };
        let left = typed.iter().filter(|typed| typed.end > start);
        let moved: Vec<Range<usize>> = left
            .map(|typed| typed.start.saturating_sub(start)..typed.end - start)
            .collect();
        let spans = tokenizer.encode_typed(text, &moved)?;
        Ok(spans.into_iter().map(|span| span.id).collect())
    }
}

/// Writes a chat out with the model's template.
pub(super) fn render(
    prompt: Prompt,
    templates: &ChatTemplates,
    control: &ControlTokens,
) -> Result<Rendered, ValidationError> {
    Ok(match prompt {
        Prompt::TokenIds(ids) => Rendered::TokenIds(ids),
        Prompt::Text(text) => Rendered::Text(PromptText {
            text,
            kind: PromptKind::Raw,
            message_format: MessageFormat::default(),
        }),
        Prompt::Chat(mut chat) => {
            let quotes = Quotes::quote(&mut chat, control);
            let rendered = templates.render(&chat)?;
            let (text, typed) = quotes.restore(rendered.text);
            Rendered::Text(PromptText {
                text,
                kind: PromptKind::Chat { typed },
                message_format: rendered.message_format,
            })
        }
    })
}

/// The tokens of a text, at most `truncate` of them from its end.
pub(super) fn tokenize(
    prompt: &PromptText,
    truncate: Option<usize>,
    tokenizer: &Tokenizer,
    limits: &Limits,
) -> Result<Vec<u32>, ValidationError> {
    if prompt.text.is_empty() {
        return Err(ValidationError::EmptyInput);
    }
    let max = limits.max_input_tokens;
    let max_bytes = max.saturating_mul(tokenizer.max_token_bytes());
    let mut start = 0;
    if prompt.text.len() > max_bytes {
        if truncate.is_none() {
            return Err(ValidationError::InputBytes {
                max,
                at_least: prompt.text.len() / tokenizer.max_token_bytes(),
            });
        }
        // Only the end is kept anyway; the factor leaves room for tokens that the cut changes.
        start = start_of_end(&prompt.text, max_bytes.saturating_mul(2));
    }
    let mut ids = prompt
        .ids_from(start, tokenizer)
        .map_err(|error| ValidationError::Tokenizer(error.to_string()))?;
    if let Some(keep) = truncate {
        ids.drain(..ids.len().saturating_sub(keep));
    }
    Ok(ids)
}

/// Where at most the last `max_bytes` bytes begin, in whole characters.
fn start_of_end(text: &str, max_bytes: usize) -> usize {
    let mut start = text.len().saturating_sub(max_bytes);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    start
}

pub(super) fn check_ids(
    mut ids: Vec<u32>,
    truncate: Option<usize>,
    vocab_size: u32,
) -> Result<Vec<u32>, ValidationError> {
    if ids.is_empty() {
        return Err(ValidationError::EmptyInput);
    }
    for id in &ids {
        check_token_id("prompt", u64::from(*id), vocab_size)?;
    }
    if let Some(keep) = truncate {
        ids.drain(..ids.len().saturating_sub(keep));
    }
    Ok(ids)
}

/// How many tokens may be generated. The sum is checked before the prompt's own limit, as TGI does.
pub(super) fn check_lengths(
    prompt_len: usize,
    parameters: &CheckedParameters,
    limits: &Limits,
) -> Result<u32, ValidationError> {
    let max = limits.max_total_tokens;
    let left = max.saturating_sub(prompt_len) as u64;
    let asked = parameters.max_new_tokens.unwrap_or(left);
    if asked > left || prompt_len > max {
        let explained = asked.min(MAX_EXPLAINED_NEW_TOKENS);
        return Err(ValidationError::TotalLength {
            max,
            prompt_len,
            max_new_tokens: if explained > left { explained } else { asked },
        });
    }
    if prompt_len > limits.max_input_tokens {
        return Err(ValidationError::InputLength {
            max: limits.max_input_tokens,
            given: prompt_len,
        });
    }
    if asked == 0 {
        return Err(ValidationError::TotalLength {
            max,
            prompt_len,
            max_new_tokens: 1,
        });
    }
    let max_new_tokens = u32::try_from(asked).unwrap_or(u32::MAX);
    if parameters.min_new_tokens > u64::from(max_new_tokens) {
        return Err(ValidationError::MinNewTokens {
            max: max_new_tokens,
            given: parameters.min_new_tokens,
        });
    }
    Ok(max_new_tokens)
}
