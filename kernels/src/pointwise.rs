//! The small operations between the products of a decoder layer: normalization with the residual sum, rotation with the
//! write to the KV cache, and rows of an embedding.

use std::ops::Range;

use crate::kv_layout::{ask_for_key, ask_for_value, head_offset, write_key, write_value};
use crate::packed::Packed;
use crate::pool::{self, Pool};
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Below this many elements, handing work to another thread costs more than doing it.
const SHARED_FROM: usize = 16 * 1024;

/// Calls `work` with parts of 0..num_rows, on all threads where there is enough to do.
fn share_rows(
    pool: &mut Pool,
    num_rows: usize,
    row_size: usize,
    work: &(dyn Fn(Range<usize>) + Sync),
) {
    if num_rows * row_size < SHARED_FROM {
        return work(0..num_rows);
    }
    let num_tasks = num_rows.min(pool.num_threads() * 4);
    pool.run(num_tasks, &|task| {
        work(pool::share(num_rows, task, num_tasks))
    });
}

/// `residual += hidden`, `output = residual / sqrt(mean(residual^2) + epsilon) * weight`, row by row.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Normalize {
    /// [rows, size] float32; null: the residual is normalized as it is.
    pub hidden: *const f32,
    /// [rows, size] float32, read and written.
    pub residual: *mut f32,
    /// [size] float32.
    pub weight: *const f32,
    /// [rows, size] float32.
    pub output: *mut f32,
    pub num_rows: usize,
    pub size: usize,
    pub epsilon: f32,
}

// SAFETY: the rows are shared out so that no two tasks write the same element.
unsafe impl Sync for Normalize {}

/// # Safety
/// The pointers hold what `Normalize` says.
pub unsafe fn normalize(pool: &mut Pool, normalize: Normalize) {
    share_rows(pool, normalize.num_rows, normalize.size, &|rows| {
        dispatch(NormalizeRows { normalize, rows })
    });
}

struct NormalizeRows {
    normalize: Normalize,
    rows: Range<usize>,
}

impl Kernel for NormalizeRows {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Normalize {
            hidden,
            residual,
            weight,
            output,
            size,
            epsilon,
            ..
        } = self.normalize;
        for row in self.rows {
            let residual = residual.add(row * size);
            if !hidden.is_null() {
                add::<S>(residual, hidden.add(row * size), size);
            }
            normalize_row::<S>(residual, weight, output.add(row * size), (size, epsilon));
        }
    }
}

#[inline(always)]
unsafe fn add<S: Simd>(to: *mut f32, from: *const f32, size: usize) {
    let whole = size / LANES * LANES;
    for n in (0..whole).step_by(LANES) {
        S::store(to.add(n), S::add(S::load(to.add(n)), S::load(from.add(n))));
    }
    for n in whole..size {
        *to.add(n) += *from.add(n);
    }
}

/// `from` and `to` may be the same.
#[inline(always)]
unsafe fn normalize_row<S: Simd>(
    from: *const f32,
    weight: *const f32,
    to: *mut f32,
    (size, epsilon): (usize, f32),
) {
    let whole = size / LANES * LANES;
    let mut squares = S::splat(0.0);
    for n in (0..whole).step_by(LANES) {
        let value = S::load(from.add(n));
        squares = S::fma(value, value, squares);
    }
    let mut sum = S::sum(squares);
    for n in whole..size {
        sum += *from.add(n) * *from.add(n);
    }
    let scale = 1.0 / (sum / size as f32 + epsilon).sqrt();
    for n in (0..whole).step_by(LANES) {
        let value = S::mul(S::load(from.add(n)), S::splat(scale));
        S::store(to.add(n), S::mul(value, S::load(weight.add(n))));
    }
    for n in whole..size {
        *to.add(n) = *from.add(n) * scale * *weight.add(n);
    }
}

/// Query, key and value heads of this step's tokens: queries and keys are rotated in place, keys and values go to the cache.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Rotate {
    /// [tokens, H + 2 KH, D] float32, rotated in place.
    pub heads: *mut f32,
    /// [tokens, D] float32, the same in both halves.
    pub cos: *const f32,
    /// [tokens, D] float32, positive in the second half.
    pub sin: *const f32,
    /// [H + KH, D] float32, a norm of each head before its rotation; null: none.
    pub norm_weight: *const f32,
    /// [tokens] slot of each token in the cache; negative: none.
    pub slots: *const i64,
    /// As `kv_layout` says, bf16 each.
    pub keys: *mut u16,
    pub values: *mut u16,
    pub num_tokens: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub norm_epsilon: f32,
}

// SAFETY: tokens are shared out, and no two have the same slot.
unsafe impl Sync for Rotate {}

