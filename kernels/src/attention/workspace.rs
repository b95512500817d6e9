//! The memory of one task of attention: parts of its thread's scratch, sized by its rows and the head.

use super::{MAX_ROWS, TILE};
use crate::buffer::Scratch;
use crate::packed::PANEL;
use crate::products::{Bf16Products, Products};
use crate::simd::LANES;

/// What a task works on, in its thread's scratch memory.
pub(super) struct Workspace {
    /// Packed, scaled query rows.
    pub(super) queries: *mut u8,
    pub(super) query_bytes: usize,
    /// Two panels: [D / 2 pairs][PANEL keys] each.
    pub(super) keys: *mut u32,
    pub(super) key_panel_bytes: usize,
    /// Panels of columns: [TILE / 2 pairs of keys][PANEL columns] each.
    pub(super) values: *mut u32,
    /// Scores of one product, [MAX_ROWS][TILE].
    pub(super) scores: *mut f32,
    /// Their exponentials, packed.
    pub(super) weights: *mut u8,
    /// [rows][columns], the sums so far.
    pub(super) sums: *mut f32,
    /// [rows], the highest score and the sum of exponentials so far.
    pub(super) highest: *mut f32,
    pub(super) total: *mut f32,
    /// A key or value of nobody.
    pub(super) zeros: *mut u16,
    pub(super) num_columns: usize,
}

pub(super) const VALUE_PANEL_BYTES: usize = TILE / 2 * PANEL * 4;

impl Workspace {
    pub(super) unsafe fn new(scratch: &mut Scratch, num_rows: usize, head_dim: usize) -> Self {
        let query_bytes = Bf16Products::row_bytes(head_dim);
        let key_panel_bytes = head_dim.div_ceil(2) * PANEL * 4;
        let num_columns = head_dim.next_multiple_of(PANEL);
        let row_floats = num_rows.next_multiple_of(LANES) * 4;
        let sizes = [
            num_rows * query_bytes,
            2 * key_panel_bytes,
            num_columns / PANEL * VALUE_PANEL_BYTES,
            MAX_ROWS * TILE * 4,
            MAX_ROWS * Bf16Products::row_bytes(TILE),
            num_rows * num_columns * 4,
            row_floats,
            row_floats,
            head_dim * 2,
        ];
        let mut next: *mut u8 = scratch.at_least(sizes.iter().sum()).as_ptr();
        let parts = sizes.map(|size| {
            let part = next;
            next = next.add(size);
            part
        });
        parts[8].write_bytes(0, head_dim * 2);
        Self {
            queries: parts[0],
            query_bytes,
            keys: parts[1].cast(),
            key_panel_bytes,
            values: parts[2].cast(),
            scores: parts[3].cast(),
            weights: parts[4],
            sums: parts[5].cast(),
            highest: parts[6].cast(),
            total: parts[7].cast(),
            zeros: parts[8].cast(),
            num_columns,
        }
    }
}
