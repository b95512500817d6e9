//! From an answer's text to the parts of a message: content, reasoning, and calls of tools with their arguments as they come. What
//! the parts say never depends on how the text was cut into tokens, and text that fits no form is content: nothing is lost, and
//! nothing that a model writes is an error.

mod arguments;
mod pattern;
mod sections;

use super::MessagePart;
use crate::types::message_format::{MessageFormat, Piece};
use arguments::{AnswerText, CompactJson};
use pattern::{Pattern, Symbol};
use sections::Sections;

/// Reads one answer. Text goes in as it is shown, special tokens by their names, in the order in which the model wrote them.
pub struct MessageParser {
    sections: Sections,
    mode: Mode,
    /// What could be the beginning of a mark or of a call.
    pending: Vec<Symbol>,
    /// Whitespace that is dropped if a mark follows.
    held_space: String,
    /// Content or reasoning follows a mark, so that whitespace before it means nothing.
    after_mark: bool,
    /// Nothing but whitespace and reasoning so far.
    at_start: bool,
    num_calls: usize,
    parts: Vec<MessagePart>,
}

enum Mode {
    /// All text is content.
    Plain,
    Reasoning,
    Content,
    Arguments(CompactJson),
    Answer(AnswerText),
    /// Behind the data of a call or an answer: what still has to come.
    Closing(&'static [Piece]),
    /// Behind a whole call.
    Called,
}

impl MessageParser {
    pub fn new(format: MessageFormat) -> Self {
        let mode = match &format {
            MessageFormat {
                reasoning: None,
                calls: None,
            } => Mode::Plain,
            MessageFormat {
                reasoning: Some(reasoning),
                ..
            } if reasoning.opened_by_prompt => Mode::Reasoning,
            _ => Mode::Content,
        };
        Self {
            after_mark: matches!(mode, Mode::Reasoning),
            mode,
            sections: Sections::new(format),
            pending: Vec::new(),
            held_space: String::new(),
            at_start: true,
            num_calls: 0,
            parts: Vec::new(),
        }
    }

    /// More of the text.
    pub fn push_text(&mut self, text: &str) {
        if matches!(self.mode, Mode::Plain) {
            self.content(text);
        } else {
            self.pending.extend(text.chars().map(Symbol::Letter));
            self.read(false);
        }
    }

    /// A special token, which is not shown.
    pub fn push_special(&mut self, name: &str) {
        let mark = self.sections.marks().find(|mark| *mark == name);
        if let Some(mark) = mark {
            self.pending.push(Symbol::Mark(mark));
            self.read(false);
        }
    }

    /// The text has ended: what was held back.
    pub fn finish(&mut self) {
        self.read(true);
        if !self.after_mark && !self.is_reasoning() {
            let space = std::mem::take(&mut self.held_space);
            self.content(&space);
        }
    }

    /// The parts since the last call.
    pub fn take_parts(&mut self) -> Vec<MessagePart> {
        std::mem::take(&mut self.parts)
    }

    /// The model is thinking, as far as its text is known.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.mode, Mode::Reasoning)
    }

    fn read(&mut self, ended: bool) {
        let mut pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        while at < pending.len() {
            match self.step(&pending[at..], ended) {
                Some(used) => at += used,
                None => break,
            }
        }
        pending.drain(..at);
        self.pending = pending;
    }

    /// How many of the symbols have been understood; `None`: more of them must come first. A step that uses none changes the mode.
    fn step(&mut self, symbols: &[Symbol], ended: bool) -> Option<usize> {
        match &mut self.mode {
            Mode::Plain => Some(symbols.len()),
            Mode::Reasoning => self.reasoning(symbols, ended),
            Mode::Content => self.content_or_call(symbols, ended),
            Mode::Called => self.after_call(symbols, ended),
            Mode::Closing(pieces) => {
                let pieces = *pieces;
                self.close(pieces, symbols, ended)
            }
            Mode::Arguments(json) => {
                let mut text = String::new();
                let done = symbols[0]
                    .letter()
                    .is_some_and(|letter| json.push(letter, &mut text));
                if done {
                    self.mode = Mode::Closing(self.sections.behind_arguments());
                }
                self.arguments(&text);
                Some(1)
            }
            Mode::Answer(answer) => {
                let mut text = String::new();
                let done = symbols[0]
                    .letter()
                    .is_some_and(|letter| answer.push(letter, &mut text));
                if done {
                    self.mode = Mode::Closing(self.sections.behind_answer());
                }
                self.content(&text);
                Some(1)
            }
        }
    }

    fn reasoning(&mut self, symbols: &[Symbol], ended: bool) -> Option<usize> {
        match self.sections.reasoning_end().find_in(symbols) {
            Pattern::Whole { used, .. } => {
                self.held_space.clear();
                self.after_mark = true;
                self.mode = Mode::Content;
                Some(used)
            }
            Pattern::Part(_) if !ended => None,
            _ => {
                if let Some(text) = self.without_space_at_marks(symbols[0]) {
                    self.push_part(MessagePart::Reasoning(text));
                }
                Some(1)
            }
        }
    }

