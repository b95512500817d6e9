//! The memory of one task of attention: parts of its thread's scratch, sized by its rows and the head.

use super::TILE;
use super::state::State;
use crate::buffer::Scratch;
use crate::kv_layout::CHUNK;
use crate::products::{Bf16Products, Products};
use crate::simd::LANES;

/// Most rows of a product.
pub(super) const MAX_ROWS: usize = 12;
pub(super) const CHUNKS: usize = TILE / CHUNK;

/// What a task works on, in its thread's scratch memory.
#[derive(Clone, Copy)]
pub(super) struct Workspace {
    /// Packed, scaled query rows.
    pub(super) queries: *mut u8,
    pub(super) query_bytes: usize,
    /// Weights of one product, [MAX_ROWS][TILE], packed.
    pub(super) weights: *mut u8,
    /// A query row, scaled.
    pub(super) scaled: *mut f32,
    /// Values of a tile that cannot be read where they are, a chunk after the other.
    pub(super) values: *mut u32,
    /// A chunk of nobody.
    pub(super) zeros: *mut u32,
    /// Of the segment at hand.
    pub(super) current: State,
    /// Of the segments before.
    pub(super) joined: State,
}

impl Workspace {
    pub(super) unsafe fn new(scratch: &mut Scratch, num_rows: usize, head_dim: usize) -> Self {
        let query_bytes = Bf16Products::row_bytes(head_dim);
        let chunk_bytes = chunk_pairs(head_dim) * 4;
        let state_bytes = (State::num_floats(num_rows, head_dim) * 4).next_multiple_of(64);
        let sizes = [
            num_rows * query_bytes,
            MAX_ROWS * Bf16Products::row_bytes(TILE),
            head_dim.next_multiple_of(LANES) * 4,
            CHUNKS * chunk_bytes,
            chunk_bytes,
            state_bytes,
            state_bytes,
        ];
        let mut next: *mut u8 = scratch.at_least(sizes.iter().sum()).as_ptr();
        let parts = sizes.map(|size| {
            let part = next;
            next = next.add(size);
            part
        });
        parts[4].write_bytes(0, chunk_bytes);
        Self {
            queries: parts[0],
            query_bytes,
            weights: parts[1],
            scaled: parts[2].cast(),
            values: parts[3].cast(),
            zeros: parts[4].cast(),
            current: State::new(parts[5].cast(), num_rows, head_dim),
            joined: State::new(parts[6].cast(), num_rows, head_dim),
        }
    }
}

/// Pairs of a chunk of one head, with its columns padded to whole vectors.
pub(super) fn chunk_pairs(head_dim: usize) -> usize {
    CHUNK / 2 * head_dim.next_multiple_of(LANES)
}
