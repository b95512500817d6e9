//! One segment of a task: tile after tile, scores, their exponentials, and the weighted sums of values.

use super::tile::Tile;
use super::workspace::{CHUNKS, Workspace};
use super::{Attend, SEGMENT, TILE, Task};
use crate::kv_layout::CHUNK;
use crate::products::{Bf16Products, Products, with_count};
use crate::simd::{LANES, Simd, exp};

pub(super) struct SegmentWork<'a> {
    attend: &'a Attend,
    task: Task,
    space: &'a Workspace,
}

impl<'a> SegmentWork<'a> {
    /// Packs the queries of a task, for any of its segments.
    #[inline(always)]
    pub(super) unsafe fn begin<S: Simd>(
        attend: &'a Attend,
        task: Task,
        space: &'a Workspace,
    ) -> Self {
        let scale = 1.0 / (attend.head_dim as f32).sqrt();
        for row in 0..task.num_rows(attend) {
            let (token, head) = task.token_and_head(attend, row);
            let from = attend
                .query
                .add(token * attend.query_stride + head * attend.head_dim);
            for n in 0..attend.head_dim {
                *space.scaled.add(n) = *from.add(n) * scale;
            }
            let to = space.queries.add(row * space.query_bytes);
            Bf16Products::pack_row::<S>(space.scaled, attend.head_dim, to);
        }
        Self {
            attend,
            task,
            space,
        }
    }

    /// Leaves the state of the segment's keys in the workspace. `after` is the tile that this thread takes next.
    #[inline(always)]
    pub(super) unsafe fn compute<S: Simd>(&self, segment: usize, after: Option<Tile>) {
        let Self {
            attend,
            task,
            space,
        } = self;
        let num_rows = task.num_rows(attend);
        space.current.of_rows(num_rows).clear();
        let seen = task.seen(attend);
        let start = task.first_tile(attend, segment);
        let end = ((segment + 1) * SEGMENT).min(seen.end);
        for first in (start..end).step_by(TILE) {
            let tile = Tile::at(attend, task, space, first);
            let next = if first + TILE < end {
                Some(Tile::in_place(attend, task, space, first + TILE))
            } else {
                after
            };
            let mut row = 0;
            while row < num_rows {
                let count = (num_rows - row).min(S::ROWS / 2);
                let part = Part {
                    work: self,
                    tile,
                    // The rows after the first find the tile in the cache.
                    next: if row == 0 { next } else { None },
                    first,
                    row,
                };
                with_count!(count, |M| part.add_tile::<S, M>());
                row += count;
            }
        }
    }
}

