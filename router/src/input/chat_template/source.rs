//! Rewrites a template's source before it is compiled, where minijinja reads or runs it differently from Jinja2. Text outside of
//! tags, comments, strings and raw blocks stay byte for byte.
//!
//! | source | compiled as | why |
//! | --- | --- | --- |
//! | `{% generation %}` | `{% with %}` | transformers' own tag: a scope, which means nothing when rendering |
//! | `a[1:]` | `a.__slice__(1, none, none)` | slices with a negative step, and of what has none |
//! | `[1]`, `{'a': 1}` | `__list__([1])`, `__dict__({'a': 1})` | they print themselves as in Python |
//! | `for x in y` | `for x in __iter__(y)` | looping over `None` or a number is an error |

/// A source that ends in the middle of something is left as it is there: compiling it gives the better error.
pub fn rewrite(source: &str) -> String {
    let mut rewriter = Rewriter {
        rest: source,
        out: String::with_capacity(source.len() * 5 / 4),
    };
    rewriter.template();
    rewriter.out
}

struct Rewriter<'a> {
    rest: &'a str,
    out: String,
}

/// What an expression was before the point where it is read.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// A value, which can be indexed.
    Value,
    /// An operator, a keyword, or nothing.
    Other,
}

/// Names behind which a bracket opens a list.
const KEYWORDS: [&str; 12] = [
    "and",
    "elif",
    "else",
    "for",
    "if",
    "in",
    "is",
    "not",
    "or",
    "return",
    "set",
    "recursive",
];

impl<'a> Rewriter<'a> {
    fn template(&mut self) {
        while let Some(at) = ["{{", "{%", "{#"]
            .iter()
            .filter_map(|open| self.rest.find(open))
            .min()
        {
            self.copy(at);
            if self.rest.starts_with("{#") {
                self.copy_through("#}");
            } else if self.rest.starts_with("{{") {
                self.copy(2);
                self.group("}}");
            } else {
                self.tag();
            }
        }
        self.copy(self.rest.len());
    }

    fn tag(&mut self) {
        self.copy(2);
        if self.rest.starts_with(['-', '+']) {
            self.copy(1);
        }
        let space = self.rest.len() - self.rest.trim_start().len();
        self.copy(space);
        let name = self.name();
        match name {
            "raw" => {
                self.copy(name.len());
                self.copy_raw();
                return;
            }
            "generation" => self.replace(name.len(), "with"),
            "endgeneration" => self.replace(name.len(), "endwith"),
            "for" => {
                self.copy(name.len());
                self.for_head();
            }
            _ => self.copy(name.len()),
        }
        self.group("%}");
    }

    /// From behind `for` to the end of what it loops over.
    fn for_head(&mut self) {
        if !self.until(|name| name == "in", "%}") {
            return;
        }
        self.copy(2);
        self.out.push_str(" __iter__(");
        self.until(|name| name == "if" || name == "recursive", "%}");
        // A trailing space would swallow the sign in `-%}`.
        self.out.push(')');
    }

    /// Up to and with `{% endraw %}`.
    fn copy_raw(&mut self) {
        while let Some(at) = self.rest.find("{%") {
            let tag = self.rest[at + 2..]
                .trim_start_matches(['-', '+'])
                .trim_start();
            self.copy(at + 2);
            if tag.starts_with("endraw") {
                self.copy_through("%}");
                return;
            }
        }
        self.copy(self.rest.len());
    }

    /// Everything up to and with `close`, which the caller opened.
    fn group(&mut self, close: &str) {
        self.until(|_| false, close);
        let close_len = self.closing(close).unwrap_or(0);
        self.copy(close_len);
    }

    /// Whether `close` comes next, and its length with the sign in front.
    fn closing(&self, close: &str) -> Option<usize> {
        if self.rest.starts_with(close) {
            return Some(close.len());
        }
        let signed = close.len() == 2 && self.rest.starts_with(['-', '+']);
        (signed && self.rest[1..].starts_with(close)).then_some(3)
    }

    /// Copies tokens until a name is `wanted`, which is true, or `close` comes; neither is copied.
    fn until(&mut self, wanted: impl Fn(&str) -> bool, close: &str) -> bool {
        let mut before = Before::Other;
        while let Some(letter) = self.rest.chars().next() {
            if self.closing(close).is_some() {
                return false;
            }
            let name = self.name();
            if !name.is_empty() {
                if wanted(name) {
                    return true;
                }
                let is_keyword = KEYWORDS.contains(&name) && !self.out.ends_with('.');
                before = if is_keyword {
                    Before::Other
                } else {
                    Before::Value
                };
                self.copy(name.len());
                continue;
            }
            before = self.token(letter, before);
        }
        false
    }

    /// Copies what is neither a name nor an end, with everything that it opens.
    fn token(&mut self, letter: char, before: Before) -> Before {
        match letter {
            '\'' | '"' => self.string(letter),
            '[' if before == Before::Value => self.subscript(),
            '[' => self.literal("[", "]", "__list__"),
            '{' => self.literal("{", "}", "__dict__"),
            '(' => {
                self.copy(1);
                self.group(")");
            }
            _ => {
                self.copy(letter.len_utf8());
                return if letter.is_whitespace() {
                    before
                } else {
                    Before::Other
                };
            }
        }
        Before::Value
    }

