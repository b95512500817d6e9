//! JSON letter by letter: arguments without the whitespace outside strings, and the text of a JSON string.

/// Finds the end of an object and leaves its whitespace out. Text that is no JSON comes out as it went in.
#[derive(Default)]
pub struct CompactJson {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The comma behind the first member is still to come, and is not an argument's.
    skip_comma: bool,
}

impl CompactJson {
    /// The object has begun with a member that is not an argument; its brace is taken as written.
    pub fn behind_first_member() -> Self {
        Self {
            depth: 1,
            skip_comma: true,
            ..Self::default()
        }
    }

    /// True with the last letter of the object.
    pub fn push(&mut self, letter: char, out: &mut String) -> bool {
        if self.in_string {
            out.push(letter);
            self.in_string = letter != '"' || self.escaped;
            self.escaped = letter == '\\' && !self.escaped;
            return false;
        }
        let skipped = std::mem::take(&mut self.skip_comma) && letter == ',';
        if skipped || matches!(letter, ' ' | '\t' | '\n' | '\r') {
            return false;
        }
        out.push(letter);
        match letter {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// Reads the inside of a JSON string. What is no escape stays as it is written.
#[derive(Default)]
pub struct AnswerText {
    /// The backslash and what followed it.
    escape: String,
    /// The first half of a pair of `\u` escapes.
    high: Option<u16>,
}

impl AnswerText {
    /// True with the closing quote.
    pub fn push(&mut self, letter: char, out: &mut String) -> bool {
        if self.escape.is_empty() {
            match letter {
                '\\' => self.escape.push(letter),
                _ => {
                    self.end_pair(out);
                    if letter == '"' {
                        return true;
                    }
                    out.push(letter);
                }
            }
            return false;
        }
        self.escape.push(letter);
        let plain = match (self.escape.len(), letter) {
            (2, 'u') => return false,
            (2, 'n') => '\n',
            (2, 't') => '\t',
            (2, 'r') => '\r',
            (2, 'b') => '\u{8}',
            (2, 'f') => '\u{c}',
            (2, '"' | '\\' | '/') => letter,
            (3..=5, letter) if letter.is_ascii_hexdigit() => return false,
            (6, letter) if letter.is_ascii_hexdigit() => {
                self.code_unit(out);
                return false;
            }
            _ => {
                self.end_pair(out);
                out.push_str(&std::mem::take(&mut self.escape));
                return false;
            }
        };
        self.end_pair(out);
        self.escape.clear();
        out.push(plain);
        false
    }

    fn code_unit(&mut self, out: &mut String) {
        let unit = u16::from_str_radix(&self.escape[2..], 16).unwrap_or_default();
        self.escape.clear();
        let pair = self.high.take().map(|high| [high, unit]);
        let read = |units: &[u16], out: &mut String| out.push_str(&String::from_utf16_lossy(units));
        match (pair, unit) {
            (Some(pair), 0xDC00..=0xDFFF) => read(&pair, out),
            (alone, unit) => {
                if let Some([high, _]) = alone {
                    read(&[high], out);
                }
                match unit {
                    0xD800..=0xDBFF => self.high = Some(unit),
                    _ => read(&[unit], out),
                }
            }
        }
    }

    fn end_pair(&mut self, out: &mut String) {
        if self.high.take().is_some() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}
