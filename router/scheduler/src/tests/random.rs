//! Random numbers and random sequences, the same for the same seed.

use std::sync::Arc;

use super::reference_shard::END_TOKEN;
use crate::SequenceSpec;
use crate::plan::{SamplingParameters, TokenId};

/// splitmix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Sequences that often share their beginning, of lengths up to all blocks, and rarely more.
pub(crate) struct SpecSource {
    /// Tokens in all blocks.
    pub(crate) capacity: u64,
    /// Salt and tokens of a conversation to continue.
    pub(crate) previous: Option<(u64, Vec<TokenId>)>,
}

impl SpecSource {
    pub(crate) fn draw(self, random: &mut Random) -> SequenceSpec {
        let capacity = self.capacity;
        let (cache_salt, prompt) = self.draw_prompt(random);
        let room = capacity.saturating_sub(prompt.len() as u64).max(1);
        let max_new_tokens = if random.one_in(50) {
            room + random.below(2)
        } else {
            1 + random.below(room)
        };
        let end_token_ids = if random.one_in(3) {
            vec![]
        } else {
            vec![99, END_TOKEN]
        };
        let prompt_logprobs = random.one_in(6);
        let fails_at = if random.one_in(15) {
            1 + random.below(6)
        } else {
            0
        };
        SequenceSpec {
            prompt,
            max_new_tokens: max_new_tokens as u32,
            end_token_ids,
            cache_salt,
            read_prefix_cache: !prompt_logprobs && !random.one_in(8),
            sampling: Arc::new(SamplingParameters {
                seed: cache_salt,
                top_k: fails_at as u32,
                prompt_logprobs,
                ..SamplingParameters::default()
            }),
        }
    }

    /// The next turn of the conversation, or one of three beginnings with a random end.
    fn draw_prompt(self, random: &mut Random) -> (u64, Vec<TokenId>) {
        let (cache_salt, mut prompt) = match self.previous {
            Some((cache_salt, mut prompt)) => {
                prompt.truncate(self.capacity as usize * 3 / 4);
                (cache_salt, prompt)
            }
            None => {
                let stride = 1 + random.below(3) as TokenId;
                let length = random.below(self.capacity / 2 + 1) as TokenId;
                let beginning = (0..length).map(|i| 1 + (i * stride) % 4);
                (random.below(2), beginning.collect())
            }
        };
        let num_more = 1 + random.below(6);
        prompt.extend((0..num_more).map(|_| 1 + random.below(4) as TokenId));
        (cache_salt, prompt)
    }
}
