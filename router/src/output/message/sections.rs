//! What can come where in an answer: the forms of a `MessageFormat`, ready to be searched for.

use super::arguments::CompactJson;
use super::pattern::{Form, Pattern, Symbol};
use crate::types::message_format::{CallSyntax, MessageFormat, Piece, ReasoningFormat};

pub struct Sections {
    reasoning: Option<ReasoningFormat>,
    start: Option<Form>,
    end: Form,
    syntax: Option<&'static CallSyntax>,
    first_calls: Vec<Form>,
    next_call: Form,
    calls_end: Form,
}

impl Sections {
    pub fn new(format: MessageFormat) -> Self {
        let mark = |text| Form {
            pieces: vec![Piece::Mark(text)],
            names: Vec::new(),
        };
        let start = format
            .reasoning
            .filter(|reasoning| !reasoning.opened_by_prompt)
            .map(|reasoning| mark(reasoning.start));
        let nothing = || Form {
            pieces: Vec::new(),
            names: Vec::new(),
        };
        let mut sections = Self {
            start,
            end: format
                .reasoning
                .map_or_else(nothing, |reasoning| mark(reasoning.end)),
            reasoning: format.reasoning,
            syntax: None,
            first_calls: Vec::new(),
            next_call: nothing(),
            calls_end: nothing(),
        };
        if let Some(calls) = format.calls {
            let syntax = calls.format.syntax();
            sections.syntax = Some(syntax);
            sections.next_call = form(&[syntax.between, syntax.call], &calls.names);
            sections.calls_end = form(&[syntax.last], &[]);
            sections.first_calls = vec![form(&[syntax.first, syntax.call], &calls.names)];
            if !syntax.answer.is_empty() {
                sections.first_calls.push(form(&[syntax.answer], &[]));
            }
        }
        sections
    }

    /// Every text that can be a special token of the format.
    pub fn marks(&self) -> impl Iterator<Item = &'static str> {
        let reasoning = self
            .reasoning
            .map(|reasoning| [reasoning.start, reasoning.end]);
        let pieces = self.syntax.map_or([&[][..], &[], &[], &[]], |syntax| {
            [syntax.first, syntax.call, syntax.between, syntax.last]
        });
        let marks = pieces
            .into_iter()
            .flatten()
            .filter_map(|piece| match piece {
                Piece::Mark(text) | Piece::OptionalMark(text) => Some(*text),
                _ => None,
            });
        reasoning.into_iter().flatten().chain(marks)
    }

    /// `None` once the model has thought.
    pub fn reasoning_start(&self) -> Option<&Form> {
        self.start.as_ref()
    }

    pub fn reasoning_began(&mut self) {
        self.start = None;
    }

    pub fn reasoning_end(&self) -> &Form {
        &self.end
    }

    pub fn find_first_call(&self, symbols: &[Symbol], at_start: bool) -> Pattern {
        let allowed = self
            .syntax
            .is_some_and(|syntax| syntax.after_text || at_start);
        let forms = if allowed { &self.first_calls[..] } else { &[] };
        let mut part = Pattern::No;
        for form in forms {
            match form.find_in(symbols) {
                whole @ Pattern::Whole { .. } => return whole,
                Pattern::No => {}
                found @ Pattern::Part(_) => part = found,
            }
        }
        part
    }

    pub fn find_next_call(&self, symbols: &[Symbol]) -> Pattern {
        // A form without anything between calls and at the start only has no further ones.
        match self.syntax {
            Some(syntax) if syntax.after_text || !syntax.between.is_empty() => {
                self.next_call.find_in(symbols)
            }
            _ => Pattern::No,
        }
    }

    pub fn calls_end(&self) -> &Form {
        &self.calls_end
    }

    /// A reader of a call's arguments, and what of them is known before they begin.
    pub fn arguments(&self) -> (CompactJson, &'static str) {
        let has = |piece| {
            self.syntax
                .is_some_and(|syntax| syntax.call.contains(&piece))
        };
        if has(Piece::Members) {
            (CompactJson::behind_first_member(), "{")
        } else {
            (CompactJson::default(), "")
        }
    }

    pub fn behind_arguments(&self) -> &'static [Piece] {
        self.syntax.map_or(&[], |syntax| behind_data(syntax.call))
    }

    pub fn behind_answer(&self) -> &'static [Piece] {
        self.syntax.map_or(&[], |syntax| behind_data(syntax.answer))
    }
}

fn is_data(piece: &Piece) -> bool {
    matches!(piece, Piece::Arguments | Piece::Members | Piece::Answer)
}

/// Up to the data and with it.
fn form(parts: &[&[Piece]], names: &[String]) -> Form {
    let mut pieces = Vec::new();
    for piece in parts.iter().copied().flatten() {
        pieces.push(*piece);
        if is_data(piece) {
            break;
        }
    }
    Form {
        pieces,
        names: names.to_vec(),
    }
}

fn behind_data(pieces: &'static [Piece]) -> &'static [Piece] {
    let data = pieces.iter().position(is_data);
    data.map_or(&[], |at| &pieces[at + 1..])
}
