//! Finds stop strings in a text that arrives in pieces. The outcome never depends on where the pieces are cut: the text ends with
//! the first stop string that becomes complete (of several at once, the longest), and text that could still become the beginning
//! of a hidden stop string is held back.

/// What a piece of text released.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Released {
    pub text: String,
    /// The index of the stop string that is complete; nothing more will be released.
    pub matched: Option<usize>,
}

pub struct StopStrings {
    stop: Vec<String>,
    keep: bool,
    max_len: usize,
    /// The end of the text: enough of it to find a stop string that began in it.
    recent: String,
    /// Leading bytes of `recent` that were released.
    released: usize,
}

impl StopStrings {
    /// With `keep` the stop string itself stays in the text. Empty strings never match.
    pub fn new(stop: Vec<String>, keep: bool) -> Self {
        Self {
            max_len: stop.iter().map(String::len).max().unwrap_or(0),
            stop,
            keep,
            recent: String::new(),
            released: 0,
        }
    }

    /// The next piece of the text.
    pub fn push(&mut self, piece: &str) -> Released {
        self.recent.push_str(piece);
        if let Some((start, end, stop_idx)) = self.first_match() {
            let cut = if self.keep { end } else { start };
            return Released {
                text: self.release_to(cut),
                matched: Some(stop_idx),
            };
        }
        let safe = if self.keep {
            self.recent.len()
        } else {
            self.possible_beginning()
        };
        let text = self.release_to(safe);
        self.forget_old();
        Released {
            text,
            matched: None,
        }
    }

    /// The text has ended: what was held back.
    pub fn finish(&mut self) -> String {
        self.release_to(self.recent.len())
    }

    /// Start, end and index of the stop string that is complete first.
    fn first_match(&self) -> Option<(usize, usize, usize)> {
        self.stop
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(stop_idx, stop)| {
                let start = self.recent.find(stop.as_str())?;
                Some((start, start + stop.len(), stop_idx))
            })
            .min_by_key(|&(start, end, _)| (end, start))
    }

    /// Where the longest end of the text begins that is the beginning of a stop string; the text's length if there is none.
    fn possible_beginning(&self) -> usize {
        let len = self.recent.len();
        let begins = |at: &usize| {
            let end = &self.recent[*at..];
            self.stop.iter().any(|stop| stop.starts_with(end))
        };
        (len.saturating_sub(self.max_len)..len)
            .filter(|at| self.recent.is_char_boundary(*at))
            .find(begins)
            .unwrap_or(len)
    }

    fn release_to(&mut self, end: usize) -> String {
        let start = self.released.min(end);
        self.released = self.released.max(end);
        self.recent[start..end].to_owned()
    }

    fn forget_old(&mut self) {
        let mut cut = self
            .released
            .min(self.recent.len().saturating_sub(self.max_len));
        while !self.recent.is_char_boundary(cut) {
            cut -= 1;
        }
        self.recent.drain(..cut);
        self.released -= cut;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The whole released text, and whether a stop string matched.
    fn run(stop: &[&str], keep: bool, pieces: &[&str]) -> (String, bool) {
        let stop = stop.iter().map(|text| (*text).to_owned()).collect();
        let mut stops = StopStrings::new(stop, keep);
        let mut text = String::new();
        for piece in pieces {
            let released = stops.push(piece);
            text.push_str(&released.text);
            if released.matched.is_some() {
                return (text, true);
            }
        }
        text.push_str(&stops.finish());
        (text, false)
    }

    #[test]
    fn text_that_could_begin_a_stop_string_is_held_until_it_is_clear() {
        let mut stops = StopStrings::new(vec!["stop".into()], false);
        assert_eq!(stops.push("a st").text, "a ");
        assert_eq!(stops.push("ar").text, "star");
        assert_eq!(stops.push("s").text, "");
        assert_eq!(stops.finish(), "s");
    }

    #[test]
    fn a_kept_stop_string_holds_nothing_back() {
        let mut stops = StopStrings::new(vec!["stop".into()], true);
        assert_eq!(stops.push("a st").text, "a st");
        let released = stops.push("op!");
        assert_eq!(released.text, "op");
        assert_eq!(released.matched, Some(0));
    }

    #[test]
    fn the_stop_string_that_is_complete_first_wins() {
        assert_eq!(run(&["abcd", "bc"], false, &["xabcd"]), ("xa".into(), true));
        assert_eq!(run(&["bc", "abc"], false, &["xabcd"]), ("x".into(), true));
    }

    #[test]
    fn the_index_of_the_match_counts_empty_strings_too() {
        let stop = ["", "zz", "b"].map(str::to_owned).to_vec();
        let released = StopStrings::new(stop, false).push("abc");
        assert_eq!(released.matched, Some(2));
    }

    #[test]
    fn an_empty_stop_string_never_matches() {
        assert_eq!(run(&[""], false, &["text"]), ("text".into(), false));
    }

    #[test]
    fn a_repeated_beginning_is_not_missed() {
        assert_eq!(
            run(&["aab"], false, &["a", "a", "a", "b"]),
            ("a".into(), true)
        );
    }

    proptest! {
        #[test]
        fn every_split_of_a_text_gives_the_same_outcome(
            letters in prop::collection::vec(prop::sample::select(vec!["a", "b", "é", "☕"]), 0..14),
            stop in prop::collection::vec("[abé☕]{1,4}", 1..3),
            cuts in prop::collection::vec(any::<bool>(), 14),
            keep in any::<bool>(),
        ) {
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let whole = letters.concat();
            let mut pieces = vec![String::new()];
            for (letter, cut) in letters.iter().zip(&cuts) {
                if *cut {
                    pieces.push(String::new());
                }
                pieces.last_mut().unwrap().push_str(letter);
            }
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let expected = run(&stop, keep, &[&whole]);
            prop_assert_eq!(run(&stop, keep, &pieces), expected.clone());
            prop_assert_eq!(expected.1, stop.iter().any(|stop| whole.contains(stop)));
            prop_assert!(whole.starts_with(&expected.0));
            if !keep {
                prop_assert!(!stop.iter().any(|stop| expected.0.contains(stop)));
            }
        }
    }
}
