//! How keys and values lie in the cache: in chunks of sixteen neighbouring slots, and within a chunk in the order in which
//! attention multiplies them, so that it need not turn anything around. A token is written once and read in every later step.
//!
//! A KV head has `CHUNK * head_dim` elements in a chunk. Its keys are [pairs of dimensions][slots] of two bf16, its values
//! [pairs of slots][dimensions] of two bf16. A block of the cache is whole chunks.

use crate::simd::{LANES, Simd};

/// Slots of a chunk.
pub const CHUNK: usize = LANES;

/// The first element of a KV head in the chunk of a slot.
#[inline(always)]
pub fn head_offset(slot: usize, kv_head: usize, (num_kv_heads, head_dim): (usize, usize)) -> usize {
    (slot / CHUNK * num_kv_heads + kv_head) * CHUNK * head_dim
}

/// Asks for the memory that the key of a slot is written to: a line for each pair of dimensions.
#[inline(always)]
pub unsafe fn ask_for_key<S: Simd>(head: *const u16, slot: usize, head_dim: usize) {
    let from = head.cast::<[u16; 2]>().wrapping_add(slot % CHUNK);
    for pair in 0..head_dim / 2 {
        S::prefetch(from.wrapping_add(pair * CHUNK).cast());
    }
}

/// As `ask_for_key`, for the value of a slot.
#[inline(always)]
pub unsafe fn ask_for_value<S: Simd>(head: *const u16, slot: usize, head_dim: usize) {
    let from = head.wrapping_add(slot % CHUNK / 2 * head_dim * 2);
    for start in (0..head_dim).step_by(LANES) {
        S::prefetch(from.wrapping_add(start * 2).cast());
    }
}

/// Writes the key of a slot, float32 rounded to bf16. `head` is where its head begins in the chunk; `head_dim` is even.
#[inline(always)]
pub unsafe fn write_key<S: Simd>(head: *mut u16, slot: usize, key: *const f32, head_dim: usize) {
    let to = head.cast::<[u16; 2]>().add(slot % CHUNK);
    for start in (0..head_dim).step_by(LANES) {
        let rounded = round::<S>(key.add(start), head_dim - start);
        for pair in 0..(head_dim - start).min(LANES) / 2 {
            *to.add((start / 2 + pair) * CHUNK) = [rounded[2 * pair], rounded[2 * pair + 1]];
        }
    }
}

/// Writes the value of a slot, as `write_key`.
#[inline(always)]
pub unsafe fn write_value<S: Simd>(
    head: *mut u16,
    slot: usize,
    value: *const f32,
    head_dim: usize,
) {
    let within = slot % CHUNK;
    let to = head.add(within / 2 * head_dim * 2 + within % 2);
    for start in (0..head_dim).step_by(LANES) {
        let rounded = round::<S>(value.add(start), head_dim - start);
        for n in 0..(head_dim - start).min(LANES) {
            *to.add((start + n) * 2) = rounded[n];
        }
    }
}

/// The next `LANES` numbers, or as many as there are, as bf16.
#[inline(always)]
unsafe fn round<S: Simd>(from: *const f32, count: usize) -> [u16; LANES] {
    let mut rounded = [0; LANES];
    if count >= LANES {
        S::store_bf16(rounded.as_mut_ptr(), S::load(from));
    } else {
        let mut padded = [0.0; LANES];
        std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), count);
        S::store_bf16(rounded.as_mut_ptr(), S::load(padded.as_ptr()));
    }
    rounded
}
