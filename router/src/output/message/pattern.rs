//! Whether text begins with a form, could still become its beginning, or does not fit. Looks at no more of it than a bound, so that
//! text that almost fits cannot be held back for ever.

use crate::types::message_format::Piece;

/// A letter of the text, or a special token that is a mark of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol {
    Letter(char),
    Mark(&'static str),
}

impl Symbol {
    pub fn letter(self) -> Option<char> {
        match self {
            Self::Letter(letter) => Some(letter),
            Self::Mark(_) => None,
        }
    }

    /// JSON's whitespace.
    pub fn is_space(self) -> bool {
        matches!(self, Self::Letter(' ' | '\t' | '\n' | '\r'))
    }
}

/// The outcome of a search, with the name that the text holds as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Whole { used: usize, name: Option<String> },
    Part(Option<String>),
    No,
}

/// No beginning of a call is longer, even with generous whitespace.
const MAX_SYMBOLS: usize = 1024;

/// Up to the data, which is not read here.
pub struct Form {
    pub pieces: Vec<Piece>,
    pub names: Vec<String>,
}

impl Form {
    pub fn find_in(&self, symbols: &[Symbol]) -> Pattern {
        let window = &symbols[..symbols.len().min(MAX_SYMBOLS)];
        match read(&self.pieces, window, 0, &self.names) {
            Pattern::Part(_) if window.len() == MAX_SYMBOLS => Pattern::No,
            pattern => pattern,
        }
    }
}

/// A form without a name.
pub fn find(pieces: &[Piece], symbols: &[Symbol]) -> Pattern {
    read(pieces, symbols, 0, &[])
}

fn read(pieces: &[Piece], symbols: &[Symbol], at: usize, names: &[String]) -> Pattern {
    let Some((piece, rest)) = pieces.split_first() else {
        return Pattern::Whole {
            used: at,
            name: None,
        };
    };
    let behind = |used: usize| read(rest, symbols, at + used, names);
    let next = symbols.get(at);
    match piece {
        Piece::Text(text) => match text_at(text, &symbols[at..]) {
            Found::Whole(used) => behind(used),
            Found::Part => Pattern::Part(None),
            Found::No => Pattern::No,
        },
        Piece::Mark(text) => match mark_at(text, &symbols[at..]) {
            Found::Whole(used) => behind(used),
            Found::Part => Pattern::Part(None),
            Found::No => Pattern::No,
        },
        Piece::OptionalMark(text) => match mark_at(text, &symbols[at..]) {
            Found::Whole(used) => behind(used),
            Found::Part => Pattern::Part(None),
            Found::No => behind(0),
        },
        Piece::Space(_) => {
            let space = symbols[at..].iter().take_while(|symbol| symbol.is_space());
            behind(space.count())
        }
        Piece::Name => name_at(rest, symbols, at, names),
        Piece::Arguments => begins_with(next, &['{'], at),
        Piece::Members => begins_with(next, &[',', '}'], at),
        Piece::Answer => behind(0),
    }
}

/// The name that leads furthest. One name may begin with another.
fn name_at(rest: &[Piece], symbols: &[Symbol], at: usize, names: &[String]) -> Pattern {
    let mut best = Pattern::No;
    for name in names {
        let pattern = match text_at(name, &symbols[at..]) {
            Found::Whole(used) => match read(rest, symbols, at + used, names) {
                Pattern::Whole { used, .. } => Pattern::Whole {
                    used,
                    name: Some(name.clone()),
                },
                Pattern::Part(_) if symbols.len() > at + used => Pattern::Part(Some(name.clone())),
                Pattern::Part(_) => Pattern::Part(None),
                Pattern::No => Pattern::No,
            },
            Found::Part => Pattern::Part(None),
            Found::No => Pattern::No,
        };
        best = match (best, pattern) {
            (whole @ Pattern::Whole { .. }, _) | (Pattern::No, whole) => whole,
            (_, whole @ Pattern::Whole { .. }) => whole,
            (Pattern::Part(None), part @ Pattern::Part(Some(_))) => part,
            (best, _) => best,
        };
    }
    best
}

fn begins_with(next: Option<&Symbol>, letters: &[char], at: usize) -> Pattern {
    match next {
        None => Pattern::Part(None),
        Some(Symbol::Letter(letter)) if letters.contains(letter) => Pattern::Whole {
            used: at,
            name: None,
        },
        Some(_) => Pattern::No,
    }
}

enum Found {
    Whole(usize),
    Part,
    No,
}

fn mark_at(text: &str, symbols: &[Symbol]) -> Found {
    match symbols.first() {
        Some(Symbol::Mark(mark)) if *mark == text => Found::Whole(1),
        _ => text_at(text, symbols),
    }
}

fn text_at(text: &str, symbols: &[Symbol]) -> Found {
    let mut len = 0;
    for letter in text.chars() {
        match symbols.get(len) {
            None => return Found::Part,
            Some(symbol) if *symbol == Symbol::Letter(letter) => len += 1,
            Some(_) => return Found::No,
        }
    }
    Found::Whole(len)
}
