//! Products of activations with packed weights: `y = x W^T`, from one row to thousands with the same weights.
//!
//! Every sum is taken in one order, whatever the number of rows or threads, so that a row's result does not depend on what
//! else is in the batch.

use std::cell::RefCell;

use crate::bf16;
use crate::buffer::Scratch;
use crate::compact::Escape;
use crate::packed::{PANEL, Packed, Shape, WeightFormat};
use crate::pool::Pool;
use crate::products::{
    Ahead, Bf16Products, CompactProducts, Products, Tile, VECTORS, expand_panel, with_count,
};
use crate::quantized::{Int4, Int8, QuantizedProducts};
use crate::simd::{Kernel, LANES, Simd, dispatch, silu};

/// Activations in and out, row-major, in float32.
#[derive(Clone, Copy)]
pub struct Activations {
    pub input: *const f32,
    pub input_stride: usize,
    /// One for each column of the panels (see `Packed`), zero where a panel has no column; or null.
    pub bias: *const f32,
    pub output: *mut f32,
    pub output_stride: usize,
    pub num_rows: usize,
}

// SAFETY: the rows are shared out so that no two tasks write the same element.
unsafe impl Sync for Activations {}

/// Rows packed by one task, so that packing is shared out too.
const PACKED_ROWS: usize = 16;

/// output[r] = input[r] W^T + bias, or for gated weights silu(gate) * up.
///
/// # Safety
/// The pointers hold what `Activations` says, for the sizes of `weights`.
pub unsafe fn multiply(
    pool: &mut Pool,
    scratch: &mut Scratch,
    weights: &Packed,
    activations: Activations,
) {
    match weights.format {
        WeightFormat::Bf16 => multiply_with::<Bf16Products>(pool, scratch, weights, activations),
        WeightFormat::Compact if dispatch(IsExpanded(activations.num_rows)) => {
            multiply_with::<Bf16Products>(pool, scratch, weights, activations)
        }
        WeightFormat::Compact => {
            multiply_with::<CompactProducts>(pool, scratch, weights, activations)
        }
        WeightFormat::Int8 => {
            multiply_with::<QuantizedProducts<Int8>>(pool, scratch, weights, activations)
        }
        WeightFormat::Int4 => {
            multiply_with::<QuantizedProducts<Int4>>(pool, scratch, weights, activations)
        }
    }
}

/// Whether so many rows multiply compact weights that were expanded once for all of them.
struct IsExpanded(usize);

impl Kernel for IsExpanded {
    type Output = bool;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> bool {
        self.0 > S::COMPACT_ROWS
    }
}

unsafe fn multiply_with<P: Products>(
    pool: &mut Pool,
    scratch: &mut Scratch,
    weights: &Packed,
    activations: Activations,
) {
    let row_bytes = P::row_bytes(weights.in_features);
    let packed_rows = PackedRows {
        start: scratch.at_least(row_bytes * activations.num_rows).as_ptr(),
        row_bytes,
    };
    let num_packing_tasks = activations.num_rows.div_ceil(PACKED_ROWS);
    pool.run(num_packing_tasks, &|task| {
        let rows = task * PACKED_ROWS..((task + 1) * PACKED_ROWS).min(activations.num_rows);
        dispatch(PackRows::<P> {
            activations,
            rows,
            in_features: weights.in_features,
            packed_rows,
            products: Default::default(),
        });
    });
    // A unit gives finished outputs.
    let panels_per_unit = if weights.shape == Shape::Gated { 2 } else { 1 };
    let num_units = weights.num_panels / panels_per_unit;
    let num_tasks = num_units.min(pool.num_threads() * 4);
    pool.run(num_tasks, &|task| {
        let units = num_units * task / num_tasks..num_units * (task + 1) / num_tasks;
        let panels = units.start * panels_per_unit..units.end * panels_per_unit;
        EXPANDED.with_borrow_mut(|expanded| {
            dispatch(MultiplyPanels::<P> {
                weights,
                activations,
                packed_rows,
                panels,
                expanded: expanded.at_least(2 * expanded_bytes(weights)).as_ptr(),
                products: Default::default(),
            })
        });
    });
}

