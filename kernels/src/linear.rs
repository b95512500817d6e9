//! Products of activations with packed weights: `y = x W^T`, from one row to thousands with the same weights.
//!
//! Every sum is taken in one order, whatever the number of rows or threads, so that a row's result does not depend on what
//! else is in the batch.

use crate::buffer::Scratch;
use crate::packed::{PANEL, Packed, Shape, WeightFormat};
use crate::pool::Pool;
use crate::products::{Bf16Products, Products, Tile, with_count};
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
        WeightFormat::Int8 => {
            multiply_with::<QuantizedProducts<Int8>>(pool, scratch, weights, activations)
        }
        WeightFormat::Int4 => {
            multiply_with::<QuantizedProducts<Int4>>(pool, scratch, weights, activations)
        }
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
        dispatch(MultiplyPanels::<P> {
            weights,
            activations,
            packed_rows,
            panels,
            products: Default::default(),
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

struct MultiplyPanels<'a, P> {
    weights: &'a Packed,
    activations: Activations,
    packed_rows: PackedRows,
    panels: std::ops::Range<usize>,
    products: std::marker::PhantomData<P>,
}

impl<P: Products> Kernel for MultiplyPanels<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            // Two panels read more weights for each activation; with one, more rows share the weights that were read.
            let is_pair = panel + 1 < self.panels.end;
            if is_pair {
                self.all_rows::<S, 2>(panel);
            } else {
                self.all_rows::<S, 1>(panel);
            }
            panel += if is_pair { 2 } else { 1 };
        }
    }
}

impl<P: Products> MultiplyPanels<'_, P> {
    #[inline(always)]
    unsafe fn all_rows<S: Simd, const N: usize>(&self, panel: usize) {
        let num_rows = self.activations.num_rows;
        let mut row = 0;
        while row < num_rows {
            let count = (num_rows - row).min(P::rows::<S>(N));
            with_count!(count, N, |M| self.some_rows::<S, M, N>(panel, row));
            row += count;
        }
    }

    #[inline(always)]
    unsafe fn some_rows<S: Simd, const M: usize, const N: usize>(&self, panel: usize, row: usize) {
        let sums = P::tile::<S, M, N>(Tile {
            rows: self.packed_rows.start.add(row * self.packed_rows.row_bytes),
            row_bytes: self.packed_rows.row_bytes,
            panel: self.weights.panel(panel),
            panel_bytes: self.weights.panel_bytes(),
            in_features: self.weights.in_features,
        });
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
