//! Who has which block: reference counts, the free list, and the cached blocks nobody uses, least recently used first.
//!
//! A block is free, cached (registered in the prefix cache, no user) or used (at least one user). It knows no sequence.

use std::collections::BTreeMap;

use crate::plan::{BlockId, TokenId};
use crate::prefix_cache::{Node, NodeId, Parent, PrefixCache};

pub(crate) struct BlockPool {
    block_size: usize,
    /// By block.
    num_users: Vec<u32>,
    free: Vec<BlockId>,
    /// Registered blocks without a user, by the time of their release.
    cached: BTreeMap<u64, BlockId>,
    /// By block: its key in `cached`, while it is there.
    released_at: Vec<u64>,
    num_releases: u64,
    num_evictions: u64,
    prefix_cache: PrefixCache,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            block_size,
            num_users: vec![0; num_blocks],
            free: (0..num_blocks as u32).rev().map(BlockId).collect(),
            cached: BTreeMap::new(),
            released_at: vec![0; num_blocks],
            num_releases: 0,
            num_evictions: 0,
            prefix_cache: PrefixCache::new(num_blocks),
        }
    }

    pub(crate) fn num_free(&self) -> usize {
        self.free.len()
    }

    pub(crate) fn num_cached(&self) -> usize {
        self.cached.len()
    }

    /// Blocks that `allocate` can give.
    pub(crate) fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Total of cached blocks that were given away.
    pub(crate) fn num_evictions(&self) -> u64 {
        self.num_evictions
    }

    /// Blocks that hold `num_tokens` tokens.
    pub(crate) fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// A block with one user. Cached blocks are given away only when no free one is left, the one released longest ago first.
    /// The caller has checked `num_available`.
    pub(crate) fn allocate(&mut self) -> BlockId {
        let block_id = self.free.pop().unwrap_or_else(|| self.evict());
        self.num_users[block_id.0 as usize] = 1;
        block_id
    }

    /// The cached blocks that hold the leading tokens, whole blocks only. They are not taken.
    pub(crate) fn find_prefix(&mut self, salt: u64, tokens: &[TokenId]) -> Vec<Node> {
        let mut nodes = Vec::new();
        let mut node_id = NodeId::ROOT;
        for block_tokens in tokens.chunks_exact(self.block_size) {
            let parent = Parent { salt, node_id };
            let Some(node) = self.prefix_cache.get(parent, block_tokens) else {
                break;
            };
            node_id = node.node_id;
            nodes.push(node);
        }
        nodes
    }

    /// How many of these have no user, so that taking them makes fewer blocks available.
    pub(crate) fn num_unused(&self, nodes: &[Node]) -> usize {
        let unused = |node: &&Node| self.num_users[node.block_id.0 as usize] == 0;
        nodes.iter().filter(unused).count()
    }

    /// One more user of a block found in the prefix cache.
    pub(crate) fn take(&mut self, block_id: BlockId) {
        let block = block_id.0 as usize;
        if self.num_users[block] == 0 {
            self.cached.remove(&self.released_at[block]);
        }
        self.num_users[block] += 1;
    }

    /// Registers the content of a full block; returns the node of that content, whose block may be another one.
    pub(crate) fn register(
        &mut self,
        parent: Parent,
        tokens: &[TokenId],
        block_id: BlockId,
    ) -> Node {
        assert_eq!(
            tokens.len(),
            self.block_size,
            "only full blocks are registered"
        );
        self.prefix_cache.get_or_insert(parent, tokens, block_id)
    }

    /// Takes the content of all leading blocks of these tokens out of the prefix cache. Users keep their blocks.
    pub(crate) fn forget_prefix(&mut self, salt: u64, tokens: &[TokenId]) {
        for node in self.find_prefix(salt, tokens) {
            let block = node.block_id.0 as usize;
            self.prefix_cache.remove(node.block_id);
            if self.num_users[block] == 0 {
                self.cached.remove(&self.released_at[block]);
                self.free.push(node.block_id);
            }
        }
    }

    /// One user less of each block of a table. Last block first, so that a prefix outlives what follows it in the cache.
    pub(crate) fn release(&mut self, block_table: &[BlockId]) {
        for &block_id in block_table.iter().rev() {
            let block = block_id.0 as usize;
            self.num_users[block] -= 1;
            if self.num_users[block] > 0 {
                continue;
            }
            if self.prefix_cache.contains(block_id) {
                self.num_releases += 1;
                self.released_at[block] = self.num_releases;
                self.cached.insert(self.num_releases, block_id);
            } else {
                self.free.push(block_id);
            }
        }
    }

    fn evict(&mut self) -> BlockId {
        let (_, block_id) = self.cached.pop_first().expect("a block is available");
        self.prefix_cache.remove(block_id);
        self.num_evictions += 1;
        block_id
    }
}