#[derive(Clone, Copy)]
struct PackedRows {
    start: *mut u8,
    row_bytes: usize,
}

// SAFETY: as `Activations`.
unsafe impl Sync for PackedRows {}

struct PackRows<P> {
    activations: Activations,
    rows: std::ops::Range<usize>,
    in_features: usize,
    packed_rows: PackedRows,
    products: std::marker::PhantomData<P>,
}

impl<P: Products> Kernel for PackRows<P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for row in self.rows {
            let from = self
                .activations
                .input
                .add(row * self.activations.input_stride);
            P::pack_row::<S>(
                from,
                self.in_features,
                self.packed_rows.start.add(row * self.packed_rows.row_bytes),
            );
        }
    }
}

thread_local! {
    /// Compact panels, expanded.
    static EXPANDED: RefCell<Scratch> = RefCell::default();
}

/// Bytes of a panel that was expanded.
fn expanded_bytes(weights: &Packed) -> usize {
    weights.in_features.div_ceil(2) * PANEL * 4
}

struct MultiplyPanels<'a, P> {
    weights: &'a Packed,
    activations: Activations,
    packed_rows: PackedRows,
    panels: std::ops::Range<usize>,
    /// Room for two of them.
    expanded: *mut u8,
    products: std::marker::PhantomData<P>,
}

impl<P: Products> Kernel for MultiplyPanels<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            // Two panels read more weights for each activation; with one, more rows share the weights that were read.
            let count = (self.panels.end - panel).min(2);
            let source = self.source::<S>(panel..panel + count);
            if count == 2 {
                self.all_rows::<S, 2>(panel, source);
            } else {
                self.all_rows::<S, 1>(panel, source);
            }
            panel += count;
        }
    }
}

/// Some rows with one or two panels.
#[derive(Clone, Copy)]
struct Pass {
    panel: usize,
    /// Where the weights are, and the bytes of a panel.
    source: (*const u8, usize),
    row: usize,
    ahead: Ahead,
}

