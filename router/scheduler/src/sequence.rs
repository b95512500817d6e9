//! One sequence: what is known of its tokens, what the shards were told of it, and its blocks while it runs.

use std::sync::Arc;

use crate::blocks::BlockPool;
use crate::plan::{BlockId, SamplingParameters, TokenId};
use crate::prefix_cache::{Node, NodeId, Parent};
use crate::{FinishReason, SequenceSpec};

pub(crate) struct Sequence {
    /// Place in the order of all sequences; never reused.
    pub(crate) arrival: u64,
    /// The prompt, then the generated tokens of the applied results.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: usize,
    /// The length at which it finishes.
    max_len: usize,
    end_token_ids: Vec<TokenId>,
    pub(crate) cache_salt: u64,
    pub(crate) read_prefix_cache: bool,
    pub(crate) sampling: Arc<SamplingParameters>,
    /// Rows of outstanding plans, also of those before a preemption.
    pub(crate) num_rows_in_flight: usize,
    /// Rows in flight that sample a token.
    pub(crate) num_unknown_tokens: usize,
    /// No further row until it is told otherwise.
    pub(crate) is_paused: bool,
    /// Prompt log-probabilities that the shards sent since the last admission.
    pub(crate) num_received_logprobs: usize,
    /// Prompt log-probabilities that were reported as events.
    num_reported_logprobs: usize,
    /// Only while it runs.
    pub(crate) residence: Option<Residence>,
}

/// What there is of a sequence only while the shards hold it.
pub(crate) struct Residence {
    pub(crate) block_table: Vec<BlockId>,
    /// Leading blocks of the table that the shards know.
    pub(crate) num_sent_blocks: usize,
    /// Tokens whose K/V is in the blocks once the issued plans are executed.
    pub(crate) num_computed_tokens: usize,
    /// As of the applied results.
    pub(crate) num_confirmed_tokens: usize,
    /// Leading blocks whose content is registered, by this block or by an equal one.
    num_registered_blocks: usize,
    /// Some of them are copies of the registered block.
    has_copies: bool,
    /// The node of the last of them.
    node_id: NodeId,
}

impl Sequence {
    pub(crate) fn new(arrival: u64, spec: SequenceSpec) -> Self {
        Self {
            arrival,
            prompt_len: spec.prompt.len(),
            max_len: spec.prompt.len() + spec.max_new_tokens as usize,
            tokens: spec.prompt,
            end_token_ids: spec.end_token_ids,
            cache_salt: spec.cache_salt,
            read_prefix_cache: spec.read_prefix_cache,
            sampling: spec.sampling,
            num_rows_in_flight: 0,
            num_unknown_tokens: 0,
            is_paused: false,
            num_received_logprobs: 0,
            num_reported_logprobs: 0,
            residence: None,
        }
    }

    /// Known tokens and tokens in flight.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len() + self.num_unknown_tokens
    }

    /// Tokens that may be scheduled. The last token of all is never computed, because nothing follows it.
    pub(crate) fn num_uncomputed_tokens(&self) -> usize {
        match &self.residence {
            Some(residence) if self.len() < self.max_len => {
                self.len() - residence.num_computed_tokens
            }
            _ => 0,
        }
    }

    /// Tokens whose K/V is in the blocks once the issued plans are executed.
    pub(crate) fn num_computed_tokens(&self) -> usize {
        let residence = self.residence.as_ref();
        residence.map_or(0, |residence| residence.num_computed_tokens)
    }

    /// Its next row computes just the token sampled last.
    pub(crate) fn is_decode(&self) -> bool {
        self.num_uncomputed_tokens() == 1 && self.len() > self.prompt_len
    }

    /// Starts to run on blocks of the prefix cache that hold its leading tokens.
    pub(crate) fn admit(&mut self, cached: &[Node], block_size: usize) {
        let num_cached_tokens = cached.len() * block_size;
        self.num_received_logprobs = 0;
        self.residence = Some(Residence {
            block_table: cached.iter().map(|node| node.block_id).collect(),
            num_sent_blocks: 0,
            num_computed_tokens: num_cached_tokens,
            num_confirmed_tokens: num_cached_tokens,
            num_registered_blocks: cached.len(),
            has_copies: false,
            node_id: cached.last().map_or(NodeId::ROOT, |node| node.node_id),
        });
    }

    /// Of the next values from the shards, those not reported yet: a sequence that was preempted computes its prompt twice.
    pub(crate) fn new_logprobs(&mut self, mut logprobs: Vec<f32>) -> Vec<f32> {
        let num_old = self
            .num_reported_logprobs
            .saturating_sub(self.num_received_logprobs);
        self.num_received_logprobs += logprobs.len();
        self.num_reported_logprobs = self.num_reported_logprobs.max(self.num_received_logprobs);
        logprobs.drain(..num_old.min(logprobs.len()));
        logprobs
    }

    /// Appends a sampled token.
    pub(crate) fn push_token(&mut self, token_id: TokenId) -> Option<FinishReason> {
        self.tokens.push(token_id);
        if self.end_token_ids.contains(&token_id) {
            Some(FinishReason::EndToken)
        } else if self.tokens.len() == self.max_len {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Registers the blocks that were confirmed since the last call.
    pub(crate) fn register_blocks(&mut self, pool: &mut BlockPool, block_size: usize) {
        let Some(residence) = &mut self.residence else {
            return;
        };
        let num_full_blocks = residence.num_confirmed_tokens / block_size;
        for block_idx in residence.num_registered_blocks..num_full_blocks {
            let parent = Parent {
                salt: self.cache_salt,
                node_id: residence.node_id,
            };
            let tokens = &self.tokens[block_idx * block_size..][..block_size];
            let block_id = residence.block_table[block_idx];
            let node = pool.register(parent, tokens, block_id);
            residence.has_copies |= node.block_id != block_id;
            residence.node_id = node.node_id;
            residence.num_registered_blocks = block_idx + 1;
        }
    }

    /// Before the blocks are released: where an equal block of another sequence was the registered one, it may have been evicted
    /// since. Then this sequence's copy takes its place, and what follows can be found again.
    pub(crate) fn register_copies(&mut self, pool: &mut BlockPool, block_size: usize) {
        if let Some(residence) = &mut self.residence
            && residence.has_copies
        {
            residence.num_registered_blocks = 0;
            residence.node_id = NodeId::ROOT;
            self.register_blocks(pool, block_size);
        }
    }
}

impl Residence {
    /// Blocks that the table lacks for `num_tokens` more.
    pub(crate) fn num_missing_blocks(&self, pool: &BlockPool, num_tokens: usize) -> usize {
        let num_blocks = pool.blocks_for(self.num_computed_tokens + num_tokens);
        num_blocks.saturating_sub(self.block_table.len())
    }
}
