//! Keys and values of a tile, from the blocks of the cache into the panels that products read. Never reads a slot beyond the
//! sequence.

use super::workspace::{VALUE_PANEL_BYTES, Workspace};
use super::{Attend, TILE, Task};
use crate::packed::PANEL;
use crate::simd::{LANES, Simd};

/// Where the keys (or values, which lie the same way) of a tile begin, in elements. None beyond the sequence: what a block
/// holds there belongs to nobody.
#[inline(always)]
pub(super) unsafe fn tile_offsets(
    attend: &Attend,
    task: &Task,
    (tile, kv_len): (usize, usize),
) -> [Option<usize>; TILE] {
    let table = attend
        .rows
        .block_tables
        .add(task.row * attend.rows.max_blocks);
    let (mut block, mut within) = (tile / attend.block_size, tile % attend.block_size);
    let mut offsets = [None; TILE];
    for offset in offsets.iter_mut().take(kv_len - tile) {
        let slot = *table.add(block) as usize * attend.block_size + within;
        *offset = Some((slot * attend.num_kv_heads + task.kv_head) * attend.head_dim);
        within += 1;
        if within == attend.block_size {
            (block, within) = (block + 1, 0);
        }
    }
    offsets
}

/// Keys of a tile as panels of pairs, zero beyond the sequence.
#[inline(always)]
pub(super) unsafe fn pack_keys<S: Simd>(
    attend: &Attend,
    space: &Workspace,
    offsets: &[Option<usize>; TILE],
) {
    let head_dim = attend.head_dim;
    let row = |key: usize| {
        offsets[key].map_or(space.zeros.cast_const(), |offset| attend.keys.add(offset))
    };
    let whole = head_dim / (2 * LANES) * LANES; // pairs
    for first in (0..TILE).step_by(LANES) {
        let rows: [*const u16; LANES] = std::array::from_fn(|lane| row(first + lane));
        let to = space
            .keys
            .byte_add(first / PANEL * space.key_panel_bytes)
            .add(first % PANEL);
        for pair in (0..whole).step_by(LANES) {
            S::transpose_pairs(&rows, 2 * pair, to.add(pair * PANEL), PANEL);
        }
        for pair in whole..head_dim.div_ceil(2) {
            for (lane, row) in rows.into_iter().enumerate() {
                let second = if 2 * pair + 1 < head_dim {
                    *row.add(2 * pair + 1)
                } else {
                    0
                };
                *to.add(pair * PANEL + lane) =
                    u32::from(*row.add(2 * pair)) | u32::from(second) << 16;
            }
        }
    }
}

/// Values of a tile as panels of pairs of keys, zero beyond the sequence.
#[inline(always)]
pub(super) unsafe fn pack_values<S: Simd>(
    attend: &Attend,
    space: &Workspace,
    offsets: &[Option<usize>; TILE],
) {
    let head_dim = attend.head_dim;
    let row = |key: usize| {
        offsets[key].map_or(space.zeros.cast_const(), |offset| attend.values.add(offset))
    };
    for pair in 0..TILE / 2 {
        let (first, second) = (row(2 * pair), row(2 * pair + 1));
        let to = |column: usize| {
            space
                .values
                .byte_add(column / PANEL * VALUE_PANEL_BYTES)
                .add(pair * PANEL + column % PANEL)
        };
        let whole = head_dim / LANES * LANES;
        for column in (0..whole).step_by(LANES) {
            S::interleave(first.add(column), second.add(column), to(column));
        }
        for column in whole..space.num_columns {
            let is_there = column < head_dim;
            *to(column) = if is_there {
                u32::from(*first.add(column)) | u32::from(*second.add(column)) << 16
            } else {
                0
            };
        }
    }
}
