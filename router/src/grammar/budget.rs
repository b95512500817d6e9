//! A limit to the reasoning of a model that marks it: when its tokens are used up, the end of the reasoning is written for it.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;
use crate::types::message_format::ReasoningFormat;

/// How far a sequence is in its reasoning.
#[derive(Clone)]
pub struct ReasoningBudget {
    tokenizer: Arc<Tokenizer>,
    format: ReasoningFormat,
    /// The model's.
    vocab_size: u32,
    /// Spell `format.end`.
    end_ids: Arc<[u32]>,
    num_left: u64,
    phase: Phase,
    /// The answer's last characters, as many as a marker has and a token can add.
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing but white space, or the beginning of the start marker.
    Before,
    Reasoning,
    /// The end marker is being written; that many of its tokens are there.
    Ending(usize),
    Over,
}

impl ReasoningBudget {
    /// At most `max_tokens` between the markers. `None` where the model cannot write the end.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        vocab_size: u32,
        format: ReasoningFormat,
        max_tokens: u64,
    ) -> Option<Self> {
        let end_ids = tokenizer.encode(format.end, false).ok()?;
        let phase = match format.opened_by_prompt {
            true => Phase::Reasoning,
            false => Phase::Before,
        };
        let mut budget = Self {
            tokenizer,
            format,
            vocab_size,
            end_ids: end_ids.into(),
            num_left: max_tokens,
            phase,
            text: String::new(),
        };
        budget.end_if_used_up();
        Some(budget).filter(|budget| !budget.end_ids.is_empty())
    }

    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The only token that may come next, where the reasoning has to end.
    pub fn forced(&self) -> Option<u32> {
        match self.phase {
            Phase::Ending(num_written) => self.end_ids.get(num_written).copied(),
            _ => None,
        }
    }

    pub fn push(&mut self, token_id: u32) {
        if self.phase == Phase::Over {
            return;
        }
        if let Phase::Ending(num_written) = self.phase {
            self.phase = match num_written + 1 {
                written if written < self.end_ids.len() => Phase::Ending(written),
                _ => Phase::Over,
            };
            return;
        }
        self.text
            .push_str(&self.tokenizer.decode(&[token_id], false));
        if self.phase == Phase::Before {
            self.find_start();
        } else {
            self.num_left = self.num_left.saturating_sub(1);
        }
        if self.phase == Phase::Reasoning {
            self.find_end();
        }
        self.end_if_used_up();
    }

    fn find_start(&mut self) {
        let said = self.text.trim_start();
        if let Some(rest) = said.strip_prefix(self.format.start) {
            self.text = rest.to_owned();
            self.phase = Phase::Reasoning;
        } else if !self.format.start.starts_with(said) {
            self.phase = Phase::Over;
        }
    }

    fn find_end(&mut self) {
        if self.text.contains(self.format.end) {
            self.phase = Phase::Over;
            return;
        }
        let num_kept = self.format.end.len();
        let surplus = self.text.len().saturating_sub(num_kept);
        let cut = (surplus..=self.text.len()).find(|&at| self.text.is_char_boundary(at));
        self.text.drain(..cut.unwrap_or(0));
    }

    fn end_if_used_up(&mut self) {
        if self.phase == Phase::Reasoning && self.num_left == 0 {
            self.phase = Phase::Ending(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::compat;

    const FORMAT: ReasoningFormat = ReasoningFormat {
        start: "<think>",
        end: "</think>",
        opened_by_prompt: false,
    };

    fn budget(format: ReasoningFormat, max_tokens: u64) -> ReasoningBudget {
        ReasoningBudget::new(compat(), 2048, format, max_tokens).unwrap()
    }

    fn push(budget: &mut ReasoningBudget, text: &str) -> usize {
        let ids = compat().encode(text, false).unwrap();
        ids.iter().for_each(|id| {
            assert_eq!(budget.forced(), None, "before {text:?} was over");
            budget.push(*id);
        });
        ids.len()
    }

    /// What is forced, token by token.
    fn written(budget: &mut ReasoningBudget) -> String {
        let mut ids = Vec::new();
        while let Some(id) = budget.forced() {
            ids.push(id);
            budget.push(id);
        }
        compat().decode(&ids, false)
    }

    #[test]
    fn the_end_is_written_when_the_tokens_are_used_up() {
        let thought = "return self.name";
        let num_tokens = compat().encode(thought, false).unwrap().len() as u64;
        let mut budget = budget(FORMAT, num_tokens);
        push(&mut budget, "<think>");
        push(&mut budget, thought);
        assert_eq!(written(&mut budget), "</think>");
        push(
            &mut budget,
            "and nothing is forced any more, however long the answer is",
        );
    }

    #[test]
    fn reasoning_that_ends_in_time_is_left_alone() {
        let mut budget = budget(FORMAT, 40);
        push(
            &mut budget,
            "\n<think>short</think> the answer <think> is free to go on and on and on",
        );
        assert_eq!(budget.forced(), None);
    }

    #[test]
    fn an_answer_without_reasoning_is_left_alone() {
        let mut budget = budget(FORMAT, 0);
        push(&mut budget, "<thin air, <think>");
        assert_eq!(budget.forced(), None);
    }

    #[test]
    fn a_budget_of_nothing_ends_at_once_what_the_prompt_has_opened() {
        let opened = ReasoningFormat {
            opened_by_prompt: true,
            ..FORMAT
        };
        assert_eq!(written(&mut budget(opened, 0)), "</think>");
    }
}
