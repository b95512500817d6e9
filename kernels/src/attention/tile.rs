//! Where the keys and values of a tile are. Slots that the sequence did not write count as zero, whatever an earlier sequence
//! left there: what is weighted with zero must be finite.

use super::workspace::{CHUNKS, Workspace, chunk_pairs};
use super::{Attend, TILE, Task};
use crate::kv_layout::{CHUNK, head_offset};
use crate::simd::LANES;

/// Chunks of keys and of values, as pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) keys: [*const u32; CHUNKS],
    pub(super) values: [*const u32; CHUNKS],
    /// From one pair of slots to the next.
    pub(super) value_stride: usize,
}

impl Tile {
    /// The tile of the keys from `first` on. Copies values that cannot be read where they are.
    #[inline(always)]
    pub(super) unsafe fn at(attend: &Attend, task: &Task, space: &Workspace, first: usize) -> Self {
        let is_padded = !attend.head_dim.is_multiple_of(LANES);
        let mut tile = Self::in_place(attend, task, space, first);
        for chunk in 0..CHUNKS {
            let start = first + chunk * CHUNK;
            let count = task.kv_len.saturating_sub(start).min(CHUNK);
            if count > 0 && (is_padded || count < CHUNK) {
                let copy = space.values.add(chunk * chunk_pairs(attend.head_dim));
                copy_values(tile.values[chunk], copy, count, attend.head_dim);
                tile.values[chunk] = copy;
            }
        }
        if is_padded {
            tile.value_stride = attend.head_dim.next_multiple_of(LANES);
        }
        tile
    }

    /// Without copies, to ask memory for.
    #[inline(always)]
    pub(super) unsafe fn in_place(
        attend: &Attend,
        task: &Task,
        space: &Workspace,
        first: usize,
    ) -> Self {
        let table = attend
            .rows
            .block_tables
            .add(task.row * attend.rows.max_blocks);
        let mut tile = Self {
            keys: [space.zeros; CHUNKS],
            values: [space.zeros; CHUNKS],
            value_stride: attend.head_dim,
        };
        for chunk in 0..CHUNKS {
            let position = first + chunk * CHUNK;
            if position < task.kv_len {
                let block = *table.add(position / attend.block_size) as usize;
                let slot = block * attend.block_size + position % attend.block_size;
                let size = (attend.num_kv_heads, attend.head_dim);
                let offset = head_offset(slot, task.kv_head, size);
                tile.keys[chunk] = attend.keys.add(offset).cast();
                tile.values[chunk] = attend.values.add(offset).cast();
            }
        }
        tile
    }
}

const _: () = assert!(TILE == CHUNKS * CHUNK);

/// The values of the first `count` slots of a chunk, with zeros up to whole vectors and for all other slots.
#[inline(always)]
unsafe fn copy_values(from: *const u32, to: *mut u32, count: usize, head_dim: usize) {
    let columns = head_dim.next_multiple_of(LANES);
    for pair in 0..CHUNK / 2 {
        let kept = match count.saturating_sub(2 * pair) {
            0 => 0,
            1 => 0xffff,
            _ => u32::MAX,
        };
        let (from, to) = (from.add(pair * head_dim), to.add(pair * columns));
        for column in 0..head_dim {
            *to.add(column) = *from.add(column) & kept;
        }
        for column in head_dim..columns {
            *to.add(column) = 0;
        }
    }
}
