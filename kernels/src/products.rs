//! The innermost loops: a few rows of activations times a panel of weights, with the sums in registers.

use crate::compact::{self, Exponents};
use crate::packed::PANEL;
use crate::simd::{LANES, Simd};

/// Vectors of a panel.
pub const VECTORS: usize = PANEL / LANES;

/// Sums of M rows over a panel. Taken by index, because iterators by value make the compiler keep them in memory.
pub type Sums<F, const M: usize> = [[F; VECTORS]; M];

/// Where the operands of a tile are.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Packed rows of activations, `row_bytes` apart.
    pub rows: *const u8,
    pub row_bytes: usize,
    /// A packed panel of weights, and its size.
    pub panel: *const u8,
    pub panel_bytes: usize,
    pub in_features: usize,
    /// What the codes of compact weights mean.
    pub exponents: Exponents,
    pub ahead: Ahead,
}

/// What to ask memory for while a tile is computed. Without it, weights would arrive while nothing is multiplied, and
/// multiplying would be done while nothing arrives.
#[derive(Clone, Copy)]
pub enum Ahead {
    Nothing,
    /// Weights that are read once: those a little further on, which beyond the panel are those at `after`.
    Along {
        after: *const u8,
    },
    /// Weights that several tiles read: a part of the panels that come next, so many bytes for every unit of inputs.
    Next {
        start: *const u8,
        step: usize,
    },
}

impl Ahead {
    /// In bytes. Enough to cover the way to memory, and small beside the second cache.
    const DISTANCE: usize = 16 << 10;

    #[inline(always)]
    pub unsafe fn ask_next<S: Simd>(&self, unit: usize) {
        if let Self::Next { start, step } = *self {
            let start = start.wrapping_add(unit * step);
            S::prefetch(start);
            S::prefetch(start.wrapping_add(CACHE_LINE));
        }
    }

    /// The `len` bytes at `offset` of the panel are about to be read.
    #[inline(always)]
    pub unsafe fn ask_along<S: Simd>(&self, tile: &Tile, offset: usize, len: usize) {
        if let Self::Along { after } = *self {
            let offset = offset + Self::DISTANCE;
            let from = if offset < tile.panel_bytes {
                tile.panel.wrapping_add(offset)
            } else {
                after.wrapping_add(offset - tile.panel_bytes)
            };
            for line in (0..len).step_by(CACHE_LINE) {
                S::prefetch(from.wrapping_add(line));
            }
        }
    }
}

const CACHE_LINE: usize = 64;

/// A format of weights with the form of activations that it multiplies.
pub trait Products: Copy + Sync {
    /// Bytes of a packed row of activations on any instruction set, a multiple of a cache line.
    fn row_bytes(in_features: usize) -> usize;

    /// Steps of a tile along the inputs.
    fn num_units(in_features: usize) -> usize;

    /// How many of so many rows to take at once at most.
    fn rows<S: Simd>(num_rows: usize) -> usize;

    /// `from` holds `in_features` float32, `to` has `row_bytes` aligned to a cache line.
    unsafe fn pack_row<S: Simd>(from: *const f32, in_features: usize, to: *mut u8);

    unsafe fn tile<S: Simd, const M: usize>(tile: Tile) -> Sums<S::F32, M>;
}

#[derive(Clone, Copy)]
pub struct Bf16Products;

impl Products for Bf16Products {
    fn row_bytes(in_features: usize) -> usize {
        (in_features.next_multiple_of(LANES)) * 4
    }

    fn num_units(in_features: usize) -> usize {
        in_features.div_ceil(2)
    }

    #[inline(always)]
    fn rows<S: Simd>(_num_rows: usize) -> usize {
        S::ROWS
    }

