//! Which block holds which tokens: a trie of full blocks, by content.
//!
//! Content is compared in full and never by a hash alone, so two prompts cannot be mistaken for each other. It only names
//! blocks; who uses or gives away a block is decided in `blocks.rs`. Nothing here is iterated over, so the hash map cannot
//! influence a plan.

use std::collections::HashMap;
use std::sync::Arc;

use crate::plan::{BlockId, TokenId};

/// A prefix that is or was cached. Never reused, so a node whose parent was removed can be found by nobody, and ages out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(u64);

impl NodeId {
    /// The empty prefix.
    pub(crate) const ROOT: Self = Self(0);
}

/// The place of a block: the prefix before it, and whose cache it is in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parent {
    pub(crate) salt: u64,
    pub(crate) node_id: NodeId,
}

/// A cached block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) node_id: NodeId,
    pub(crate) block_id: BlockId,
}

pub(crate) struct PrefixCache {
    /// Key: salt and parent as two words each, then the block's tokens. Having the salt in every key spares a root per salt.
    nodes: HashMap<Arc<[u32]>, Node>,
    /// By block.
    keys: Vec<Option<Arc<[u32]>>>,
    last_node_id: u64,
    /// The key of the lookup in progress, kept so that a lookup allocates nothing.
    key: Vec<u32>,
}

impl PrefixCache {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self {
            nodes: HashMap::new(),
            keys: vec![None; num_blocks],
            last_node_id: NodeId::ROOT.0,
            key: Vec::new(),
        }
    }

    pub(crate) fn get(&mut self, parent: Parent, tokens: &[TokenId]) -> Option<Node> {
        self.set_key(parent, tokens);
        self.nodes.get(self.key.as_slice()).copied()
    }

    /// The node of this content. If there was none, it is now `block_id`, whatever that was registered as before; otherwise the one
    /// that was first stays.
    pub(crate) fn get_or_insert(
        &mut self,
        parent: Parent,
        tokens: &[TokenId],
        block_id: BlockId,
    ) -> Node {
        if let Some(node) = self.get(parent, tokens) {
            return node;
        }
        self.remove(block_id);
        self.last_node_id += 1;
        let node = Node {
            node_id: NodeId(self.last_node_id),
            block_id,
        };
        let key: Arc<[u32]> = self.key.as_slice().into();
        self.keys[block_id.0 as usize] = Some(Arc::clone(&key));
        self.nodes.insert(key, node);
        node
    }

    pub(crate) fn contains(&self, block_id: BlockId) -> bool {
        self.keys[block_id.0 as usize].is_some()
    }

    /// Forgets the block's content, if it was registered.
    pub(crate) fn remove(&mut self, block_id: BlockId) {
        if let Some(key) = self.keys[block_id.0 as usize].take() {
            self.nodes.remove(&key);
        }
    }

    fn set_key(&mut self, parent: Parent, tokens: &[TokenId]) {
        let words = |value: u64| [value as u32, (value >> 32) as u32];
        self.key.clear();
        self.key.extend(words(parent.salt));
        self.key.extend(words(parent.node_id.0));
        self.key.extend(tokens);
    }
}

#[cfg(test)]
impl PrefixCache {
    /// The registered blocks in order, after checking that both directories agree.
    pub(crate) fn checked_blocks(&self) -> Vec<BlockId> {
        let blocks: Vec<BlockId> = (0..self.keys.len() as u32)
            .map(BlockId)
            .filter(|&block_id| self.contains(block_id))
            .collect();
        assert_eq!(
            self.nodes.len(),
            blocks.len(),
            "one node per registered block"
        );
        for block_id in &blocks {
            let key = self.keys[block_id.0 as usize].as_ref().unwrap();
            assert_eq!(self.nodes[key].block_id, *block_id);
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Parent = Parent {
        salt: 0,
        node_id: NodeId::ROOT,
    };

    fn below(node: Node) -> Parent {
        Parent {
            salt: 0,
            node_id: node.node_id,
        }
    }

    #[test]
    fn the_same_tokens_after_another_prefix_are_another_node() {
        let mut cache = PrefixCache::new(3);
        let first = cache.get_or_insert(ROOT, &[1, 2], BlockId(0));
        let second = cache.get_or_insert(below(first), &[1, 2], BlockId(1));
        assert_ne!(first.node_id, second.node_id);
        assert_eq!(cache.get(below(first), &[1, 2]), Some(second));
        assert_eq!(cache.get(below(second), &[1, 2]), None);
    }

    #[test]
    fn a_salt_hides_the_same_tokens() {
        let mut cache = PrefixCache::new(1);
        cache.get_or_insert(ROOT, &[1, 2], BlockId(0));
        let other = Parent { salt: 1, ..ROOT };
        assert_eq!(cache.get(other, &[1, 2]), None);
    }

    #[test]
    fn the_first_block_with_a_content_stays() {
        let mut cache = PrefixCache::new(2);
        let first = cache.get_or_insert(ROOT, &[1, 2], BlockId(0));
        assert_eq!(cache.get_or_insert(ROOT, &[1, 2], BlockId(1)), first);
        assert!(!cache.contains(BlockId(1)));
    }

    #[test]
    fn a_child_of_a_removed_node_is_not_found_when_the_content_comes_back() {
        let mut cache = PrefixCache::new(3);
        let parent = cache.get_or_insert(ROOT, &[1, 2], BlockId(0));
        cache.get_or_insert(below(parent), &[3, 4], BlockId(1));
        cache.remove(BlockId(0));
        let again = cache.get_or_insert(ROOT, &[1, 2], BlockId(2));
        assert_eq!(cache.get(below(again), &[3, 4]), None);
    }

    #[test]
    fn a_block_that_is_registered_anew_loses_its_old_name() {
        let mut cache = PrefixCache::new(1);
        cache.get_or_insert(ROOT, &[1, 2], BlockId(0));
        cache.get_or_insert(ROOT, &[3, 4], BlockId(0));
        assert_eq!(cache.get(ROOT, &[1, 2]), None);
        assert_eq!(cache.checked_blocks(), [BlockId(0)]);
    }
}
