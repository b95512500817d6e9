//! What is known of some query rows after some keys: sums of weights and of weighted values, where the weight of a key is
//! 2^(score - reference), with a reference of each row's own. Two states of different keys can be joined.

use crate::simd::{LANES, Simd, exp2};

/// The reference of a row that has seen no key.
pub(super) const LOWEST: f32 = -1e30;

#[derive(Clone, Copy)]
pub(super) struct State {
    pub(super) num_rows: usize,
    /// The size of a head, padded to whole vectors.
    pub(super) num_columns: usize,
    /// [rows]
    pub(super) references: *mut f32,
    /// [rows][LANES] the sum of weights, not yet added up.
    totals: *mut f32,
    /// [rows][columns]
    sums: *mut f32,
}

impl State {
    pub(super) fn num_floats(num_rows: usize, head_dim: usize) -> usize {
        num_rows * (head_dim.next_multiple_of(LANES) + LANES) + num_rows.next_multiple_of(LANES)
    }

    /// In the `num_floats` at `start`.
    pub(super) unsafe fn new(start: *mut f32, num_rows: usize, head_dim: usize) -> Self {
        let totals = start.add(num_rows.next_multiple_of(LANES));
        Self {
            num_rows,
            num_columns: head_dim.next_multiple_of(LANES),
            references: start,
            totals,
            sums: totals.add(num_rows * LANES),
        }
    }

    /// The first rows of it.
    pub(super) fn of_rows(self, num_rows: usize) -> Self {
        Self { num_rows, ..self }
    }

    #[inline(always)]
    pub(super) unsafe fn totals(&self, row: usize) -> *mut f32 {
        self.totals.add(row * LANES)
    }

    #[inline(always)]
    pub(super) unsafe fn sums(&self, row: usize) -> *mut f32 {
        self.sums.add(row * self.num_columns)
    }

    /// No keys.
    #[inline(always)]
    pub(super) unsafe fn clear(&self) {
        for row in 0..self.num_rows {
            *self.references.add(row) = LOWEST;
        }
        self.totals.write_bytes(0, self.num_rows * LANES);
        self.sums.write_bytes(0, self.num_rows * self.num_columns);
    }

    /// Takes another reference for a row.
    #[inline(always)]
    pub(super) unsafe fn refer_to<S: Simd>(&self, row: usize, reference: f32) {
        let factor = exp2::<S>(S::splat(*self.references.add(row) - reference));
        *self.references.add(row) = reference;
        let total = self.totals(row);
        S::store(total, S::mul(S::load(total), factor));
        let sums = self.sums(row);
        for n in (0..self.num_columns).step_by(LANES) {
            S::store(sums.add(n), S::mul(S::load(sums.add(n)), factor));
        }
    }

    /// Adds the keys of `other`. Where one of them has none, the other stays as it is to the bit.
    #[inline(always)]
    pub(super) unsafe fn join<S: Simd>(&self, other: Self) {
        for row in 0..self.num_rows {
            let (own, others) = (*self.references.add(row), *other.references.add(row));
            let reference = own.max(others);
            let keep = exp2::<S>(S::splat(own - reference));
            let take = exp2::<S>(S::splat(others - reference));
            *self.references.add(row) = reference;
            add_scaled::<S>(self.totals(row), keep, (other.totals(row), take), LANES);
            let num_columns = self.num_columns;
            add_scaled::<S>(self.sums(row), keep, (other.sums(row), take), num_columns);
        }
    }
}

/// to = to * keep + from * take
#[inline(always)]
unsafe fn add_scaled<S: Simd>(
    to: *mut f32,
    keep: S::F32,
    (from, take): (*const f32, S::F32),
    count: usize,
) {
    for n in (0..count).step_by(LANES) {
        let kept = S::mul(S::load(to.add(n)), keep);
        S::store(to.add(n), S::fma(S::load(from.add(n)), take, kept));
    }
}
