//! A shard without a model: it executes plans as a shard must, and stores in each KV slot a hash of the whole prefix that a real one
//! would have computed it from. Before it samples it checks that the sequence's blocks hold exactly its own prefix, so a block
//! that was shared, freed or evicted wrongly is found in the step that reads it.
//!
//! It samples as a function of the prefix. Two sampling parameters are used as orders: `seed` is the sequence's cache salt, so that
//! content of another salt is another content; a `top_k` of n > 0 makes the n-th sampled token an error.

use std::collections::HashMap;

use crate::SequenceSpec;
use crate::plan::{
    BlockId, NewSequence, Row, RowError, RowOutcome, RowResult, SampledToken, SamplingParameters,
    SequenceId, StepPlan, StepResult, TokenId,
};

/// One in 16 sampled tokens.
pub(crate) const END_TOKEN: TokenId = 0;

pub(crate) struct ReferenceShard {
    block_size: usize,
    /// By slot.
    kv: Vec<u64>,
    sequences: HashMap<SequenceId, Mirror>,
    last_step_id: u64,
}

struct Mirror {
    tokens: Vec<TokenId>,
    /// By position: the hash of the tokens up to there.
    hashes: Vec<u64>,
    prompt_len: usize,
    num_computed_tokens: usize,
    block_table: Vec<BlockId>,
    seed: u64,
    fails_at: usize,
    prompt_logprobs: bool,
    failed: bool,
}

/// What a sequence must give when nobody cancels it.
pub(crate) struct Expected {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) fails: bool,
    pub(crate) prompt_logprobs: Vec<f32>,
}

impl ReferenceShard {
    pub(crate) fn new(num_blocks: u32, block_size: u32) -> Self {
        Self {
            block_size: block_size as usize,
            kv: vec![0; (num_blocks * block_size) as usize],
            sequences: HashMap::new(),
            last_step_id: 0,
        }
    }

    pub(crate) fn num_sequences(&self) -> usize {
        self.sequences.len()
    }

    /// Whether a row of the next plan computes just the token sampled last.
    pub(crate) fn is_decode(&self, plan: &StepPlan, row: &Row) -> bool {
        let new = plan
            .new_sequences
            .iter()
            .find(|new| new.sequence_id == row.sequence_id);
        let (num_tokens, prompt_len, num_computed_tokens) = match new {
            Some(new) => (
                new.token_ids.len(),
                new.prompt_len as usize,
                new.num_cached_tokens as usize,
            ),
            None => {
                let mirror = &self.sequences[&row.sequence_id];
                if mirror.failed {
                    return true;
                }
                (
                    mirror.tokens.len(),
                    mirror.prompt_len,
                    mirror.num_computed_tokens,
                )
            }
        };
        num_tokens - num_computed_tokens == 1 && num_tokens > prompt_len
    }

    pub(crate) fn execute(&mut self, plan: &StepPlan) -> StepResult {
        self.last_step_id += 1;
        assert_eq!(plan.step_id, self.last_step_id, "steps count up by one");
        for id in &plan.forget {
            assert!(
                self.sequences.remove(id).is_some(),
                "{id:?} to forget is known"
            );
        }
        for new in &plan.new_sequences {
            let known = self.sequences.insert(new.sequence_id, Mirror::new(new));
            assert!(known.is_none(), "new {:?} is unknown", new.sequence_id);
            assert!(
                plan.rows
                    .iter()
                    .any(|row| row.sequence_id == new.sequence_id),
                "a new sequence has a row"
            );
        }
        StepResult {
            step_id: plan.step_id,
            rows: plan
                .rows
                .iter()
                .filter_map(|row| self.execute_row(row))
                .collect(),
        }
    }