/// # Safety
/// The pointers hold what `Rotate` says, and every slot is one of the cache.
pub unsafe fn rotate_and_write(pool: &mut Pool, rotate: Rotate) {
    let row_size = (rotate.num_heads + 2 * rotate.num_kv_heads) * rotate.head_dim;
    share_rows(pool, rotate.num_tokens, row_size, &|tokens| {
        dispatch(RotateTokens { rotate, tokens })
    });
}

struct RotateTokens {
    rotate: Rotate,
    tokens: Range<usize>,
}

impl Kernel for RotateTokens {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rotate {
            num_heads,
            num_kv_heads,
            head_dim,
            ..
        } = self.rotate;
        let num_rotated = num_heads + num_kv_heads;
        self.ask_for_slots::<S>(self.tokens.start);
        for token in self.tokens.clone() {
            self.ask_for_slots::<S>(token + 1);
            let heads = self
                .rotate
                .heads
                .add(token * (num_rotated + num_kv_heads) * head_dim);
            let (cos, sin) = (
                self.rotate.cos.add(token * head_dim),
                self.rotate.sin.add(token * head_dim + head_dim / 2),
            );
            for head in 0..num_rotated {
                let values = heads.add(head * head_dim);
                if !self.rotate.norm_weight.is_null() {
                    let weight = self.rotate.norm_weight.add(head * head_dim);
                    normalize_row::<S>(
                        values,
                        weight,
                        values,
                        (head_dim, self.rotate.norm_epsilon),
                    );
                }
                rotate_head::<S>(values, cos, sin, head_dim / 2);
            }
            if let Some(slot) = self.slot(token) {
                for kv_head in 0..num_kv_heads {
                    let offset = head_offset(slot, kv_head, (num_kv_heads, head_dim));
                    let key = heads.add((num_heads + kv_head) * head_dim);
                    let value = heads.add((num_rotated + kv_head) * head_dim);
                    write_key::<S>(self.rotate.keys.add(offset), slot, key, head_dim);
                    write_value::<S>(self.rotate.values.add(offset), slot, value, head_dim);
                }
            }
        }
    }
}

impl RotateTokens {
    #[inline(always)]
    unsafe fn slot(&self, token: usize) -> Option<usize> {
        usize::try_from(*self.rotate.slots.add(token)).ok()
    }

    /// Asks for the lines of the cache that one of the tokens is written to. They are many and of nobody yet, and each would
    /// be waited for.
    #[inline(always)]
    unsafe fn ask_for_slots<S: Simd>(&self, token: usize) {
        if !self.tokens.contains(&token) {
            return;
        }
        let Rotate {
            keys,
            values,
            num_kv_heads,
            head_dim,
            ..
        } = self.rotate;
        if let Some(slot) = self.slot(token) {
            for kv_head in 0..num_kv_heads {
                let offset = head_offset(slot, kv_head, (num_kv_heads, head_dim));
                ask_for_key::<S>(keys.wrapping_add(offset), slot, head_dim);
                ask_for_value::<S>(values.wrapping_add(offset), slot, head_dim);
            }
        }
    }
}

/// Rotates the pairs (i, i + half).
#[inline(always)]
unsafe fn rotate_head<S: Simd>(values: *mut f32, cos: *const f32, sin: *const f32, half: usize) {
    let whole = half / LANES * LANES;
    for n in (0..whole).step_by(LANES) {
        let (first, second) = (S::load(values.add(n)), S::load(values.add(half + n)));
        let (cos, sin) = (S::load(cos.add(n)), S::load(sin.add(n)));
        S::store(
            values.add(n),
            S::sub(S::mul(first, cos), S::mul(second, sin)),
        );
        S::store(
            values.add(half + n),
            S::fma(first, sin, S::mul(second, cos)),
        );
    }
    for n in whole..half {
        let (first, second) = (*values.add(n), *values.add(half + n));
        let (cos, sin) = (*cos.add(n), *sin.add(n));
        *values.add(n) = first * cos - second * sin;
        *values.add(half + n) = first * sin + second * cos;
    }
}

/// output[n] = row `rows[n]` of `weights`, in float32.
///
/// # Safety
/// `rows` holds `num_rows` rows of `weights`, `output` room for them.
pub unsafe fn gather(
    pool: &mut Pool,
    weights: &Packed,
    rows: *const i64,
    (output, num_rows): (*mut f32, usize),
) {
    #[derive(Clone, Copy)]
    struct Pointers(*const i64, *mut f32);
    // SAFETY: each task writes its own rows.
    unsafe impl Sync for Pointers {}
    let pointers = Pointers(rows, output);
    let size = weights.in_features;
    share_rows(pool, num_rows, size, &|part| {
        let Pointers(rows, output) = { pointers };
        for n in part {
            let to = unsafe { std::slice::from_raw_parts_mut(output.add(n * size), size) };
            weights.unpack_row(unsafe { *rows.add(n) } as usize, to);
        }
    });
}
