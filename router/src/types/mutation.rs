//! Changes to text for tests that draw their cases, by letters and by words that mean something where the text is read.

use super::random::Random;

/// Longer ones say nothing that shorter ones do not.
const MAX_LETTERS: usize = 4000;
const MAX_REPEATED: usize = 40;

/// A few changes. `words` are put in; `others` lend their parts.
pub fn text(random: &mut Random, source: &str, words: &[&str], others: &[String]) -> String {
    let mut letters: Vec<char> = source.chars().collect();
    for _ in 0..1 + random.below(3) {
        let (from, to) = range(random, letters.len());
        let part = match random.below(8) {
            0 => Vec::new(),
            1 => letters[from..to].repeat(1 + random.below(MAX_REPEATED)),
            2 => {
                let other: Vec<char> = random.pick(others).chars().collect();
                let (from, to) = range(random, other.len());
                other[from..to].to_vec()
            }
            3 => {
                letters.truncate(to);
                continue;
            }
            4 => random.pick(words).chars().collect(),
            _ => {
                let word = random.pick(words).chars();
                letters.splice(from..from, word);
                continue;
            }
        };
        letters.splice(from..to, part);
        letters.truncate(MAX_LETTERS);
    }
    letters.into_iter().collect()
}

/// Mostly short.
fn range(random: &mut Random, len: usize) -> (usize, usize) {
    let from = random.below(len + 1);
    let longest = if random.one_in(3) { len } else { 12 };
    let to = (from + random.below(longest + 1)).min(len);
    (from, to)
}
