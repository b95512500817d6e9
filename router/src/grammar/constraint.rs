//! One sequence under its grammar: which tokens may come next, and what the one that came means for those after it.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;

use super::GrammarError;
use super::budget::ReasoningBudget;
use super::compiler::message;
use crate::types::TokenMask;

/// A grammar and how far a sequence is in it.
pub struct Constraint {
    /// `None`: any text.
    matcher: Option<Matcher>,
    budget: Option<ReasoningBudget>,
    end_token_ids: Arc<[u32]>,
    /// What may come next.
    mask: TokenMask,
    /// Until so many tokens were pushed, an end token is not allowed where anything else is.
    min_new_tokens: u32,
    num_pushed: u32,
}

impl Constraint {
    pub(super) fn start(matcher: Matcher, end_token_ids: Arc<[u32]>) -> Result<Self, GrammarError> {
        let mut constraint = Self {
            matcher: Some(matcher),
            budget: None,
            end_token_ids,
            mask: TokenMask::any(),
            min_new_tokens: 0,
            num_pushed: 0,
        };
        constraint.mask = constraint.compute_mask()?;
        Ok(constraint)
    }

    /// The same grammar from its beginning, for another sequence. Nothing is shared, so that no sequence waits for another.
    pub fn for_another_sequence(&self) -> Self {
        Self {
            matcher: self.matcher.as_ref().map(Matcher::deep_clone),
            budget: self.budget.clone(),
            end_token_ids: self.end_token_ids.clone(),
            mask: self.mask.clone(),
            ..*self
        }
    }

    /// No grammar, only a limit to the reasoning.
    pub fn of_budget(budget: ReasoningBudget) -> Self {
        let mut constraint = Self {
            matcher: None,
            budget: Some(budget),
            end_token_ids: Arc::default(),
            mask: TokenMask::any(),
            min_new_tokens: 0,
            num_pushed: 0,
        };
        constraint.mask = constraint.forced().unwrap_or(TokenMask::any());
        constraint
    }

    pub fn with_budget(mut self, budget: ReasoningBudget) -> Self {
        self.budget = Some(budget);
        self.mask = self.forced().unwrap_or(self.mask);
        self
    }

    /// Keeps the answer from ending before it has so many tokens, where the grammar lets it go on.
    pub fn with_min_new_tokens(mut self, min_new_tokens: u32) -> Result<Self, GrammarError> {
        self.min_new_tokens = min_new_tokens;
        self.mask = self.compute_mask()?;
        Ok(self)
    }

    /// The tokens that may come next.
    pub fn mask(&self) -> TokenMask {
        self.mask.clone()
    }

    /// Takes the next token, which `mask` allowed, and finds what may come after it. Takes up to some milliseconds.
    pub fn push(&mut self, token_id: u32) -> Result<(), GrammarError> {
        if let Some(matcher) = &mut self.matcher {
            let consumed = matcher.consume_token(token_id);
            consumed.map_err(|error| GrammarError::Invalid(message(&error.to_string())))?;
        }
        if let Some(budget) = &mut self.budget {
            budget.push(token_id);
        }
        self.num_pushed += 1;
        self.mask = self.compute_mask()?;
        Ok(())
    }

    fn compute_mask(&mut self) -> Result<TokenMask, GrammarError> {
        if let Some(forced) = self.forced() {
            return Ok(forced);
        }
        let Some(matcher) = &mut self.matcher else {
            return Ok(TokenMask::any());
        };
        let allowed = matcher.compute_mask_or_eos();
        let mut allowed =
            allowed.map_err(|error| GrammarError::TooComplex(message(&error.to_string())))?;
        let must_go_on = self.num_pushed < self.min_new_tokens;
        if must_go_on && allowed.num_set() > self.num_allowed_ends(|id| allowed.is_allowed(id)) {
            for &id in self.end_token_ids.iter() {
                allowed.disallow_token(id);
            }
        }
        if allowed.is_zero() {
            let reason = "no token of the model can continue the answer".to_owned();
            return Err(GrammarError::Invalid(reason));
        }
        let num_words = allowed.len().div_ceil(u32::BITS as usize);
        Ok(TokenMask::new(&allowed.as_slice()[..num_words]))
    }

    /// The one token that ends the reasoning.
    fn forced(&self) -> Option<TokenMask> {
        let budget = self.budget.as_ref()?;
        budget
            .forced()
            .map(|token_id| TokenMask::only(token_id, budget.vocab_size()))
    }

    fn num_allowed_ends(&self, is_allowed: impl Fn(u32) -> bool) -> usize {
        let ends = self.end_token_ids.iter();
        ends.filter(|&&id| is_allowed(id)).count()
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let tokens = self.num_pushed;
        write!(out, "Constraint after {tokens} tokens")
    }
}

#[cfg(test)]
mod tests;
