//! Weights of eight and of four bits with a scale for every group of neighbouring inputs of a column, multiplied by
//! activations that are rounded to eight bits with a scale for the same group.
//!
//! Sums within a group are exact in integers. A weight is kept as an unsigned number, its offset is taken off the sum again
//! by way of the sum of the group's activations.

use crate::bf16;
use crate::packed::PANEL;
use crate::products::{Products, Sums, Tile, VECTORS};
use crate::simd::{LANES, Simd};

/// A kind of quantized weights.
pub trait Quantized: Copy + Sync + Default {
    /// Inputs that share a scale, a multiple of eight.
    const GROUP: usize;
    /// Weights are in -MAX..=MAX, kept as OFFSET more.
    const MAX: f32;
    const OFFSET: i32;
    /// Four inputs of a column in a byte each, or eight in half a byte each.
    const HALVES: bool;

    /// Bytes of a group of a panel: the weights, then a bf16 scale for each column.
    const GROUP_BYTES: usize = Self::WEIGHT_BYTES + PANEL * 2;
    const WEIGHT_BYTES: usize = Self::GROUP * PANEL / if Self::HALVES { 2 } else { 1 };
}

const MAX_GROUP: usize = 64;

#[derive(Clone, Copy, Default)]
pub struct Int8;

impl Quantized for Int8 {
    const GROUP: usize = MAX_GROUP;
    const MAX: f32 = 127.0;
    const OFFSET: i32 = 128;
    const HALVES: bool = false;
}

#[derive(Clone, Copy, Default)]
pub struct Int4;

impl Quantized for Int4 {
    const GROUP: usize = 32;
    const MAX: f32 = 7.0;
    const OFFSET: i32 = 8;
    const HALVES: bool = true;
}

pub fn panel_bytes<Q: Quantized>(in_features: usize) -> usize {
    in_features.div_ceil(Q::GROUP) * Q::GROUP_BYTES
}

/// Where four inputs of a column are in its group: the first byte, and whether they are the upper halves.
fn place<Q: Quantized>(quad: usize, column: usize) -> (usize, bool) {
    let row = if Q::HALVES { quad / 2 } else { quad };
    ((row * PANEL + column) * 4, Q::HALVES && quad % 2 == 1)
}

/// Packs a panel that is zero. `rows` are the bf16 of all inputs for each of its columns.
///
/// # Safety
/// `panel` has `panel_bytes`, and there are at most `PANEL` rows.
pub unsafe fn pack_panel<Q: Quantized>(rows: &[&[u16]], panel: *mut u8) {
    let in_features = rows.first().map_or(0, |row| row.len());
    for group in 0..in_features.div_ceil(Q::GROUP) {
        let to = panel.add(group * Q::GROUP_BYTES);
        let inputs = group * Q::GROUP..((group + 1) * Q::GROUP).min(in_features);
        for (column, row) in rows.iter().enumerate() {
            pack_column::<Q>(&row[inputs.clone()], to, column);
        }
    }
}

/// Packs a column of a group.
unsafe fn pack_column<Q: Quantized>(weights: &[u16], group: *mut u8, column: usize) {
    let scale = best_scale::<Q>(weights);
    *group.add(Q::WEIGHT_BYTES).cast::<u16>().add(column) = bf16::from_f32(scale);
    let mut values = [Q::OFFSET as u8; MAX_GROUP];
    for (value, bits) in values.iter_mut().zip(weights) {
        *value = (round::<Q>(bf16::to_f32(*bits), scale) as i32 + Q::OFFSET) as u8;
    }
    for (quad, values) in values[..Q::GROUP].as_chunks().0.iter().enumerate() {
        let (byte, is_upper) = place::<Q>(quad, column);
        let to = group.add(byte).cast::<u32>();
        *to |= u32::from_le_bytes(*values) << if is_upper { 4 } else { 0 };
    }
}

/// Added and taken off again, it leaves a small number rounded to the nearest integer, halves to even: it is so large that a
/// float32 has no digits behind the point. The compiler makes vectors of it on any processor.
const ROUNDING: f32 = (3 << 22) as f32;