#[cfg(test)]
impl BlockPool {
    /// Asserts that each block is in exactly one state and has exactly the users that `num_users` (by block) says.
    pub(crate) fn check(&self, num_users: &[u32]) {
        assert_eq!(
            self.num_users, num_users,
            "reference counts equal the block tables"
        );
        let registered = self.prefix_cache.checked_blocks();
        let mut unused: Vec<BlockId> = self
            .free
            .iter()
            .chain(self.cached.values())
            .copied()
            .collect();
        unused.sort_unstable();
        let expected: Vec<BlockId> = (0..num_users.len() as u32)
            .map(BlockId)
            .filter(|block_id| num_users[block_id.0 as usize] == 0)
            .collect();
        assert_eq!(
            unused, expected,
            "a block without a user is free or cached, and only once"
        );
        for (released_at, block_id) in &self.cached {
            assert!(
                registered.contains(block_id),
                "a cached block is registered"
            );
            assert_eq!(self.released_at[block_id.0 as usize], *released_at);
        }
        for block_id in &self.free {
            assert!(
                !registered.contains(block_id),
                "a free block is not registered"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Parent = Parent {
        salt: 0,
        node_id: NodeId::ROOT,
    };

    /// A pool of four blocks of one token each, in which blocks 0, 1, 2 are the cached prefix [10, 11, 12].
    fn pool_with_prefix() -> BlockPool {
        let mut pool = BlockPool::new(4, 1);
        let table: Vec<BlockId> = (0..3).map(|_| pool.allocate()).collect();
        let mut parent = ROOT;
        for (token, &block_id) in [10, 11, 12].iter().zip(&table) {
            parent.node_id = pool.register(parent, &[*token], block_id).node_id;
        }
        pool.release(&table);
        pool
    }

    #[test]
    fn free_blocks_are_given_before_cached_ones() {
        let mut pool = pool_with_prefix();
        assert_eq!(pool.allocate(), BlockId(3));
        assert_eq!(pool.num_evictions(), 0);
        assert_eq!(pool.find_prefix(0, &[10, 11, 12]).len(), 3);
    }

    #[test]
    fn the_end_of_a_prefix_is_evicted_before_its_beginning() {
        let mut pool = pool_with_prefix();
        pool.allocate();
        assert_eq!(pool.allocate(), BlockId(2));
        assert_eq!(pool.find_prefix(0, &[10, 11, 12]).len(), 2);
        assert_eq!(pool.num_evictions(), 1);
    }

    #[test]
    fn a_block_that_was_used_again_is_evicted_later() {
        let mut pool = pool_with_prefix();
        pool.take(BlockId(2));
        pool.release(&[BlockId(2)]);
        pool.allocate();
        assert_eq!(pool.allocate(), BlockId(1));
    }

    #[test]
    fn a_cached_block_with_a_user_is_not_available() {
        let mut pool = pool_with_prefix();
        let nodes = pool.find_prefix(0, &[10]);
        assert_eq!(pool.num_unused(&nodes), 1);
        pool.take(BlockId(0));
        pool.take(BlockId(0));
        assert_eq!(pool.num_unused(&nodes), 0);
        assert_eq!(pool.num_available(), 3);
        pool.release(&[BlockId(0)]);
        assert_eq!(pool.num_available(), 3);
        pool.check(&[1, 0, 0, 0]);
    }

    #[test]
    fn a_forgotten_prefix_is_free_except_for_what_is_used() {
        let mut pool = pool_with_prefix();
        pool.take(BlockId(0));
        pool.forget_prefix(0, &[10, 11]);
        assert_eq!((pool.num_free(), pool.num_cached()), (2, 1));
        assert!(pool.find_prefix(0, &[10]).is_empty());
        pool.release(&[BlockId(0)]);
        assert_eq!((pool.num_free(), pool.num_cached()), (3, 1));
    }
}
