//! Draws a token of each row of logits: temperature, top_k, top_p and min_p, in this order, then the inverse of the cumulative
//! distribution at a number that is a function of seed and position alone.
//!
//! Each filter keeps what is at or above a threshold, so that equals stay together. A threshold is found without a sort of the
//! row: tokens are counted in buckets of neighbouring scores, and only the bucket that holds the threshold is sorted. A row is
//! the work of one thread, so that its token does not depend on others.

use std::cell::RefCell;

use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch, exp};

/// How a row is drawn from.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Parameters {
    pub seed: u64,
    /// Index in the sequence of the token that is drawn.
    pub position: u64,
    /// Below the size of a row; 0 = off.
    pub top_k: u64,
    /// Above 0.
    pub temperature: f32,
    /// 1 = off.
    pub top_p: f32,
    /// Logarithm of min_p; minus infinity = off.
    pub log_min_p: f32,
    pub unused: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Draw {
    /// [rows, size] float32, rows `stride` apart. Minus infinity: the token cannot be drawn.
    pub logits: *const f32,
    pub stride: usize,
    pub num_rows: usize,
    pub size: usize,
    /// [rows]
    pub parameters: *const Parameters,
    /// [rows] anything below `size` where a row has NaN or infinity.
    pub token_ids: *mut i64,
}

// SAFETY: each task writes its own row.
unsafe impl Sync for Draw {}

/// Scores are at most 0. Those of a bucket differ by less than `1 / BUCKETS_PER_UNIT`; the last one has all that are lower.
const NUM_BUCKETS: usize = 1024;
const BUCKETS_PER_UNIT: f32 = 16.0;
/// Tokens whose weights are added up before one of them is looked for.
const CHUNK: usize = 16 * LANES;

#[derive(Default)]
struct Space {
    /// [size] logits below the largest, divided by the temperature.
    scores: Vec<f32>,
    /// [size] their exponentials, not normalized.
    weights: Vec<f32>,
    /// Scores or weights of one bucket.
    bucket: Vec<f32>,
}

thread_local! {
    static SPACE: RefCell<Space> = RefCell::default();
}

/// # Safety
/// The pointers hold what `Draw` says, and no row is empty.
pub unsafe fn draw(pool: &mut Pool, draw: Draw) {
    pool.run(draw.num_rows, &|row| unsafe { draw.draw_row(row) });
}

impl Draw {
    unsafe fn draw_row(&self, row: usize) {
        let logits = std::slice::from_raw_parts(self.logits.add(row * self.stride), self.size);
        let parameters = *self.parameters.add(row);
        let token_id = SPACE.with_borrow_mut(|space| {
            dispatch(DrawRow {
                logits,
                parameters,
                space,
            })
        });
        *self.token_ids.add(row) = token_id as i64;
    }
}

struct DrawRow<'a> {
    logits: &'a [f32],
    parameters: Parameters,
    space: &'a mut Space,
}

impl Kernel for DrawRow<'_> {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        let Self {
            logits,
            parameters,
            space,
        } = self;
        let Space {
            scores,
            weights,
            bucket,
        } = space;
        score(logits, parameters.temperature, scores);
        if parameters.top_k > 0 {
            let lowest = kth_largest(scores, parameters.top_k as usize, bucket);
            remove_below(scores, lowest);
        }
        exponentials::<S>(scores, weights);
        if parameters.top_p < 1.0 {
            let lowest = covering_weight(scores, weights, parameters.top_p, bucket);
            for (score, weight) in scores.iter_mut().zip(weights.iter_mut()) {
                let is_kept = *weight >= lowest;
                *score = if is_kept { *score } else { f32::NEG_INFINITY };
                *weight = if is_kept { *weight } else { 0.0 };
            }
        }
        for (score, weight) in scores.iter().zip(weights.iter_mut()) {
            *weight = if *score < parameters.log_min_p {
                0.0
            } else {
                *weight
            };
        }
        invert(weights, uniform(parameters.seed, parameters.position))
    }
}

#[inline(always)]
fn score(logits: &[f32], temperature: f32, scores: &mut Vec<f32>) {
    let mut largest = f32::NEG_INFINITY;
    for logit in logits {
        largest = if *logit > largest { *logit } else { largest };
    }
    scores.clear();
    scores.extend(logits.iter().map(|logit| (logit - largest) / temperature));
}

#[inline(always)]
unsafe fn exponentials<S: Simd>(scores: &[f32], weights: &mut Vec<f32>) {
    weights.clear();
    weights.resize(scores.len(), 0.0);
    let whole = scores.len() / LANES * LANES;
    for n in (0..whole).step_by(LANES) {
        let weight = exp::<S>(S::load(scores.as_ptr().add(n)));
        S::store(weights.as_mut_ptr().add(n), weight);
    }
    let mut rest = [f32::NEG_INFINITY; LANES];
    rest[..scores.len() - whole].copy_from_slice(&scores[whole..]);
    S::store(rest.as_mut_ptr(), exp::<S>(S::load(rest.as_ptr())));
    weights[whole..].copy_from_slice(&rest[..scores.len() - whole]);
}