fn round<Q: Quantized>(weight: f32, scale: f32) -> f32 {
    if scale == 0.0 {
        0.0
    } else {
        let steps = (weight / scale).clamp(-Q::MAX, Q::MAX);
        steps + ROUNDING - ROUNDING
    }
}

/// The scale, a bf16, that loses least. With few steps it pays to let the largest weights be cut off a little.
fn best_scale<Q: Quantized>(weights: &[u16]) -> f32 {
    // Without their signs bf16 are ordered as integers are.
    let largest = weights.iter().map(|bits| bits & 0x7fff).max();
    let largest = bf16::to_f32(largest.unwrap_or(0));
    let candidates: &[f32] = if Q::HALVES {
        &[1.0, 0.95, 0.9, 0.85, 0.8, 0.75]
    } else {
        &[1.0]
    };
    let scales = candidates
        .iter()
        .map(|part| bf16::to_f32(bf16::from_f32(largest / Q::MAX * part)));
    let loss = |scale: f32| -> f32 {
        let losses = weights.iter().map(|bits| {
            let weight = bf16::to_f32(*bits);
            weight - round::<Q>(weight, scale) * scale
        });
        losses.map(|loss| loss * loss).sum()
    };
    scales
        .min_by(|a, b| loss(*a).total_cmp(&loss(*b)))
        .unwrap_or(0.0)
}

/// One weight of a packed panel.
///
/// # Safety
/// As `pack_panel`; the panel was packed.
pub unsafe fn unpack<Q: Quantized>(panel: *const u8, input: usize, column: usize) -> f32 {
    let from = panel.add(input / Q::GROUP * Q::GROUP_BYTES);
    let (quad, is_upper) = place::<Q>(input % Q::GROUP / 4, column);
    let byte = *from.add(quad + input % 4);
    let value = match (Q::HALVES, is_upper) {
        (false, _) => byte,
        (true, false) => byte & 15,
        (true, true) => byte >> 4,
    };
    let scale = bf16::to_f32(*from.add(Q::WEIGHT_BYTES).cast::<u16>().add(column));
    (i32::from(value) - Q::OFFSET) as f32 * scale
}

/// A group of a packed row of activations: the quads, with room for those of any instruction set, then these.
#[repr(C)]
struct Footer {
    scale: f32,
    /// What the offset of the weights adds to a sum, with the sign turned around.
    correction: i32,
    unused: [u32; 14],
}

const fn group_row_bytes(group: usize) -> usize {
    group * 2 + size_of::<Footer>()
}

/// Rounds `Q::GROUP` activations.
#[inline(always)]
unsafe fn pack_group<S: Simd, Q: Quantized>(values: *const f32, to: *mut u8) {
    let mut largest = S::splat(0.0);
    let mut sum = S::splat(0.0);
    for n in (0..Q::GROUP).step_by(LANES) {
        let value = S::load(values.add(n));
        largest = S::max(largest, S::abs(value));
        sum = S::add(sum, value);
    }
    let largest = S::max_lane(largest);
    // NaN and infinity must not vanish in the rounding: the scale carries them into every sum.
    let scale = if S::sum(sum).is_finite() {
        largest / 127.0
    } else {
        f32::NAN
    };
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut total = S::splat(0.0);
    for n in (0..Q::GROUP).step_by(LANES) {
        let value = S::mul(S::load(values.add(n)), S::splat(inverse));
        let value = S::round(S::min(S::max(value, S::splat(-127.0)), S::splat(127.0)));
        total = S::add(total, value); // exact: integers far below 2^24
        S::store_as_quads(to.cast::<S::Quad>().add(n / 4), value);
    }
    let footer = to.add(Q::GROUP * 2).cast::<Footer>();
    (*footer).scale = scale;
    (*footer).correction = -Q::OFFSET * S::sum(total) as i32;
}

#[derive(Clone, Copy, Default)]
pub struct QuantizedProducts<Q>(std::marker::PhantomData<Q>);

impl<Q: Quantized> Products for QuantizedProducts<Q> {
    fn row_bytes(in_features: usize) -> usize {
        in_features.div_ceil(Q::GROUP) * group_row_bytes(Q::GROUP)
    }

    fn num_units(in_features: usize) -> usize {
        in_features.div_ceil(Q::GROUP) * Q::GROUP / if Q::HALVES { 8 } else { 4 }
    }

