//! Products of activations with packed weights: `y = x W^T`, from one row to thousands with the same weights.
//!
//! Every sum is taken in one order, whatever the number of rows or threads, so that a row's result does not depend on what
//! else is in the batch.

use std::cell::RefCell;
use std::ops::Range;

use crate::bf16;
use crate::buffer::Scratch;
use crate::compact::{Escape, expanded_bytes};
use crate::packed::{PANEL, Packed, Shape, WeightFormat};
use crate::pool::{self, Pool};
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

/// Small enough that a thread that was held up keeps the others waiting for little.
const TASKS_PER_THREAD: usize = 4;
/// Rows packed by one task, so that packing is shared out too.
const PACKED_ROWS: usize = 16;

/// output[r] = input[r] W^T + bias, or for gated weights silu(gate) * up.
///
/// # Safety
/// The pointers hold what `Activations` says, for the sizes of `weights`.
pub unsafe fn multiply(
    pool: &mut Pool,
    scratch: &mut Scratch,
    weights: Weights,
    activations: Activations,
) {
    match weights.now.format {
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

/// What is multiplied with.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    pub now: &'a Packed,
    /// Those of the next product, if known: memory is asked for them when there is nothing left to ask for.
    pub next: Option<&'a Packed>,
}

impl<'a> Weights<'a> {
    pub fn of(now: &'a Packed) -> Self {
        Self { now, next: None }
    }
}

/// How the panels of a matrix are divided into tasks.
#[derive(Clone, Copy)]
struct Division {
    /// A unit gives finished outputs.
    panels_per_unit: usize,
    num_units: usize,
    num_tasks: usize,
}

impl Division {
    fn new(weights: &Packed, pool: &Pool) -> Self {
        let panels_per_unit = if weights.shape == Shape::Gated { 2 } else { 1 };
        let num_units = weights.num_panels / panels_per_unit;
        Self {
            panels_per_unit,
            num_units,
            num_tasks: num_units.min(pool.num_threads() * TASKS_PER_THREAD),
        }
    }

    fn panels(&self, task: usize) -> Range<usize> {
        let units = pool::share(self.num_units, task, self.num_tasks);
        units.start * self.panels_per_unit..units.end * self.panels_per_unit
    }
}

/// An address that memory is asked for.
#[derive(Clone, Copy)]
struct Asked(*const u8);

// SAFETY: nothing is read there.
unsafe impl Sync for Asked {}

/// Where the thread that has a task goes on reading: the task that follows, or at the end of what it has the first one that it
/// has of the next product.
fn after_task(pool: &Pool, weights: Weights, division: Division, task: usize) -> *const u8 {
    let is_last_of = |thread: &usize| pool.tasks_of(*thread, division.num_tasks).end == task + 1;
    let (packed, panel) = match (weights.next, (0..pool.num_threads()).find(is_last_of)) {
        (Some(next), Some(thread)) => {
            let division = Division::new(next, pool);
            let first = pool.tasks_of(thread, division.num_tasks).start;
            (next, division.panels(first).start)
        }
        _ => (weights.now, division.panels(task).end),
    };
    packed.panel(0).wrapping_add(panel * packed.panel_bytes())
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
    weights: Weights,
    activations: Activations,
) {
    let in_features = weights.now.in_features;
    let row_bytes = P::row_bytes(in_features);
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
            in_features,
            packed_rows,
            products: Default::default(),
        });
    });
    let division = Division::new(weights.now, pool);
    let tasks = division.num_tasks;
    let shared: &Pool = pool;
    let after: Vec<Asked> = (0..tasks)
        .map(|task| Asked(after_task(shared, weights, division, task)))
        .collect();
    pool.run(tasks, &|task| {
        EXPANDED.with_borrow_mut(|expanded| {
            dispatch(MultiplyPanels::<P> {
                weights: weights.now,
                activations,
                packed_rows,
                panels: division.panels(task),
                after: after[task].0,
                expanded: expanded.at_least(2 * expanded_bytes(in_features)).as_ptr(),
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
    rows: Range<usize>,
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

struct MultiplyPanels<'a, P> {
    weights: &'a Packed,
    activations: Activations,
    packed_rows: PackedRows,
    panels: Range<usize>,
    /// Where the thread goes on reading after the last of them.
    after: *const u8,
    /// Room for two of them.
    expanded: *mut u8,
    products: std::marker::PhantomData<P>,
}

impl<P: Products> Kernel for MultiplyPanels<'_, P> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let gated = self.weights.shape == Shape::Gated;
        for first in self.panels.clone().step_by(if gated { 2 } else { 1 }) {
            if gated {
                self.all_rows::<S, 2>(first);
            } else {
                self.all_rows::<S, 1>(first);
            }
        }
    }
}

/// Some rows with the panels of a unit.
#[derive(Clone, Copy)]
struct Pass {
    /// The first of them.
    panel: usize,
    /// Where the weights are, and the bytes of a panel.
    source: (*const u8, usize),
    row: usize,
    ahead: Ahead,
}

impl<P: Products> MultiplyPanels<'_, P> {
    #[inline(always)]
    unsafe fn is_expanded<S: Simd>(&self) -> bool {
        self.weights.format == WeightFormat::Compact
            && IsExpanded(self.activations.num_rows).run::<S>()
    }

    /// Where the products read some panels, and the bytes of each.
    #[inline(always)]
    unsafe fn source<S: Simd>(&self, panels: Range<usize>) -> (*const u8, usize) {
        let weights = self.weights;
        if !self.is_expanded::<S>() {
            return (weights.panel(panels.start), weights.panel_bytes());
        }
        let panel_bytes = expanded_bytes(weights.in_features);
        let start = self.expanded;
        for (n, panel) in panels.enumerate() {
            expand_panel::<S>(
                weights.panel(panel),
                weights.in_features,
                weights.exponents,
                start.add(n * panel_bytes).cast(),
            );
        }
        (start, panel_bytes)
    }

    /// All rows with `N` panels.
    #[inline(always)]
    unsafe fn all_rows<S: Simd, const N: usize>(&self, panel: usize) {
        let source = self.source::<S>(panel..panel + N);
        let num_rows = self.activations.num_rows;
        let num_passes = num_rows.div_ceil(P::rows::<S>(num_rows));
        for pass in 0..num_passes {
            // Passes of about equal size.
            let rows = pool::share(num_rows, pass, num_passes);
            let at = Pass {
                panel,
                source,
                row: rows.start,
                ahead: self.ahead::<S>(panel..panel + N, (pass, num_passes)),
            };
            with_count!(rows.len(), |M| self.some_rows::<S, M, N>(at));
        }
    }

    /// What to ask for in one of the passes over some panels, so that the next ones are there when the passes are over.
    #[inline(always)]
    unsafe fn ahead<S: Simd>(
        &self,
        panels: Range<usize>,
        (pass, num_passes): (usize, usize),
    ) -> Ahead {
        let after = if panels.end < self.panels.end {
            self.weights.panel(panels.end)
        } else {
            self.after
        };
        if num_passes == 1 && !self.is_expanded::<S>() {
            return Ahead::Along { after };
        }
        let bytes = panels.len() * self.weights.panel_bytes() / num_passes;
        Ahead::Next {
            start: after.wrapping_add(pass * bytes),
            step: bytes.div_ceil(P::num_units(self.weights.in_features)),
        }
    }

    /// What is asked for beside panel `n` of `N` in a pass.
    #[inline(always)]
    fn ahead_of_panel<const N: usize>(at: Pass, n: usize) -> Ahead {
        match at.ahead {
            Ahead::Along { .. } if n + 1 < N => Ahead::Along {
                after: at.source.0.wrapping_add((n + 1) * at.source.1),
            },
            Ahead::Next { .. } if n > 0 => Ahead::Nothing,
            ahead => ahead,
        }
    }

    #[inline(always)]
    unsafe fn some_rows<S: Simd, const M: usize, const N: usize>(&self, at: Pass) {
        let Pass {
            panel, source, row, ..
        } = at;
        let mut sums = [[[S::splat(0.0); VECTORS]; M]; N];
        for n in 0..N {
            sums[n] = P::tile::<S, M>(Tile {
                rows: self.packed_rows.start.add(row * self.packed_rows.row_bytes),
                row_bytes: self.packed_rows.row_bytes,
                panel: source.0.add(n * source.1),
                panel_bytes: source.1,
                in_features: self.weights.in_features,
                exponents: self.weights.exponents,
                ahead: Self::ahead_of_panel::<N>(at, n),
            });
        }
        for n in 0..N {
            let escapes = self.weights.escapes(panel + n);
            if !escapes.is_empty() {
                for m in 0..M {
                    sums[n][m] = self.add_escapes::<S>(sums[n][m], escapes, row + m);
                }
            }
        }
        for m in 0..M {
            if N == 2 {
                let block = panel / 2;
                let num_blocks = self.weights.num_panels / 2;
                let gate = self.add_bias::<S>(sums[0][m], block * PANEL);
                let up = self.add_bias::<S>(sums[N - 1][m], (num_blocks + block) * PANEL);
                let first = S::mul(silu::<S>(gate[0]), up[0]);
                let second = S::mul(silu::<S>(gate[1]), up[1]);
                self.store::<S>(row + m, block, [first, second]);
            } else {
                let sums = self.add_bias::<S>(sums[0][m], panel * PANEL);
                self.store::<S>(row + m, panel, sums);
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
