//! The innermost loops: a few rows of activations times one or two panels of weights, with the sums in registers.

use crate::packed::PANEL;
use crate::simd::{LANES, Simd};

/// Vectors of a panel.
pub const VECTORS: usize = PANEL / LANES;

/// Sums of M rows over N panels. Taken by index, because iterators by value make the compiler keep them in memory.
pub type Sums<F, const M: usize, const N: usize> = [[[F; VECTORS]; N]; M];

/// Where the operands of a tile are.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Packed rows of activations, `row_bytes` apart.
    pub rows: *const u8,
    pub row_bytes: usize,
    /// Packed panels of weights, `panel_bytes` apart.
    pub panel: *const u8,
    pub panel_bytes: usize,
    pub in_features: usize,
}

/// A format of weights with the form of activations that it multiplies.
pub trait Products: Copy + Sync {
    /// Bytes of a packed row of activations on any instruction set, a multiple of a cache line.
    fn row_bytes(in_features: usize) -> usize;

    /// How many rows to take at once with `num_panels`.
    fn rows<S: Simd>(num_panels: usize) -> usize;

    /// `from` holds `in_features` float32, `to` has `row_bytes` aligned to a cache line.
    unsafe fn pack_row<S: Simd>(from: *const f32, in_features: usize, to: *mut u8);

    unsafe fn tile<S: Simd, const M: usize, const N: usize>(tile: Tile) -> Sums<S::F32, M, N>;
}

#[derive(Clone, Copy)]
pub struct Bf16Products;

impl Products for Bf16Products {
    fn row_bytes(in_features: usize) -> usize {
        (in_features.next_multiple_of(LANES)) * 4
    }

    #[inline(always)]
    fn rows<S: Simd>(num_panels: usize) -> usize {
        S::ROWS[num_panels - 1]
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
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const N: usize>(tile: Tile) -> Sums<S::F32, M, N> {
        let mut sums = [[[S::splat(0.0); VECTORS]; N]; M];
        for pair in 0..tile.in_features.div_ceil(2) {
            let mut weights =
                [[S::load_pairs(tile.panel.cast::<u32>().add(pair * PANEL)); VECTORS]; N];
            for (n, panel) in weights.iter_mut().enumerate() {
                for (v, vector) in panel.iter_mut().enumerate() {
                    *vector = S::load_pairs(
                        tile.panel
                            .add(n * tile.panel_bytes)
                            .cast::<u32>()
                            .add(pair * PANEL + v * LANES),
                    );
                }
            }
            for (m, row) in sums.iter_mut().enumerate() {
                let activations = tile
                    .rows
                    .add(m * tile.row_bytes)
                    .cast::<S::Pair>()
                    .add(pair);
                for (panel, weights) in row.iter_mut().zip(weights) {
                    for (sum, weights) in panel.iter_mut().zip(weights) {
                        *sum = S::multiply_pairs(*sum, weights, activations);
                    }
                }
            }
        }
        sums
    }
}

/// Calls `$body` with the constant `$rows` equal to `$count`, which is at most 12 for one panel and 6 for two. Every count is
/// compiled on its own, so that its sums stay in registers.
macro_rules! with_count {
    ($count:expr, $panels:expr, |$rows:ident| $body:expr) => {{
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
            7 if $panels == 1 => case!(7),
            8 if $panels == 1 => case!(8),
            9 if $panels == 1 => case!(9),
            10 if $panels == 1 => case!(10),
            11 if $panels == 1 => case!(11),
            12 if $panels == 1 => case!(12),
            _ => unreachable!("more rows than there are registers for"),
        }
    }};
}
pub(crate) use with_count;
