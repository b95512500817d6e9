//! Keeps control tokens apart from text that only spells them. A second tokenizer is made of the model's own, in which each special
//! token is known by an alias that nobody can type and its own spelling is ordinary text. What is control is written with aliases
//! and everything is tokenized in one go, so that ordinary texts get exactly the tokens that they always had.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::Value;

use super::TokenSpan;

pub struct ControlTokens {
    texts: Vec<String>,
    finder: Option<AhoCorasick>,
    /// There are other spellings than `texts`, which the normalizer makes the same.
    has_variants: bool,
    /// Made when it is first needed, which in most servers is never.
    aliased: OnceLock<Result<Aliased, String>>,
}

struct Aliased {
    tokenizer: tokenizers::Tokenizer,
    /// By index in `texts`.
    aliases: Vec<String>,
}

impl ControlTokens {
    /// `is_control` says which added tokens are special.
    pub(super) fn new(
        tokenizer: &tokenizers::Tokenizer,
        is_control: impl Fn(u32, &tokenizers::AddedToken) -> bool,
    ) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let mut texts: Vec<String> = added
            .iter()
            // One that is only found as a word of its own depends on what is around it.
            .filter(|(id, token)| is_control(**id, token) && !token.single_word)
            .map(|(_, token)| token.content.clone())
            .filter(|text| !text.is_empty())
            .collect();
        texts.sort();
        texts.dedup();
        let is_normalized = |(id, token): (&u32, &tokenizers::AddedToken)| {
            is_control(*id, token) && token.normalized
        };
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&texts);
        Self {
            texts,
            has_variants: tokenizer.get_normalizer().is_some() && added.iter().any(is_normalized),
            finder: finder.ok(),
            aliased: OnceLock::new(),
        }
    }

    /// Spelling of a control token.
    pub fn text(&self, idx: usize) -> Option<&str> {
        self.texts.get(idx).map(String::as_str)
    }

    /// Where control tokens are spelled, and which, in order.
    pub fn find<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, usize)> + 'a {
        let found = self
            .finder
            .iter()
            .flat_map(move |finder| finder.find_iter(text));
        found.map(|found| (found.range(), found.pattern().as_usize()))
    }

    /// Whether a text without `typed` parts has the same control tokens as it spells.
    pub(super) fn is_plain(&self, typed: &[Range<usize>]) -> bool {
        typed.is_empty() && !self.has_variants
    }

    /// The tokens of a text in which the ranges `typed`, in order, are ordinary whatever they spell.
    pub(super) fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        typed: &[Range<usize>],
    ) -> Result<Vec<TokenSpan>, String> {
        let aliased = self.aliased.get_or_init(|| self.alias(tokenizer));
        let aliased = aliased.as_ref().map_err(Clone::clone)?;
        let written = self.write(&aliased.aliases, text, typed);
        let encoding = aliased.tokenizer.encode(written.text.as_str(), false);
        let encoding = encoding.map_err(|error| error.to_string())?;
        let spans = encoding.get_ids().iter().zip(encoding.get_offsets());
        let span = |(&id, &(start, stop)): (&u32, &(usize, usize))| TokenSpan {
            id,
            start: written.original(start),
            stop: written.original(stop),
        };
        Ok(spans.map(span).collect())
    }

    /// The text with aliases for the control tokens outside of `typed`.
    fn write(&self, aliases: &[String], text: &str, typed: &[Range<usize>]) -> Written {
        let mut written = Written::default();
        let mut done = 0;
        let end = text.len();
        for range in typed.iter().cloned().chain(std::iter::once(end..end)) {
            let gap = &text[done..range.start];
            let mut copied = 0;
            for (found, idx) in self.find(gap) {
                written.text.push_str(&gap[copied..found.start]);
                let start = written.text.len();
                written.text.push_str(&aliases[idx]);
                written.aliases.push(Replaced {
                    written: start..written.text.len(),
                    original: done + found.start..done + found.end,
                });
                copied = found.end;
            }
            written.text.push_str(&gap[copied..]);
            written.text.push_str(&text[range.clone()]);
            done = range.end;
        }
        written
    }

    fn alias(&self, tokenizer: &tokenizers::Tokenizer) -> Result<Aliased, String> {
        let random = || RandomState::new().build_hasher().finish();
        // Letters and digits pass through every normalizer.
        let prefix = format!("c{:016x}{:016x}n", random(), random());
        let aliases: Vec<String> = (0..self.texts.len())
            .map(|idx| format!("{prefix}{idx:06}"))
            .collect();
        let json = tokenizer.to_string(false).map_err(|e| e.to_string())?;
        let mut definition: Value = serde_json::from_str(&json).map_err(|e| e.to_string())?;
        self.rename(&mut definition, &aliases);
        let tokenizer = tokenizers::Tokenizer::from_bytes(definition.to_string());
        let tokenizer = tokenizer.map_err(|error| error.to_string())?;
        for (text, alias) in self.texts.iter().zip(&aliases) {
            if tokenizer.token_to_id(alias).is_none() || tokenizer.token_to_id(text).is_some() {
                return Err(format!(
                    "the tokenizer cannot do without its token {text:?}"
                ));
            }
        }
        Ok(Aliased { tokenizer, aliases })
    }

    /// In the list of added tokens, and in the vocabulary of every kind of model.
    fn rename(&self, definition: &mut Value, aliases: &[String]) {
        let alias_of = |text: &str| {
            let idx = self
                .texts
                .binary_search_by(|known| known.as_str().cmp(text));
            idx.ok().map(|idx| aliases[idx].clone())
        };
        let replace = |value: &mut Value| {
            if let Some(alias) = value.as_str().and_then(alias_of) {
                *value = Value::from(alias);
            }
        };
        if let Some(tokens) = definition["added_tokens"].as_array_mut() {
            for token in tokens {
                replace(&mut token["content"]);
            }
        }
        let model = &mut definition["model"];
        match model.get_mut("vocab") {
            Some(Value::Object(vocab)) => {
                *vocab = std::mem::take(vocab)
                    .into_iter()
                    .map(|(text, id)| (alias_of(&text).unwrap_or(text), id))
                    .collect();
            }
            Some(Value::Array(pieces)) => {
                pieces.iter_mut().for_each(|piece| replace(&mut piece[0]))
            }
            _ => {}
        }
        if let Some(unknown) = model.get_mut("unk_token") {
            replace(unknown);
        }
        if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
            merges.retain(|merge| !merge_names(merge, |text| alias_of(text).is_some()));
        }
    }
}

/// Whether a pair, or what it becomes, is such a token.
fn merge_names(merge: &Value, is_named: impl Fn(&str) -> bool) -> bool {
    let pair = match merge {
        Value::String(pair) => pair.split_once(' '),
        pair => pair[0].as_str().zip(pair[1].as_str()),
    };
    pair.is_some_and(|(left, right)| {
        is_named(left) || is_named(right) || is_named(&format!("{left}{right}"))
    })
}

/// A text with aliases, and the way back to the text without.
#[derive(Default)]
struct Written {
    text: String,
    aliases: Vec<Replaced>,
}

struct Replaced {
    written: Range<usize>,
    original: Range<usize>,
}

impl Written {
    fn original(&self, at: usize) -> usize {
        let before = self
            .aliases
            .partition_point(|alias| alias.written.start < at);
        match before.checked_sub(1).map(|idx| &self.aliases[idx]) {
            None => at,
            Some(last) => last.original.end + at.saturating_sub(last.written.end),
        }
    }
}

#[cfg(test)]
mod tests;