    #[inline(always)]
    fn rows<S: Simd>(num_rows: usize) -> usize {
        // Each sum takes two registers, one of integers. To keep those of a few more rows in memory, where they are needed once
        // for each group, costs less than to read the weights twice.
        let in_registers = (S::ROWS / 2).max(1);
        if num_rows <= S::ROWS * 2 / 3 {
            num_rows
        } else {
            in_registers
        }
    }

    #[inline(always)]
    unsafe fn pack_row<S: Simd>(from: *const f32, in_features: usize, to: *mut u8) {
        let mut padded = [0_f32; 64];
        for group in 0..in_features.div_ceil(Q::GROUP) {
            let start = group * Q::GROUP;
            let mut values = from.add(start);
            if start + Q::GROUP > in_features {
                padded.fill(0.0);
                std::ptr::copy_nonoverlapping(values, padded.as_mut_ptr(), in_features - start);
                values = padded.as_ptr();
            }
            let to = to.add(group * group_row_bytes(Q::GROUP));
            pack_group::<S, Q>(values, to);
        }
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: Tile) -> Sums<S::F32, M> {
        let mut sums = [[S::splat(0.0); VECTORS]; M];
        let bytes_per_step = PANEL * 4;
        let quads_per_step = if Q::HALVES { 2 } else { 1 };
        let steps_per_group = Q::GROUP / 4 / quads_per_step;
        for group in 0..tile.in_features.div_ceil(Q::GROUP) {
            let rows = tile.rows.add(group * group_row_bytes(Q::GROUP));
            let panel = tile.panel.add(group * Q::GROUP_BYTES);
            let mut integers = [[S::splat_i32(0); VECTORS]; M];
            for m in 0..M {
                let footer = &*rows.add(m * tile.row_bytes + Q::GROUP * 2).cast::<Footer>();
                integers[m] = [S::splat_i32(footer.correction); VECTORS];
            }
            for step in 0..steps_per_group {
                tile.ahead.ask_next::<S>(group * steps_per_group + step);
                let offset = group * Q::GROUP_BYTES + step * bytes_per_step;
                ask_along::<S, M>(&tile, offset, bytes_per_step);
                for v in 0..VECTORS {
                    let from = panel.add(step * bytes_per_step + v * LANES * 4);
                    if Q::HALVES {
                        let [lower, upper] = S::load_half_quads(from);
                        for m in 0..M {
                            let quads =
                                rows.add(m * tile.row_bytes).cast::<S::Quad>().add(2 * step);
                            let sum = S::multiply_quads(integers[m][v], lower, quads);
                            integers[m][v] = S::multiply_quads(sum, upper, quads.add(1));
                        }
                    } else {
                        let weights = S::load_quads(from);
                        for m in 0..M {
                            let quads = rows.add(m * tile.row_bytes).cast::<S::Quad>().add(step);
                            integers[m][v] = S::multiply_quads(integers[m][v], weights, quads);
                        }
                    }
                }
            }
            let scales_offset = group * Q::GROUP_BYTES + Q::WEIGHT_BYTES;
            ask_along::<S, M>(&tile, scales_offset, PANEL * 2);
            for v in 0..VECTORS {
                let scales = panel.add(Q::WEIGHT_BYTES).cast::<u16>();
                let scales = S::load_bf16(scales.add(v * LANES));
                for m in 0..M {
                    let footer = &*rows.add(m * tile.row_bytes + Q::GROUP * 2).cast::<Footer>();
                    let scale = S::mul(scales, S::splat(footer.scale));
                    sums[m][v] = S::fma(S::to_f32(integers[m][v]), scale, sums[m][v]);
                }
            }
        }
        sums
    }
}

/// Asks for weights further on, except beside a single row: that is read so fast that the processor itself asks early enough,
/// and more slowly with both (38 to 48 GB/s on Zen 5; two rows are as fast either way).
#[inline(always)]
unsafe fn ask_along<S: Simd, const M: usize>(tile: &Tile, offset: usize, len: usize) {
    if M > 1 {
        tile.ahead.ask_along::<S>(tile, offset, len);
    }
}