/// Some rows of a task and one tile.
struct Part<'a> {
    work: &'a SegmentWork<'a>,
    tile: Tile,
    /// The tile that memory is asked for meanwhile.
    next: Option<Tile>,
    /// The first key.
    first: usize,
    row: usize,
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn add_tile<S: Simd, const M: usize>(&self) {
        let SegmentWork { attend, space, .. } = self.work;
        let scores = self.scores::<S, M>();
        let mut factors = [0.0; M];
        for m in 0..M {
            let to = space.scores.add(m * TILE);
            for n in 0..CHUNKS {
                S::store(to.add(n * LANES), scores[m][n]);
            }
            self.hide(m, to);
            factors[m] = self.exponentials::<S>(m, to);
        }
        let num_vectors = attend.head_dim.div_ceil(LANES);
        let mut vector = 0;
        while vector + 4 <= num_vectors {
            self.add_values::<S, M, 4>(vector, &factors);
            vector += 4;
        }
        while vector < num_vectors {
            self.add_values::<S, M, 1>(vector, &factors);
            vector += 1;
        }
    }

    #[inline(always)]
    unsafe fn scores<S: Simd, const M: usize>(&self) -> [[S::F32; CHUNKS]; M] {
        let SegmentWork { attend, space, .. } = self.work;
        let mut scores = [[S::splat(0.0); CHUNKS]; M];
        for pair in 0..attend.head_dim / 2 {
            for n in 0..CHUNKS {
                if let Some(next) = &self.next {
                    S::prefetch(next.keys[n].wrapping_add(pair * CHUNK).cast());
                }
                let keys = S::load_pairs(self.tile.keys[n].add(pair * CHUNK));
                for m in 0..M {
                    let query = space.queries.add((self.row + m) * space.query_bytes);
                    let query = query.cast::<S::Pair>().add(pair);
                    scores[m][n] = S::multiply_pairs(scores[m][n], keys, query);
                }
            }
        }
        scores
    }

    /// Minus infinity for what a row must not see.
    #[inline(always)]
    unsafe fn hide(&self, m: usize, scores: *mut f32) {
        let SegmentWork { attend, task, .. } = self.work;
        let position = task.first_position + (self.row + m) / attend.group();
        let end = (position + 1).saturating_sub(self.first).min(TILE);
        for key in end..TILE {
            *scores.add(key) = f32::NEG_INFINITY;
        }
        let window = attend.sliding_window;
        if window > 0 && position >= window {
            let start = (position - window + 1).saturating_sub(self.first).min(TILE);
            for key in 0..start {
                *scores.add(key) = f32::NEG_INFINITY;
            }
        }
    }

    /// Turns scores into packed weights relative to the highest score so far. -> factor for the sums before
    #[inline(always)]
    unsafe fn exponentials<S: Simd>(&self, m: usize, scores: *mut f32) -> f32 {
        let space = self.work.space;
        let (highest, total) = (
            space.current.highest.add(self.row + m),
            space.current.total.add(self.row + m),
        );
        let mut largest = S::load(scores);
        for n in (LANES..TILE).step_by(LANES) {
            largest = S::max(largest, S::load(scores.add(n)));
        }
        let new_highest = S::max_lane(largest).max(*highest);
        // A row that has seen nothing yet: any finite number makes its weights zero.
        let reference = if new_highest == f32::NEG_INFINITY {
            0.0
        } else {
            new_highest
        };
        let mut sum = S::splat(0.0);
        for n in (0..TILE).step_by(LANES) {
            let weight = exp::<S>(S::sub(S::load(scores.add(n)), S::splat(reference)));
            sum = S::add(sum, weight);
            S::store(scores.add(n), weight);
        }
        let to = space.weights.add(m * Bf16Products::row_bytes(TILE));
        Bf16Products::pack_row::<S>(scores, TILE, to);
        let factor = if *highest == f32::NEG_INFINITY {
            0.0
        } else if *highest == reference {
            1.0 // nearly always: the exponential would be called for nothing
        } else {
            (*highest - reference).exp()
        };
        *total = *total * factor + S::sum(sum);
        *highest = new_highest;
        factor
    }

    /// Adds the weighted values of some vectors of columns.
    #[inline(always)]
    unsafe fn add_values<S: Simd, const M: usize, const N: usize>(
        &self,
        vector: usize,
        factors: &[f32; M],
    ) {
        let space = self.work.space;
        let mut sums = [[S::splat(0.0); N]; M];
        // A number that the compiler does not know: unrolled, this loop has more values than there are registers.
        let num_pairs = std::hint::black_box(CHUNK / 2);
        for chunk in 0..CHUNKS {
            let values = self.tile.values[chunk].add(vector * LANES);
            let next = self
                .next
                .map(|next| next.values[chunk].wrapping_add(vector * LANES));
            let weights = space.weights.cast::<S::Pair>().add(chunk * CHUNK / 2);
            for pair in 0..num_pairs {
                let at = pair * self.tile.value_stride;
                for n in 0..N {
                    if let Some(next) = next {
                        S::prefetch(next.wrapping_add(at + n * LANES).cast());
                    }
                    let values = S::load_pairs(values.add(at + n * LANES));
                    for m in 0..M {
                        let weights = weights
                            .byte_add(m * Bf16Products::row_bytes(TILE))
                            .add(pair);
                        sums[m][n] = S::multiply_pairs(sums[m][n], values, weights);
                    }
                }
            }
        }
        for m in 0..M {
            let to = space.current.sums(self.row + m).add(vector * LANES);
            for n in 0..N {
                let before = S::load(to.add(n * LANES));
                S::store(
                    to.add(n * LANES),
                    S::fma(before, S::splat(factors[m]), sums[m][n]),
                );
            }
        }
    }
}
