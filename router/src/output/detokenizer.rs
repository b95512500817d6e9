//! Token ids to text, one token at a time. The pieces always join to the text of all tokens, and none of them ends inside a
//! UTF-8 character; bytes that can no longer become a character are U+FFFD.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;

/// Tokens of the prompt that the text of the first new token can depend on (a leading space, an unfinished character).
const PROMPT_TAIL: usize = 5;

/// Tokens held back before their text is given out as it is. Every character is complete after 4 bytes, so a longer run of
/// incomplete text is a run of invalid bytes, and re-reading all of it with each token would be quadratic.
const MAX_HELD: usize = 32;

/// What stands for bytes that are no character.
const INVALID: char = '\u{FFFD}';

pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Tokens whose text is given out and that give the next ones their context, then tokens that are held back.
    window: Vec<u32>,
    /// Where the held tokens begin.
    held: usize,
    /// Text of `window[..held]`.
    context: String,
}

impl Detokenizer {
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Self {
        let tail = &prompt[prompt.len().saturating_sub(PROMPT_TAIL)..];
        let window: Vec<u32> = tail
            .iter()
            .copied()
            .filter(|id| !tokenizer.is_special(*id))
            .collect();
        Self {
            context: tokenizer.decode(&window, true),
            held: window.len(),
            window,
            tokenizer,
        }
    }

    /// The text that is complete with this token.
    pub fn push(&mut self, id: u32) -> String {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, true);
        let new_text = after_common_prefix(&self.context, &text);
        let waiting = new_text.is_empty() || new_text.ends_with(INVALID);
        if waiting && self.window.len() - self.held < MAX_HELD {
            return String::new();
        }
        let new_text = new_text.to_owned();
        self.window.drain(..self.held);
        self.held = self.window.len();
        self.context = self.tokenizer.decode(&self.window, true);
        new_text
    }

    /// The sequence has ended: the held text, without the unfinished character at its end.
    pub fn finish(&mut self) -> String {
        let text = self.tokenizer.decode(&self.window, true);
        self.held = self.window.len();
        let new_text = after_common_prefix(&self.context, &text);
        new_text.trim_end_matches(INVALID).to_owned()
    }
}

/// The part of `text` that is not in `context`. Context that ended inside a character reads differently once that is complete.
fn after_common_prefix<'a>(context: &str, text: &'a str) -> &'a str {
    let mut rest = text.chars();
    for expected in context.chars() {
        let mut ahead = rest.clone();
        if ahead.next() != Some(expected) {
            break;
        }
        rest = ahead;
    }
    rest.as_str()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokenizer::tests::compat;

    fn pieces(prompt: &[u32], ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(compat(), prompt);
        let mut pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    #[test]
    fn a_character_that_begins_in_the_prompt_is_completed() {
        let ids = compat().encode("é", false).unwrap();
        assert_eq!(ids.len(), 2, "the test needs a character of two tokens");
        assert_eq!(pieces(&ids[..1], &ids[1..]), ["é", ""]);
    }

    #[test]
    fn a_long_run_of_invalid_bytes_is_given_out_in_parts() {
        let text = pieces(&[], &[236; 100]).concat();
        assert!(text.chars().all(|letter| letter == INVALID));
        assert_eq!(text.chars().count(), 96);
    }

    proptest! {
        #[test]
        fn pieces_of_any_text_join_to_the_text_and_never_split_a_character(text in "\\PC{0,40}", prompt in "\\PC{0,8}") {
            prop_assume!(!text.contains(INVALID));
            let tokenizer = compat();
            let prompt = tokenizer.encode(&prompt, false).unwrap();
            let ids = tokenizer.encode(&text, false).unwrap();
            let pieces = pieces(&prompt, &ids);
            prop_assert!(pieces.iter().all(|piece| !piece.contains(INVALID)));
            prop_assert_eq!(pieces.concat(), text);
        }

        #[test]
        fn pieces_of_any_tokens_join_to_the_text_of_all_of_them(ids in prop::collection::vec(4u32..2048, 0..30)) {
            let whole = compat().decode(&ids, true);
            let joined = pieces(&[], &ids).concat();
            prop_assert_eq!(joined.trim_end_matches(INVALID), whole.trim_end_matches(INVALID));
        }
    }
}
