//! Special tokens that a client types into a chat are text, not control: a user who writes the end of a turn does not end it. Before
//! a chat is written out with its template, everything in it that spells a special token is replaced by a number that nobody can
//! guess; afterwards the spelling is put back, and where it stands is remembered for the tokenizer.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use minijinja::Value;
use minijinja::value::ValueKind;

use crate::tokenizer::ControlTokens;
use crate::types::Chat;

const IDX_DIGITS: usize = 6;

/// The numbers of one chat.
pub struct Quotes<'a> {
    control: &'a ControlTokens,
    /// Digits only, which templates leave as they are: they are the same in capitals, in JSON and in HTML.
    prefix: String,
    num_quoted: usize,
}

impl<'a> Quotes<'a> {
    /// Replaces what spells a special token in everything that came from the client.
    pub fn quote(chat: &mut Chat, control: &'a ControlTokens) -> Self {
        // A new one for each chat, because a template may repeat it in an error.
        let random = || RandomState::new().build_hasher().finish();
        let mut quotes = Self {
            control,
            prefix: format!("{:020}{:020}", random(), random()),
            num_quoted: 0,
        };
        quotes.replace(&mut chat.messages);
        for (_, value) in &mut chat.variables {
            quotes.replace(value);
        }
        for tool in chat.tools.iter_mut().flat_map(|tools| &mut tools.tools) {
            quotes.replace(&mut tool.definition);
        }
        if let Some(message) = &mut chat.continue_final
            && let Some(quoted) = quotes.text(message)
        {
            *message = quoted;
        }
        quotes
    }

    fn replace(&mut self, value: &mut Value) {
        if let Some(quoted) = self.value(value) {
            *value = quoted;
        }
    }

    /// `None` where nothing has to change.
    fn value(&mut self, value: &Value) -> Option<Value> {
        match value.kind() {
            ValueKind::String => self.text(value.as_str()?).map(Value::from),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter().ok()?.collect();
                let quoted: Vec<Option<Value>> =
                    items.iter().map(|item| self.value(item)).collect();
                let has_changed = quoted.iter().any(Option::is_some);
                let pairs = items.into_iter().zip(quoted);
                has_changed.then(|| pairs.map(|(item, quoted)| quoted.unwrap_or(item)).collect())
            }
            ValueKind::Map => {
                let mut has_changed = false;
                let mut entries = Vec::new();
                for key in value.try_iter().ok()? {
                    let item = value.get_item(&key).ok()?;
                    let (quoted_key, quoted_item) = (self.value(&key), self.value(&item));
                    has_changed |= quoted_key.is_some() || quoted_item.is_some();
                    entries.push((quoted_key.unwrap_or(key), quoted_item.unwrap_or(item)));
                }
                has_changed.then(|| Value::from_pairs(entries))
            }
            _ => None,
        }
    }

    fn text(&mut self, text: &str) -> Option<String> {
        let mut quoted = String::new();
        let mut copied = 0;
        for (range, idx) in self.control.find(text) {
            quoted.push_str(&text[copied..range.start]);
            quoted.push_str(&format!("{}{idx:0IDX_DIGITS$}", self.prefix));
            copied = range.end;
            self.num_quoted += 1;
        }
        quoted.push_str(&text[copied..]);
        (copied > 0).then_some(quoted)
    }

    /// The text with the spellings back in it, and where they are.
    pub fn restore(&self, rendered: String) -> (String, Vec<Range<usize>>) {
        if self.num_quoted == 0 {
            return (rendered, Vec::new());
        }
        let mut text = String::with_capacity(rendered.len());
        let mut typed = Vec::new();
        let mut rest = rendered.as_str();
        while let Some(at) = rest.find(&self.prefix) {
            let number = &rest[at + self.prefix.len()..];
            let idx = number.get(..IDX_DIGITS).and_then(|idx| idx.parse().ok());
            let Some(spelling) = idx.and_then(|idx| self.control.text(idx)) else {
                // A template has cut it off; what is left means nothing.
                text.push_str(&rest[..at]);
                rest = number;
                continue;
            };
            text.push_str(&rest[..at]);
            typed.push(text.len()..text.len() + spelling.len());
            text.push_str(spelling);
            rest = &number[IDX_DIGITS..];
        }
        text.push_str(rest);
        (text, typed)
    }
}