    fn content_or_call(&mut self, symbols: &[Symbol], ended: bool) -> Option<usize> {
        if self.at_start
            && let Some(start) = self.sections.reasoning_start()
        {
            match start.find_in(symbols) {
                Pattern::Whole { used, .. } => {
                    self.sections.reasoning_began();
                    self.held_space.clear();
                    self.after_mark = true;
                    self.mode = Mode::Reasoning;
                    return Some(used);
                }
                Pattern::Part(_) if !ended => return None,
                _ => {}
            }
        }
        match self.sections.find_first_call(symbols, self.at_start) {
            Pattern::Part(_) if !ended => None,
            Pattern::Part(Some(name)) => Some(self.start_cut_call(name, symbols)),
            Pattern::Whole { used, name } => {
                self.start_data(name);
                Some(used)
            }
            _ => {
                if let Some(text) = self.without_space_at_marks(symbols[0]) {
                    self.at_start = false;
                    self.content(&text);
                }
                Some(1)
            }
        }
    }

    fn after_call(&mut self, symbols: &[Symbol], ended: bool) -> Option<usize> {
        match self.sections.find_next_call(symbols) {
            Pattern::Part(_) if !ended => return None,
            Pattern::Part(Some(name)) => return Some(self.start_cut_call(name, symbols)),
            Pattern::Whole { used, name } => {
                self.start_data(name);
                return Some(used);
            }
            _ => {}
        }
        self.mode = Mode::Content;
        match self.sections.calls_end().find_in(symbols) {
            Pattern::Whole { used, .. } => Some(used),
            Pattern::Part(_) if !ended => {
                self.mode = Mode::Called;
                None
            }
            _ => Some(0),
        }
    }

    /// One piece at a time, so that text behind a broken end is not lost.
    fn close(
        &mut self,
        pieces: &'static [Piece],
        symbols: &[Symbol],
        ended: bool,
    ) -> Option<usize> {
        let Some((piece, rest)) = pieces.split_first() else {
            self.mode = Mode::Called;
            return Some(0);
        };
        if matches!(piece, Piece::Space(_)) {
            let is_space = symbols[0].is_space();
            if !is_space {
                self.mode = Mode::Closing(rest);
            }
            return Some(usize::from(is_space));
        }
        match pattern::find(std::slice::from_ref(piece), symbols) {
            Pattern::Whole { used, .. } => {
                self.mode = Mode::Closing(rest);
                Some(used)
            }
            // As far as it goes it fits.
            Pattern::Part(_) if ended => Some(symbols.len()),
            Pattern::Part(_) => None,
            Pattern::No => {
                self.mode = Mode::Called;
                Some(0)
            }
        }
    }

    /// The arguments of a call begin, or the text of an answer.
    fn start_data(&mut self, name: Option<String>) {
        self.held_space.clear();
        self.after_mark = true;
        self.at_start = false;
        match name {
            Some(name) => {
                self.start_call(name);
                let (json, opened) = self.sections.arguments();
                self.mode = Mode::Arguments(json);
                self.arguments(opened);
            }
            None => self.mode = Mode::Answer(AnswerText::default()),
        }
    }

    /// The answer ended before its arguments began, but what is called is known.
    fn start_cut_call(&mut self, name: String, symbols: &[Symbol]) -> usize {
        self.held_space.clear();
        self.after_mark = true;
        self.start_call(name);
        symbols.len()
    }

    fn start_call(&mut self, name: String) {
        let call_idx = self.num_calls;
        self.num_calls += 1;
        self.parts.push(MessagePart::CallStart { call_idx, name });
    }

    fn arguments(&mut self, text: &str) {
        let call_idx = self.num_calls.saturating_sub(1);
        self.push_part(MessagePart::CallArguments {
            call_idx,
            text: text.to_owned(),
        });
    }

    fn content(&mut self, text: &str) {
        self.push_part(MessagePart::Content(text.to_owned()));
    }

    /// Whitespace is held until something else follows, and none is left next to a mark. Special tokens are no text.
    fn without_space_at_marks(&mut self, symbol: Symbol) -> Option<String> {
        let letter = symbol.letter()?;
        if symbol.is_space() {
            self.held_space.push(letter);
            return None;
        }
        let mut text = std::mem::take(&mut self.held_space);
        if std::mem::take(&mut self.after_mark) {
            text.clear();
        }
        text.push(letter);
        Some(text)
    }

    /// Joined to the last part where both are pieces of the same text.
    fn push_part(&mut self, part: MessagePart) {
        use MessagePart::{CallArguments, Content, Reasoning};
        match (self.parts.last_mut(), part) {
            (Some(Content(last)), Content(more))
            | (Some(Reasoning(last)), Reasoning(more))
            | (Some(CallArguments { text: last, .. }), CallArguments { text: more, .. }) => {
                last.push_str(&more);
            }
            (_, Content(text) | Reasoning(text) | CallArguments { text, .. })
                if text.is_empty() => {}
            (_, part) => self.parts.push(part),
        }
    }
}

#[cfg(test)]
mod tests;
