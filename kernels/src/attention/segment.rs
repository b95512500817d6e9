//! One segment of a task: tile after tile, scores, their exponentials, and the weighted sums of values.

use std::ops::Range;

use super::tile::Tile;
use super::workspace::{CHUNKS, Workspace};
use super::{Attend, SEGMENT, TILE, Task};
use crate::kv_layout::CHUNK;
use crate::products::{Bf16Products, Products, with_count};
use crate::simd::{LANES, Simd, exp2};

/// How far scores may rise over the reference of their row before it takes another one. Then nothing need be multiplied anew
/// for nearly all tiles, and weights of 2^8 are as good as those of 1.
const SLACK: f32 = 8.0;

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
        // Weights are powers of 2.
        let scale = std::f32::consts::LOG2_E / (attend.head_dim as f32).sqrt();
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
            // Tokens before the tile see nothing of it.
            let first_row = first.saturating_sub(task.first_position) * attend.group();
            let mut row = first_row;
            while row < num_rows {
                let count = (num_rows - row).min(S::ROWS / 2);
                let part = Part {
                    work: self,
                    tile,
                    // The rows after the first find the tile in the cache.
                    next: if row == first_row { next } else { None },
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
        let mut scores = self.scores::<S, M>();
        for m in 0..M {
            let seen = self.seen(m);
            if seen != (0..TILE) {
                for n in 0..CHUNKS {
                    let start = seen.start.saturating_sub(n * LANES).min(LANES);
                    let end = seen.end.saturating_sub(n * LANES).min(LANES);
                    scores[m][n] = S::only_lanes(scores[m][n], start..end);
                }
            }
            self.raise_reference::<S>(m, scores[m]);
        }
        for m in 0..M {
            let reference = S::splat(*space.current.references.add(self.row + m));
            let weights = space.weights.add(m * Bf16Products::row_bytes(TILE));
            let total = space.current.totals(self.row + m);
            let mut sum = S::load(total);
            for n in 0..CHUNKS {
                let weight = exp2::<S>(S::sub(scores[m][n], reference));
                sum = S::add(sum, weight);
                S::store_as_pairs(weights.cast::<S::Pair>().add(n * LANES / 2), weight);
            }
            S::store(total, sum);
        }
        let num_vectors = attend.head_dim.div_ceil(LANES);
        let mut vector = 0;
        while vector + 4 <= num_vectors {
            self.add_values::<S, M, 4>(vector);
            vector += 4;
        }
        while vector < num_vectors {
            self.add_values::<S, M, 1>(vector);
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

    /// Which keys of the tile a row sees.
    #[inline(always)]
    unsafe fn seen(&self, m: usize) -> Range<usize> {
        let SegmentWork { attend, task, .. } = self.work;
        let position = task.first_position + (self.row + m) / attend.group();
        let end = (position + 1).saturating_sub(self.first).min(TILE);
        let start = match attend.sliding_window {
            0 => 0,
            window => (position + 1).saturating_sub(window + self.first).min(TILE),
        };
        start..end
    }

    /// Takes a new reference where a score is far above that of its row.
    #[inline(always)]
    unsafe fn raise_reference<S: Simd>(&self, m: usize, scores: [S::F32; CHUNKS]) {
        let current = &self.work.space.current;
        let mut largest = scores[0];
        for n in 1..CHUNKS {
            largest = S::max(largest, scores[n]);
        }
        let reference = *current.references.add(self.row + m);
        if S::any_greater(largest, S::splat(reference + SLACK)) {
            current.refer_to::<S>(self.row + m, S::max_lane(largest));
        }
    }

    /// Adds the weighted values of some vectors of columns.
    #[inline(always)]
    unsafe fn add_values<S: Simd, const M: usize, const N: usize>(&self, vector: usize) {
        let space = self.work.space;
        let mut sums = [[S::splat(0.0); N]; M];
        for m in 0..M {
            let from = space.current.sums(self.row + m).add(vector * LANES);
            for n in 0..N {
                sums[m][n] = S::load(from.add(n * LANES));
            }
        }
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
                S::store(to.add(n * LANES), sums[m][n]);
            }
        }
    }
}