#[inline(always)]
fn remove_below(scores: &mut [f32], lowest: f32) {
    for score in scores {
        *score = if *score < lowest {
            f32::NEG_INFINITY
        } else {
            *score
        };
    }
}

#[inline(always)]
fn bucket_of(score: f32) -> usize {
    ((-score * BUCKETS_PER_UNIT) as usize).min(NUM_BUCKETS - 1)
}

/// The `k`th largest score, k from 1.
#[inline(always)]
fn kth_largest(scores: &[f32], k: usize, bucket: &mut Vec<f32>) -> f32 {
    let mut counts = [0_usize; NUM_BUCKETS];
    for score in scores {
        counts[bucket_of(*score)] += 1;
    }
    let mut before = 0;
    for (number, count) in counts.iter().enumerate() {
        if before + count >= k {
            bucket.clear();
            bucket.extend(scores.iter().filter(|score| bucket_of(**score) == number));
            let (_, kth, _) = bucket.select_nth_unstable_by(k - before - 1, |a, b| b.total_cmp(a));
            return *kth;
        }
        before += count;
    }
    f32::NEG_INFINITY
}

/// The smallest of the fewest largest weights that together hold `mass` of all.
#[inline(always)]
fn covering_weight(scores: &[f32], weights: &[f32], mass: f32, bucket: &mut Vec<f32>) -> f32 {
    let mut masses = [0_f64; NUM_BUCKETS];
    for (score, weight) in scores.iter().zip(weights) {
        masses[bucket_of(*score)] += f64::from(*weight);
    }
    let total: f64 = masses.iter().sum();
    let mut covered = 0.0;
    for (number, in_bucket) in masses.iter().enumerate() {
        if is_covered(covered + in_bucket, total, mass) {
            bucket.clear();
            let inside = scores.iter().zip(weights);
            let inside = inside.filter(|(score, _)| bucket_of(**score) == number);
            bucket.extend(inside.map(|(_, weight)| *weight));
            bucket.sort_unstable_by(|a, b| b.total_cmp(a));
            for weight in bucket.iter() {
                covered += f64::from(*weight);
                if is_covered(covered, total, mass) {
                    return *weight;
                }
            }
            return bucket.last().copied().unwrap_or(0.0); // the bucket's sum was rounded up
        }
        covered += in_bucket;
    }
    0.0
}

#[inline(always)]
fn is_covered(covered: f64, total: f64, mass: f32) -> bool {
    (covered / total) as f32 >= mass
}

/// The first token at which the running sum of the weights passes the part `uniform` of all.
#[inline(always)]
fn invert(weights: &[f32], uniform: f64) -> usize {
    let total: f64 = weights.chunks(CHUNK).map(sum).sum();
    let target = uniform * total;
    let mut running = 0.0;
    for (number, chunk) in weights.chunks(CHUNK).enumerate() {
        let in_chunk = sum(chunk);
        if running + in_chunk > target {
            return number * CHUNK + invert_chunk(chunk, target - running);
        }
        running += in_chunk;
    }
    last_possible(weights) // rounding lifted the target to the total, or the row is not finite
}

#[inline(always)]
fn invert_chunk(weights: &[f32], target: f64) -> usize {
    let mut running = 0.0;
    for (n, weight) in weights.iter().enumerate() {
        running += f64::from(*weight);
        if running > target {
            return n;
        }
    }
    last_possible(weights)
}

fn last_possible(weights: &[f32]) -> usize {
    weights
        .iter()
        .rposition(|weight| *weight > 0.0)
        .unwrap_or(0)
}

#[inline(always)]
fn sum(weights: &[f32]) -> f64 {
    let mut sums = [0.0; 8];
    for part in weights.chunks(8) {
        for (sum, weight) in sums.iter_mut().zip(part) {
            *sum += f64::from(*weight);
        }
    }
    sums.iter().sum()
}

/// In [0, 1) with 53 random bits: two rounds of the finalizer of splitmix64 (Steele, Lea, Flood, 2014).
fn uniform(seed: u64, position: u64) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let key = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(key.wrapping_add(position.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 * 2_f64.powi(-53)
}

fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_of_top_k_is_that_of_a_sort() {
        let scores: Vec<f32> = (0..999_u64)
            .map(|n| -(uniform(7, n) as f32) * 90.0)
            .collect();
        let mut sorted = scores.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        for k in [1, 2, 50, 700, 998, 999] {
            assert_eq!(kth_largest(&scores, k, &mut Vec::new()), sorted[k - 1]);
        }
    }

    #[test]
    fn a_token_without_weight_is_never_found() {
        let mut weights = vec![0.0; 1000];
        (weights[300], weights[700]) = (1.0, 3.0);
        let found = [0.0, 0.2, 0.25, 0.9, 1.0].map(|target| invert(&weights, target));
        assert_eq!(found, [300, 300, 700, 700, 700]);
    }
}