    fn execute_row(&mut self, row: &Row) -> Option<RowResult> {
        let mirror = self
            .sequences
            .get_mut(&row.sequence_id)
            .expect("the row's sequence is known");
        mirror.block_table.extend(&row.new_block_ids);
        let mut result = RowResult {
            sequence_id: row.sequence_id,
            outcome: None,
            prompt_logprobs: Vec::new(),
        };
        if mirror.failed {
            result.outcome = Some(RowOutcome::Error(RowError::Numerical));
            return Some(result);
        }
        let start = mirror.num_computed_tokens;
        let end = start + row.num_scheduled_tokens as usize;
        assert!(
            start < end && end <= mirror.tokens.len(),
            "only known tokens are computed, and at least one"
        );
        let block_size = self.block_size;
        let slot = |mirror: &Mirror, position: usize| {
            mirror.block_table[position / block_size].0 as usize * block_size
                + position % block_size
        };
        for position in start..end {
            self.kv[slot(mirror, position)] = mirror.hashes[position];
        }
        for position in 0..end {
            assert_eq!(
                self.kv[slot(mirror, position)],
                mirror.hashes[position],
                "{:?} reads its own K/V at {position} of {end}",
                row.sequence_id
            );
        }
        mirror.num_computed_tokens = end;
        if mirror.prompt_logprobs {
            let positions = start.max(1)..end.min(mirror.prompt_len).max(start.max(1));
            result.prompt_logprobs = positions.map(|p| logprob(mirror.hashes[p])).collect();
        }
        if end == mirror.tokens.len() {
            result.outcome = Some(mirror.sample());
        }
        let is_empty = result.outcome.is_none() && result.prompt_logprobs.is_empty();
        (!is_empty).then_some(result)
    }
}

impl Mirror {
    fn new(new: &NewSequence) -> Self {
        let SamplingParameters {
            seed,
            top_k,
            prompt_logprobs,
            ..
        } = *new.sampling;
        assert!(
            (new.num_cached_tokens as usize) < new.token_ids.len(),
            "a token is left to compute"
        );
        Self {
            hashes: prefix_hashes(seed, &new.token_ids),
            tokens: new.token_ids.clone(),
            prompt_len: new.prompt_len as usize,
            num_computed_tokens: new.num_cached_tokens as usize,
            block_table: Vec::new(),
            seed,
            fails_at: top_k as usize,
            prompt_logprobs,
            failed: false,
        }
    }

    fn sample(&mut self) -> RowOutcome {
        let hash = *self.hashes.last().expect("a sequence has tokens");
        if self.tokens.len() + 1 - self.prompt_len == self.fails_at {
            self.failed = true;
            return RowOutcome::Error(RowError::Numerical);
        }
        let token_id = sampled_token(hash);
        self.tokens.push(token_id);
        self.hashes.push(next_hash(self.seed, hash, token_id));
        RowOutcome::Token(SampledToken {
            token_id,
            logprob: logprob(hash),
            top_tokens: Vec::new(),
        })
    }
}

/// The sequence alone, without a scheduler.
pub(crate) fn expected(spec: &SequenceSpec) -> Expected {
    let seed = spec.sampling.seed;
    let hashes = prefix_hashes(seed, &spec.prompt);
    let mut hash = *hashes.last().expect("a prompt has tokens");
    let mut expected = Expected {
        tokens: Vec::new(),
        fails: false,
        prompt_logprobs: Vec::new(),
    };
    if spec.sampling.prompt_logprobs {
        expected.prompt_logprobs = hashes[1..].iter().map(|&hash| logprob(hash)).collect();
    }
    while expected.tokens.len() < spec.max_new_tokens as usize {
        if expected.tokens.len() + 1 == spec.sampling.top_k as usize {
            expected.fails = true;
            break;
        }
        let token_id = sampled_token(hash);
        expected.tokens.push(token_id);
        if spec.end_token_ids.contains(&token_id) {
            break;
        }
        hash = next_hash(seed, hash, token_id);
    }
    expected
}

fn prefix_hashes(seed: u64, tokens: &[TokenId]) -> Vec<u64> {
    let mut hash = 0;
    let mut hashes = Vec::new();
    for &token_id in tokens {
        hash = next_hash(seed, hash, token_id);
        hashes.push(hash);
    }
    hashes
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014) over all inputs.
fn next_hash(seed: u64, hash: u64, token_id: TokenId) -> u64 {
    let mut z = hash.rotate_left(17) ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = z.wrapping_add(u64::from(token_id) + 1);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn sampled_token(hash: u64) -> TokenId {
    if hash.is_multiple_of(16) {
        END_TOKEN
    } else {
        1 + (hash >> 8) as TokenId % 4
    }
}

fn logprob(hash: u64) -> f32 {
    -((hash >> 40) as f32) / 1e6
}
