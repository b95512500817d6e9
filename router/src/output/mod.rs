//! Tokens to text: what of a sequence's text is shown, and when. Knows nothing of requests, routes or the engine.

pub mod detokenizer;
pub mod message;
pub mod stop;

use std::collections::VecDeque;
use std::sync::Arc;

use scheduler::FinishReason;
use scheduler::plan::SampledToken;

use crate::tokenizer::Tokenizer;
use crate::types::message_format::MessageFormat;
use detokenizer::Detokenizer;
use message::MessageParser;
use stop::StopStrings;

/// What one token meant for the text of its sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct TextDelta {
    pub token: Token,
    /// Text that this token released. Empty while a character or a stop string may be incomplete, and for special tokens.
    pub text: String,
    /// The same text as pieces of a message, for routes that answer with one.
    pub parts: Vec<MessagePart>,
    /// The token belongs to the model's reasoning or ends it.
    pub reasoning: bool,
    /// Set with the last delta.
    pub finish: Option<Finish>,
}

/// A piece of the message that answers a chat, in the order in which the model wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessagePart {
    Content(String),
    /// What the model thought before it answered.
    Reasoning(String),
    /// The next call of a tool; calls are counted from 0.
    CallStart {
        call_idx: usize,
        name: String,
    },
    /// More of the arguments of that call. Together they are one JSON object, unless the answer was cut off.
    CallArguments {
        call_idx: usize,
        text: String,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: u32,
    /// The token's own text; the name of a special token.
    pub text: String,
    pub logprob: f32,
    pub special: bool,
    /// Most likely first.
    pub top_tokens: Vec<TopToken>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TopToken {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
    pub special: bool,
}

/// Why a sequence's text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Length,
    EndToken,
    /// With the index of the stop string that matched.
    StopString(usize),
}

/// The text of one sequence, token by token.
pub struct SequenceText {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    stop: StopStrings,
    keep_stop_text: bool,
    message: MessageParser,
    /// Special tokens that stand behind text that is still held, with the length of all text before them, in bytes.
    held_specials: VecDeque<(usize, String)>,
    /// Bytes of text so far, and how many of them were released.
    text_len: usize,
    released_len: usize,
}

