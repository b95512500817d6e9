//! What sampling wants to know of a row of logits, in one pass over it.

use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch, exp};

/// Rows of logits and what is found of them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Summarize {
    /// [rows, size] float32, rows `stride` apart.
    pub logits: *const f32,
    pub stride: usize,
    pub num_rows: usize,
    pub size: usize,
    /// [rows] index of the largest logit, the first of equals.
    pub largest: *mut i64,
    /// [rows] logarithm of the sum of exp(logit).
    pub log_normalizer: *mut f32,
    /// [rows] 0 where a logit is NaN or infinite, and the other two mean nothing unless it is minus infinity.
    pub is_finite: *mut u8,
}

// SAFETY: each task writes its own row.
unsafe impl Sync for Summarize {}

/// # Safety
/// The pointers hold what `Summarize` says, and no row is empty.
pub unsafe fn summarize(pool: &mut Pool, summarize: Summarize) {
    pool.run(summarize.num_rows, &|row| {
        dispatch(SummarizeRow { summarize, row })
    });
}

struct SummarizeRow {
    summarize: Summarize,
    row: usize,
}

impl Kernel for SummarizeRow {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Summarize {
            logits,
            stride,
            size,
            ..
        } = self.summarize;
        let logits = logits.add(self.row * stride);
        let largest = largest::<S>(logits, size);
        let value = *logits.add(largest);
        let whole = size / LANES * LANES;
        // A finite number minus itself is 0; NaN and infinity become NaN, which no sum loses.
        let (mut totals, mut differences) = (S::splat(0.0), S::splat(0.0));
        for n in (0..whole).step_by(LANES) {
            let logit = S::load(logits.add(n));
            totals = S::add(totals, exp::<S>(S::sub(logit, S::splat(value))));
            differences = S::add(differences, S::sub(logit, logit));
        }
        let (mut total, mut difference) = (S::sum(totals), S::sum(differences));
        for n in whole..size {
            total += (*logits.add(n) - value).exp();
            difference += *logits.add(n) - *logits.add(n);
        }
        *self.summarize.largest.add(self.row) = largest as i64;
        *self.summarize.log_normalizer.add(self.row) = value + total.ln();
        *self.summarize.is_finite.add(self.row) = u8::from(difference == 0.0);
    }
}

/// Index of the largest, the first of equals.
#[inline(always)]
unsafe fn largest<S: Simd>(logits: *const f32, size: usize) -> usize {
    let whole = size / LANES * LANES;
    let mut largest = S::splat(f32::NEG_INFINITY);
    for n in (0..whole).step_by(LANES) {
        largest = S::max(largest, S::load(logits.add(n)));
    }
    let mut value = S::max_lane(largest);
    for n in whole..size {
        value = value.max(*logits.add(n));
    }
    (0..size).find(|n| *logits.add(*n) == value).unwrap_or(0)
}