    #[inline(always)]
    unsafe fn pack_row<S: Simd>(from: *const f32, in_features: usize, to: *mut u8) {
        let to: *mut S::Pair = to.cast();
        let whole = in_features / LANES * LANES;
        for input in (0..whole).step_by(LANES) {
            S::store_as_pairs(to.add(input / 2), S::load(from.add(input)));
        }
        for input in (whole..in_features).step_by(2) {
            let second = if input + 1 < in_features {
                *from.add(input + 1)
            } else {
                0.0
            };
            *to.add(input / 2) = S::pair(*from.add(input), second);
        }
        // What compact weights fill their last group with is zero, and must not meet anything else.
        for pair in in_features.div_ceil(2)..in_features.next_multiple_of(4) / 2 {
            *to.add(pair) = S::pair(0.0, 0.0);
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: Tile) -> Sums<S::F32, M> {
        let mut sums = [[S::splat(0.0); VECTORS]; M];
        for pair in 0..tile.in_features.div_ceil(2) {
            tile.ahead.ask_next::<S>(pair);
            (tile.ahead).ask_along::<S>(&tile, pair * PANEL * 4, PANEL * 4);
            let from = tile.panel.cast::<u32>().add(pair * PANEL);
            let mut weights = [S::load_pairs(from); VECTORS];
            for (v, vector) in weights.iter_mut().enumerate() {
                *vector = S::load_pairs(from.add(v * LANES));
            }
            for (m, row) in sums.iter_mut().enumerate() {
                let activations = tile.rows.add(m * tile.row_bytes).cast::<S::Pair>();
                for (sum, weights) in row.iter_mut().zip(weights) {
                    *sum = S::multiply_pairs(*sum, weights, activations.add(pair));
                }
            }
        }
        sums
    }
}

/// `Compact` weights, expanded in registers. The same sums as of `Bf16Products`, in the same order.
#[derive(Clone, Copy)]
pub struct CompactProducts;

impl Products for CompactProducts {
    fn row_bytes(in_features: usize) -> usize {
        Bf16Products::row_bytes(in_features)
    }

    fn num_units(in_features: usize) -> usize {
        Bf16Products::num_units(in_features)
    }

    #[inline(always)]
    fn rows<S: Simd>(_num_rows: usize) -> usize {
        S::COMPACT_ROWS
    }

    #[inline(always)]
    unsafe fn pack_row<S: Simd>(from: *const f32, in_features: usize, to: *mut u8) {
        Bf16Products::pack_row::<S>(from, in_features, to);
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: Tile) -> Sums<S::F32, M> {
        let mut sums = [[S::splat(0.0); VECTORS]; M];
        for number in 0..compact::num_groups(tile.in_features) {
            let offset = number * compact::GROUP_BYTES;
            (tile.ahead).ask_along::<S>(&tile, offset, compact::GROUP_BYTES);
            let group = tile.panel.add(offset);
            for vector in 0..compact::NUM_VECTORS {
                let weights = S::load_compact(group, vector, tile.exponents);
                let (pair, v) = (number * compact::PAIRS + vector / VECTORS, vector % VECTORS);
                for m in 0..M {
                    let row = tile.rows.add(m * tile.row_bytes).cast::<S::Pair>();
                    sums[m][v] = S::multiply_pairs(sums[m][v], weights, row.add(pair));
                }
            }
        }
        sums
    }
}

/// Writes a panel of compact weights as `Bf16Products` read it, with zeros up to whole groups.
#[inline(always)]
pub unsafe fn expand_panel<S: Simd>(
    panel: *const u8,
    in_features: usize,
    exponents: Exponents,
    to: *mut u32,
) {
    for group in 0..compact::num_groups(in_features) {
        let from = panel.add(group * compact::GROUP_BYTES);
        let to = to.add(group * compact::NUM_VECTORS * LANES);
        for vector in 0..compact::NUM_VECTORS {
            S::expand_compact(from, vector, exponents, to.add(vector * LANES));
        }
    }
}

/// Calls `$body` with the constant `$rows` equal to `$count`, which is at most 12. Every count is compiled on its own, so that
/// its sums stay in registers.
macro_rules! with_count {
    ($count:expr, |$rows:ident| $body:expr) => {{
        macro_rules! case {
            ($number:expr) => {{
                const $rows: usize = $number;
                $body
            }};
        }
        match $count {
            1 => case!(1),
            2 => case!(2),
            3 => case!(3),
            4 => case!(4),
            5 => case!(5),
            6 => case!(6),
            7 => case!(7),
            8 => case!(8),
            9 => case!(9),
            10 => case!(10),
            11 => case!(11),
            12 => case!(12),
            _ => unreachable!("more rows than there are registers for"),
        }
    }};
}
pub(crate) use with_count;