impl SequenceText {
    /// `prompt` only matters for its last tokens, on which the text of the first new one can depend.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        prompt: &[u32],
        stop: Vec<String>,
        keep_stop_text: bool,
        format: MessageFormat,
    ) -> Self {
        Self {
            message: MessageParser::new(format),
            held_specials: VecDeque::new(),
            text_len: 0,
            released_len: 0,
            detokenizer: Detokenizer::new(tokenizer.clone(), prompt),
            stop: StopStrings::new(stop, keep_stop_text),
            tokenizer,
            keep_stop_text,
        }
    }

    /// The next token. After a delta with `finish` there must be no other.
    pub fn push(&mut self, token: SampledToken, reason: Option<FinishReason>) -> TextDelta {
        let special = self.tokenizer.is_special(token.token_id);
        let hidden = special || reason == Some(FinishReason::EndToken);
        let mut new_text = if hidden {
            String::new()
        } else {
            self.detokenizer.push(token.token_id)
        };
        if reason.is_some() {
            new_text.push_str(&self.detokenizer.finish());
        }
        let new_text_len = new_text.len();
        let mut released = self.stop.push(&new_text);
        let finish = match released.matched {
            Some(stop_idx) => Some(Finish::StopString(stop_idx)),
            None => reason.map(|reason| match reason {
                FinishReason::Length => Finish::Length,
                FinishReason::EndToken => Finish::EndToken,
            }),
        };
        if finish.is_some() && released.matched.is_none() {
            released.text.push_str(&self.stop.finish());
        }
        let shown = if hidden {
            self.tokenizer.decode(&[token.token_id], false)
        } else if self.keep_stop_text {
            released.text.clone()
        } else {
            new_text
        };
        self.text_len += new_text_len;
        if special && reason != Some(FinishReason::EndToken) {
            self.held_specials.push_back((self.text_len, shown.clone()));
        }
        let reasoning = self.message.is_reasoning();
        let parts = self.parts(&released.text, finish);
        TextDelta {
            token: Token {
                id: token.token_id,
                text: shown,
                logprob: token.logprob,
                special,
                top_tokens: self.top_tokens(token.top_tokens),
            },
            text: released.text,
            parts,
            reasoning: reasoning || self.message.is_reasoning(),
            finish,
        }
    }

    /// The message that the released text and the special tokens inside it add up to.
    fn parts(&mut self, released: &str, finish: Option<Finish>) -> Vec<MessagePart> {
        let mut rest = released;
        while let Some((at, name)) = self.held_specials.front() {
            let Some((before, behind)) = at
                .checked_sub(self.released_len)
                .and_then(|len| rest.split_at_checked(len))
            else {
                break;
            };
            self.message.push_text(before);
            self.message.push_special(name);
            self.released_len += before.len();
            rest = behind;
            self.held_specials.pop_front();
        }
        self.message.push_text(rest);
        self.released_len += rest.len();
        if finish.is_some() {
            self.message.finish();
        }
        self.message.take_parts()
    }

    fn top_tokens(&self, tokens: Vec<(u32, f32)>) -> Vec<TopToken> {
        let with_text = |(id, logprob)| TopToken {
            id,
            text: self.tokenizer.decode(&[id], false),
            logprob,
            special: self.tokenizer.is_special(id),
        };
        tokens.into_iter().map(with_text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::compat;
    use crate::types::message_format::ReasoningFormat;

    fn sampled(token_id: u32) -> SampledToken {
        SampledToken {
            token_id,
            logprob: -1.0,
            top_tokens: vec![(token_id, -1.0)],
        }
    }

    /// Deltas until one finishes. The last token has the reason.
    fn run(stop: &[&str], keep: bool, ids: &[u32], reason: FinishReason) -> Vec<TextDelta> {
        run_as(MessageFormat::default(), stop, keep, ids, reason)
    }

    fn run_as(
        format: MessageFormat,
        stop: &[&str],
        keep: bool,
        ids: &[u32],
        reason: FinishReason,
    ) -> Vec<TextDelta> {
        let stop = stop.iter().map(|text| (*text).to_owned()).collect();
        let mut text = SequenceText::new(compat(), &[484, 306], stop, keep, format);
        let mut deltas = Vec::new();
        for (idx, id) in ids.iter().enumerate() {
            let reason = (idx + 1 == ids.len()).then_some(reason);
            deltas.push(text.push(sampled(*id), reason));
            if deltas.last().unwrap().finish.is_some() {
                break;
            }
        }
        deltas
    }

    fn text(deltas: &[TextDelta]) -> String {
        deltas.iter().map(|delta| delta.text.as_str()).collect()
    }

    /// "\u{FFFD}out descrimdialwrap", as recorded.
    const IDS: [u32; 6] = [236, 635, 1391, 870, 1082, 1415];

    #[test]
    fn an_incomplete_character_is_held_and_comes_with_the_next_token() {
        let deltas = run(&[], true, &IDS, FinishReason::Length);
        let texts: Vec<_> = deltas
            .iter()
            .map(|delta| delta.token.text.as_str())
            .collect();
        assert_eq!(texts, ["", "\u{FFFD}out", " descri", "md", "ial", "wrap"]);
        assert_eq!(text(&deltas), "\u{FFFD}out descrimdialwrap");
        assert_eq!(deltas[5].finish, Some(Finish::Length));
        assert_eq!(deltas[0].token.top_tokens[0].text, "\u{FFFD}");
    }

    #[test]
    fn an_incomplete_character_at_the_end_is_not_shown() {
        let deltas = run(&[], true, &[236], FinishReason::Length);
        assert_eq!(text(&deltas), "");
    }

    #[test]
    fn the_end_tokens_name_is_in_its_token_but_not_in_the_text() {
        let deltas = run(&[], true, &[323, 2], FinishReason::EndToken);
        assert_eq!(deltas[1].token.text, "<|im_end|>");
        assert!(deltas[1].token.special);
        assert_eq!(text(&deltas), " return");
        assert_eq!(deltas[1].finish, Some(Finish::EndToken));
    }

    #[test]
    fn a_special_token_in_the_middle_is_not_in_the_text() {
        let deltas = run(&[], false, &[323, 3, 387], FinishReason::Length);
        assert_eq!(text(&deltas), " return None");
    }

    #[test]
    fn an_ordinary_token_that_ends_the_sequence_is_not_in_the_text() {
        let deltas = run(&[], true, &[323, 387], FinishReason::EndToken);
        assert_eq!(text(&deltas), " return");
        assert_eq!(deltas[1].token.text, " None");
    }

    #[test]
    fn a_stop_string_inside_a_token_ends_the_text_at_its_end_or_its_start() {
        let kept = run(&["ia"], true, &IDS, FinishReason::Length);
        assert_eq!(text(&kept), "\u{FFFD}out descrimdia");
        assert_eq!(kept.len(), 5);
        assert_eq!(kept[4].finish, Some(Finish::StopString(0)));
        assert_eq!(kept[4].token.text, "ia");
        let hidden = run(&["ia"], false, &IDS, FinishReason::Length);
        assert_eq!(text(&hidden), "\u{FFFD}out descrimd");
    }

    #[test]
    fn text_held_for_a_stop_string_is_released_at_the_end() {
        let deltas = run(&["rapper"], false, &IDS, FinishReason::Length);
        assert_eq!(text(&deltas), "\u{FFFD}out descrimdialwrap");
        assert_eq!(deltas[5].finish, Some(Finish::Length));
    }

    /// Content in one text, reasoning in the other.
    fn message(deltas: &[TextDelta]) -> (String, String) {
        let (mut content, mut thought) = (String::new(), String::new());
        for part in deltas.iter().flat_map(|delta| &delta.parts) {
            match part {
                MessagePart::Content(text) => content.push_str(text),
                MessagePart::Reasoning(text) => thought.push_str(text),
                other => panic!("{other:?}"),
            }
        }
        (content, thought)
    }

    /// Token 3 ends the reasoning.
    fn thinking() -> MessageFormat {
        MessageFormat {
            reasoning: Some(ReasoningFormat {
                start: "<|im_start|>",
                end: "<|pad|>",
                opened_by_prompt: true,
            }),
            calls: None,
        }
    }

    #[test]
    fn a_special_token_ends_the_reasoning_where_it_stands_though_text_is_held_for_a_stop_string() {
        let ids = [323, 3, 387, 323];
        for stop in [&[][..], &[" return None return x"], &["turn None r"]] {
            let deltas = run_as(thinking(), stop, false, &ids, FinishReason::Length);
            let (content, thought) = message(&deltas);
            let cut = stop.first() == Some(&"turn None r");
            let expected = if cut {
                ("", "re")
            } else {
                ("None return", "return")
            };
            assert_eq!((content.as_str(), thought.as_str()), expected, "{stop:?}");
        }
    }

    #[test]
    fn tokens_of_reasoning_are_marked_up_to_its_end() {
        let deltas = run_as(thinking(), &[], false, &[323, 3, 387], FinishReason::Length);
        let marked: Vec<bool> = deltas.iter().map(|delta| delta.reasoning).collect();
        assert_eq!(marked, [true, true, false]);
    }

    #[test]
    fn without_a_format_the_text_is_the_content() {
        let deltas = run(&[], false, &IDS, FinishReason::Length);
        assert_eq!(message(&deltas).0, text(&deltas));
    }
}
