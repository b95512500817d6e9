//! Collects what is wrong, so that the user sees all of it at once. An error is one line: what is wrong, and what to do.

use std::ops::RangeInclusive;

/// What is right for a number, as code and in words.
pub(super) type Rule = (fn(f64) -> bool, &'static str);

#[derive(Debug, Default)]
pub(super) struct Check {
    pub(super) errors: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Check {
    /// A whole number in `range`; None and an error if it is not.
    pub(super) fn number(
        &mut self,
        flag: &str,
        text: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let number = text
            .trim()
            .parse()
            .ok()
            .filter(|number| range.contains(number));
        if number.is_none() {
            let (low, high) = (range.start(), range.end());
            self.errors.push(format!(
                "{flag} '{text}': give a whole number from {low} to {high}"
            ));
        }
        number
    }

    /// A number for which `is_right` holds, which `wanted` says in words.
    pub(super) fn decimal(
        &mut self,
        flag: &str,
        text: &str,
        (is_right, wanted): Rule,
    ) -> Option<f64> {
        let number = text.trim().parse().ok().filter(|number| is_right(*number));
        if number.is_none() {
            self.errors
                .push(format!("{flag} '{text}': give a number {wanted}"));
        }
        number
    }

    pub(super) fn one_of(&mut self, flag: &str, text: &str, choices: &[&str]) -> bool {
        let known = choices.contains(&text);
        if !known {
            self.errors.push(format!(
                "{flag} '{text}': give one of {}",
                choices.join(", ")
            ));
        }
        known
    }

    /// true, false and what people write for them in the environment.
    pub(super) fn boolean(&mut self, flag: &str, text: &str) -> Option<bool> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => {
                self.errors
                    .push(format!("{flag} '{text}': give true or false"));
                None
            }
        }
    }
}