    /// `[...]` behind a value.
    fn subscript(&mut self) {
        let start = self.out.len();
        self.copy(1);
        let mut parts = vec![self.out.len()];
        let mut is_closed = false;
        while let Some(letter) = self.part() {
            self.copy(1);
            is_closed = letter == ']';
            if is_closed {
                break;
            }
            parts.push(self.out.len());
        }
        if !is_closed || parts.len() == 1 || parts.len() > 3 {
            return;
        }
        let end = self.out.len();
        parts.push(end);
        let inside = self.out[start..end].to_owned();
        let bound = |idx: usize| match parts.get(idx + 1) {
            Some(&after) => {
                let text = inside[parts[idx] - start..after - 1 - start].trim();
                if text.is_empty() { "none" } else { text }
            }
            None => "none",
        };
        let call = format!(".__slice__({}, {}, {})", bound(0), bound(1), bound(2));
        self.out.truncate(start);
        self.out.push_str(&call);
    }

    /// Copies up to the `:` or `]` that ends a part of a subscript, and tells which.
    fn part(&mut self) -> Option<char> {
        let mut before = Before::Other;
        loop {
            let letter = self.rest.chars().next()?;
            if letter == ']' || letter == ':' {
                return Some(letter);
            }
            let name = self.name();
            if !name.is_empty() {
                let is_keyword = KEYWORDS.contains(&name) && !self.out.ends_with('.');
                before = if is_keyword {
                    Before::Other
                } else {
                    Before::Value
                };
                self.copy(name.len());
                continue;
            }
            before = self.token(letter, before);
        }
    }

    fn literal(&mut self, open: &str, close: &str, function: &str) {
        self.out.push_str(function);
        self.out.push('(');
        self.copy(open.len());
        self.group(close);
        self.out.push(')');
    }

    fn string(&mut self, quote: char) {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|&(_, letter)| {
            let is_end = letter == quote && !escaped;
            escaped = letter == '\\' && !escaped;
            is_end
        });
        let len = end.map_or(self.rest.len(), |(at, _)| at + 1);
        match decoded(&self.rest[..len]) {
            Some(text) => self.replace(len, &text),
            None => self.copy(len),
        }
    }

    /// The name or number that comes next; empty if none does.
    fn name(&self) -> &'a str {
        let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
        let end = self.rest.find(|letter| !is_part(letter));
        &self.rest[..end.unwrap_or(self.rest.len())]
    }

    fn copy(&mut self, len: usize) {
        let (copied, rest) = self.rest.split_at(len);
        self.out.push_str(copied);
        self.rest = rest;
    }

    fn copy_through(&mut self, end: &str) {
        let len = self
            .rest
            .find(end)
            .map_or(self.rest.len(), |at| at + end.len());
        self.copy(len);
    }

    fn replace(&mut self, len: usize, by: &str) {
        self.out.push_str(by);
        self.rest = &self.rest[len..];
    }
}

/// A string without `\U0001f600`, which minijinja does not read. `None` where there is none.
fn decoded(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let escape = rest[at + 1..]
            .strip_prefix('U')
            .and_then(|digits| digits.get(..8));
        let letter = escape.and_then(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?));
        // Of a backslash, the letter behind it is no escape of its own.
        let behind = rest[at + 1..].chars().next().map_or(0, char::len_utf8);
        let len = if letter.is_some() { 10 } else { 1 + behind };
        match letter {
            Some(letter) => out.extend([&rest[..at], letter.encode_utf8(&mut [0; 4])]),
            None => out.push_str(&rest[..at + len]),
        }
        rest = &rest[at + len..];
    }
    out.push_str(rest);
    (out != text).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comments_strings_and_raw_blocks_stay_as_they_are() {
        let sources = [
            "a[1:] {x} [1, 2] for x in y",
            "{# a[1:] {% generation %} #}",
            "{{ 'a[1:] {% generation %} }}' }}",
            r#"{{ "quoted \" }} a[1:] {{ "\\" }}"#,
            "{% raw %}{{ a[1:] }}{% generation %}{%- endraw -%} b[1:]",
            "{{ a[1] }}{{ a['x'][-1] }}{% set x = a[b[0]] %}",
            "{% generationx %}{{ generation }}",
        ];
        for source in sources {
            assert_eq!(rewrite(source), source);
        }
    }

    #[test]
    fn slices_become_calls_with_all_their_bounds() {
        let cases = [
            ("{{ a[1:] }}", "{{ a.__slice__(1, none, none) }}"),
            ("{{ a[:-1] }}", "{{ a.__slice__(none, -1, none) }}"),
            ("{{ a[::2][0] }}", "{{ a.__slice__(none, none, 2)[0] }}"),
            (
                "{{ a[b[1:][0]:{'x': 1}['x']] }}",
                "{{ a.__slice__(b.__slice__(1, none, none)[0], __dict__({'x': 1})['x'], none) }}",
            ),
            ("{{ 'a:b'[1:] }}", "{{ 'a:b'.__slice__(1, none, none) }}"),
        ];
        for (source, expected) in cases {
            assert_eq!(rewrite(source), expected);
        }
    }

    #[test]
    fn loops_check_what_they_run_over() {
        let cases = [
            ("{%- for a in b -%}", "{%- for a in __iter__( b )-%}"),
            (
                "{% for a, (b, c) in d if a in b recursive %}",
                "{% for a, (b, c) in __iter__( d )if a in b recursive %}",
            ),
            (
                "{% for a in [1] %}",
                "{% for a in __iter__( __list__([1]) )%}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(rewrite(source), expected);
        }
    }

    #[test]
    fn a_source_that_ends_too_early_is_no_reason_to_panic() {
        let source = "{%- for a in b[1:é] -%}{{ {'x': [1, \"\\U0001F600é\\\"} }}{% raw %}{# ";
        for end in 0..=source.len() {
            if let Some(part) = source.get(..end) {
                rewrite(part);
            }
        }
    }
}