impl<P: Products> MultiplyPanels<'_, P> {
    /// Where the products read some panels, and the bytes of each.
    #[inline(always)]
    unsafe fn source<S: Simd>(&self, panels: std::ops::Range<usize>) -> (*const u8, usize) {
        let weights = self.weights;
        if weights.format != WeightFormat::Compact
            || !IsExpanded(self.activations.num_rows).run::<S>()
        {
            return (weights.panel(panels.start), weights.panel_bytes());
        }
        let panel_bytes = expanded_bytes(weights);
        let start = self.expanded;
        for (n, panel) in panels.enumerate() {
            expand_panel::<S>(
                weights.panel(panel),
                weights.in_features,
                &weights.exponents,
                start.add(n * panel_bytes).cast(),
            );
        }
        (start, panel_bytes)
    }

    #[inline(always)]
    unsafe fn all_rows<S: Simd, const N: usize>(&self, panel: usize, source: (*const u8, usize)) {
        let num_rows = self.activations.num_rows;
        let num_passes = num_rows.div_ceil(P::rows::<S>(N));
        for pass in 0..num_passes {
            // Passes of about equal size.
            let rows = num_rows * pass / num_passes..num_rows * (pass + 1) / num_passes;
            let at = Pass {
                panel,
                source,
                row: rows.start,
                ahead: self.ahead::<N>(panel, (pass, num_passes)),
            };
            with_count!(rows.len(), N, |M| self.some_rows::<S, M, N>(at));
        }
    }

    /// What to ask for in one of the passes over some panels, so that the next ones are there when the passes are over.
    #[inline(always)]
    fn ahead<const N: usize>(&self, panel: usize, (pass, num_passes): (usize, usize)) -> Ahead {
        if num_passes == 1 {
            return Ahead::Along;
        }
        let next = panel + N..(panel + 2 * N).min(self.panels.end);
        if next.is_empty() {
            return Ahead::Nothing;
        }
        let bytes = next.len() * self.weights.panel_bytes() / num_passes;
        Ahead::Next {
            start: self.weights.panel(next.start).wrapping_add(pass * bytes),
            step: bytes.div_ceil(P::num_units(self.weights.in_features)),
        }
    }

    #[inline(always)]
    unsafe fn some_rows<S: Simd, const M: usize, const N: usize>(&self, at: Pass) {
        let Pass {
            panel,
            source,
            row,
            ahead,
        } = at;
        let mut sums = P::tile::<S, M, N>(Tile {
            rows: self.packed_rows.start.add(row * self.packed_rows.row_bytes),
            row_bytes: self.packed_rows.row_bytes,
            panel: source.0,
            panel_bytes: source.1,
            in_features: self.weights.in_features,
            exponents: &self.weights.exponents,
            ahead,
        });
        for n in 0..N {
            let escapes = self.weights.escapes(panel + n);
            if !escapes.is_empty() {
                for m in 0..M {
                    sums[m][n] = self.add_escapes::<S>(sums[m][n], escapes, row + m);
                }
            }
        }
        for m in 0..M {
            let panels = sums[m];
            if N == 2 && self.weights.shape == Shape::Gated {
                let block = panel / 2;
                let num_blocks = self.weights.num_panels / 2;
                let gate = self.add_bias::<S>(panels[0], block * PANEL);
                let up = self.add_bias::<S>(panels[N - 1], (num_blocks + block) * PANEL);
                let first = S::mul(silu::<S>(gate[0]), up[0]);
                let second = S::mul(silu::<S>(gate[1]), up[1]);
                self.store::<S>(row + m, block, [first, second]);
            } else {
                for n in 0..N {
                    let sums = self.add_bias::<S>(panels[n], (panel + n) * PANEL);
                    self.store::<S>(row + m, panel + n, sums);
                }
            }
        }
    }

    /// Adds the products of the weights that are not in their panel.
    #[inline(always)]
    unsafe fn add_escapes<S: Simd>(
        &self,
        sums: [S::F32; VECTORS],
        escapes: &[Escape],
        row: usize,
    ) -> [S::F32; VECTORS] {
        let Activations {
            input,
            input_stride,
            ..
        } = self.activations;
        let mut columns = [0_f32; PANEL];
        S::store(columns.as_mut_ptr(), sums[0]);
        S::store(columns.as_mut_ptr().add(LANES), sums[1]);
        for escape in escapes {
            let activation = *input.add(row * input_stride + escape.input as usize);
            columns[escape.column as usize] += activation * bf16::to_f32(escape.weight);
        }
        [
            S::load(columns.as_ptr()),
            S::load(columns.as_ptr().add(LANES)),
        ]
    }

    #[inline(always)]
    unsafe fn add_bias<S: Simd>(&self, sums: [S::F32; 2], first: usize) -> [S::F32; 2] {
        let bias = self.activations.bias;
        if bias.is_null() {
            return sums;
        }
        [
            S::add(sums[0], S::load(bias.add(first))),
            S::add(sums[1], S::load(bias.add(first + LANES))),
        ]
    }

    /// Writes the outputs of one panel.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, row: usize, panel: usize, values: [S::F32; 2]) {
        let column = panel * PANEL;
        let output = self
            .activations
            .output
            .add(row * self.activations.output_stride + column);
        let count = (self.weights.out_features - column).min(PANEL);
        if count == PANEL {
            S::store(output, values[0]);
            S::store(output.add(LANES), values[1]);
            return;
        }
        let mut padded = [0_f32; PANEL];
        S::store(padded.as_mut_ptr(), values[0]);
        S::store(padded.as_mut_ptr().add(LANES), values[1]);
        std::ptr::copy_nonoverlapping(padded.as_ptr(), output, count);
    }
}
