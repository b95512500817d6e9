//! What is known of some query rows after some keys: the highest score, the sum of exponentials and the weighted sums of
//! values, both relative to that score. Two states of different keys can be joined.

use crate::simd::{LANES, Simd};

#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) num_rows: usize,
    /// The size of a head, padded to whole vectors.
    pub(super) num_columns: usize,
    /// [rows]
    pub(super) highest: *mut f32,
    pub(super) total: *mut f32,
    /// [rows][columns]
    sums: *mut f32,
}

impl State {
    pub(super) fn num_floats(num_rows: usize, head_dim: usize) -> usize {
        num_rows * head_dim.next_multiple_of(LANES) + 2 * num_rows.next_multiple_of(LANES)
    }

    /// In the `num_floats` at `start`.
    pub(super) unsafe fn new(start: *mut f32, num_rows: usize, head_dim: usize) -> Self {
        let padded = num_rows.next_multiple_of(LANES);
        Self {
            num_rows,
            num_columns: head_dim.next_multiple_of(LANES),
            highest: start,
            total: start.add(padded),
            sums: start.add(2 * padded),
        }
    }

    /// The first rows of it.
    pub(super) fn of_rows(self, num_rows: usize) -> Self {
        Self { num_rows, ..self }
    }

    #[inline(always)]
    pub(super) unsafe fn sums(&self, row: usize) -> *mut f32 {
        self.sums.add(row * self.num_columns)
    }

    /// No keys.
    #[inline(always)]
    pub(super) unsafe fn clear(&self) {
        for row in 0..self.num_rows {
            *self.highest.add(row) = f32::NEG_INFINITY;
            *self.total.add(row) = 0.0;
        }
        self.sums.write_bytes(0, self.num_rows * self.num_columns);
    }

    /// Adds the keys of `other`. Where one of them has none, the other stays as it is to the bit.
    #[inline(always)]
    pub(super) unsafe fn join<S: Simd>(&self, other: Self) {
        for row in 0..self.num_rows {
            let (own, others) = (*self.highest.add(row), *other.highest.add(row));
            let highest = own.max(others);
            let factor = |score: f32| {
                if score == f32::NEG_INFINITY {
                    0.0
                } else if score == highest {
                    1.0
                } else {
                    (score - highest).exp()
                }
            };
            let (keep, take) = (factor(own), factor(others));
            *self.highest.add(row) = highest;
            *self.total.add(row) = *self.total.add(row) * keep + *other.total.add(row) * take;
            let (to, from) = (self.sums(row), other.sums(row));
            for n in (0..self.num_columns).step_by(LANES) {
                let kept = S::mul(S::load(to.add(n)), S::splat(keep));
                S::store(
                    to.add(n),
                    S::fma(S::load(from.add(n)), S::splat(take), kept),
                );
            }
        }
    }
}
