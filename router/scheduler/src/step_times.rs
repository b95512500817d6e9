//! How long steps take, learnt from those that were measured, and with it how much prefill a step has room for while others decode.
//!
//! ```text
//! time(step) = decode(rows)                          median of late steps that only decoded as many rows, about
//!            + per_token * tokens + per_pair * pairs   what prefill adds; pairs = tokens that each token attends to
//! ```
//!
//! There is no clock here: times come in, and the same times always give the same answers. One wild measurement moves the decode times
//! not at all and the costs by a bounded factor, and all of it wears off.

use std::array;

use crate::plan::MIN_PREFILL_TOKENS;

/// A step with prefill may take that much longer than one that only decodes. Below 3, because some take longer than foreseen.
const MAX_STEP_RATIO: f64 = 2.5;
/// Nobody sees the difference between steps that are faster than this.
const UNNOTICED_SECS: f64 = 0.03;
/// Steps with prefill tell the decode time, too, once so many steps passed without one that only decodes.
const STALE_STEPS: u64 = 64;
const NUM_DECODE_TIMES: usize = 7;
/// Row counts up to 2, 4, 8 and so on.
const NUM_BUCKETS: usize = 16;
/// So many pairs weigh as much as a token at first sight.
const PAIRS_PER_TOKEN: f64 = 1024.0;
/// The share of an error that is corrected at once, for a chunk that is large.
const LEARNING_RATE: f64 = 0.5;
/// Chunks of so many tokens are believed half as much as large ones: what they add drowns in the rest of the step.
const HALF_BELIEVED_TOKENS: f64 = 48.0;
/// Prefill is at least so much of its step, however fast that was.
const LEAST_SHARE: f64 = 0.02;
/// What costs nothing could never be seen to cost more.
const LEAST_SECS_PER_TOKEN: f64 = 1e-9;
/// A step can be believed to cost at most so many times what was foreseen.
const MAX_SURPRISE: f64 = 5.0;

/// What a step computes, as far as its time depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepShape {
    pub(crate) num_decode_rows: usize,
    pub(crate) num_prefill_tokens: usize,
    /// Over all prefill tokens: the tokens that each attends to.
    pub(crate) num_prefill_pairs: f64,
}

/// Pairs of a chunk behind tokens that are computed already.
pub(crate) fn num_pairs(num_tokens: usize, num_computed_tokens: usize) -> f64 {
    let num_tokens = num_tokens as f64;
    num_tokens * (num_computed_tokens as f64 + num_tokens / 2.0)
}

/// All that was learnt.
#[derive(Default)]
pub(crate) struct StepTimes {
    decode: [DecodeTimes; NUM_BUCKETS],
    /// Of prefill without decode, where even all of the step counts as prefill, and on top of decode.
    alone: Option<PrefillCost>,
    on_top: Option<PrefillCost>,
    num_observed: u64,
}

impl StepTimes {
    /// Takes a measured step into account.
    pub(crate) fn observe(&mut self, shape: StepShape, seconds: f64) {
        let (rows, tokens) = (shape.num_decode_rows, shape.num_prefill_tokens);
        if seconds <= 0.0 || rows + tokens == 0 {
            return;
        }
        self.num_observed += 1;
        let num_observed = self.num_observed;
        if tokens == 0 {
            let bucket = &mut self.decode[bucket(rows)];
            bucket.push(seconds);
            bucket.measured_at = Some(num_observed);
        } else if rows == 0 {
            learn(&mut self.alone, shape, seconds);
        } else {
            self.estimate_decode(shape, seconds);
            let extra = seconds - self.decode_secs(rows).unwrap_or(0.0);
            self.on_top = self.on_top.or(self.alone);
            learn(&mut self.on_top, shape, extra.max(LEAST_SHARE * seconds));
        }
    }

    /// The seconds of prefill that a step has room for. `None`: as many as there is work for, because nobody decodes or nothing is
    /// known yet. Where more sequences wait for their prefill than decode, the few bear more, for the sake of the many.
    pub(crate) fn prefill_room(&self, num_decode_rows: usize, num_waiting: usize) -> Option<f64> {
        if num_decode_rows == 0 || self.cost().is_none() {
            return None;
        }
        let decode = self.decode_secs(num_decode_rows)?;
        let share = (num_waiting as f64 / num_decode_rows as f64).max(1.0);
        let longest = (MAX_STEP_RATIO * share * decode).max(UNNOTICED_SECS);
        Some(longest - decode)
    }

    /// The prefill tokens that take so long, behind so many computed ones; never less than `MIN_PREFILL_TOKENS`.
    pub(crate) fn tokens_within(&self, seconds: f64, num_computed_tokens: usize) -> usize {
        let fitting = self.cost().map_or(f64::INFINITY, |cost| {
            cost.tokens_within(seconds, num_computed_tokens as f64)
        });
        (fitting as usize).max(MIN_PREFILL_TOKENS as usize)
    }

    /// The seconds that a chunk is expected to add to its step.
    pub(crate) fn prefill_secs(&self, num_tokens: usize, num_computed_tokens: usize) -> f64 {
        let pairs = num_pairs(num_tokens, num_computed_tokens);
        self.cost()
            .map_or(0.0, |cost| cost.predict(num_tokens as f64, pairs))
    }

    fn cost(&self) -> Option<PrefillCost> {
        self.on_top.or(self.alone)
    }

    /// The time of a step that only decodes, from the nearest number of rows that was seen.
    fn decode_secs(&self, num_rows: usize) -> Option<f64> {
        let (lower, higher) = self.decode.split_at(bucket(num_rows) + 1);
        let nearest = lower.iter().rev().chain(higher);
        nearest.filter_map(DecodeTimes::median).next()
    }

    /// Where steps that only decode are rare, what is left of a step without its prefill stands in for them.
    fn estimate_decode(&mut self, shape: StepShape, seconds: f64) {
        let (rows, tokens) = (
            shape.num_decode_rows as f64,
            shape.num_prefill_tokens as f64,
        );
        let num_observed = self.num_observed;
        let bucket = &mut self.decode[bucket(shape.num_decode_rows)];
        if bucket
            .measured_at
            .is_some_and(|at| num_observed - at < STALE_STEPS)
        {
            return;
        }
        let prefill = self.alone.map_or(seconds, |cost| {
            cost.predict(tokens, shape.num_prefill_pairs)
        });
        let least = seconds * rows / (rows + tokens);
        bucket.push((seconds - prefill).max(least));
    }
}

/// Late times of steps with about as many rows, in a ring.
#[derive(Default)]
struct DecodeTimes {
    times: [f64; NUM_DECODE_TIMES],
    num_times: usize,
    next: usize,
    /// The number of the last step that only decoded.
    measured_at: Option<u64>,
}

impl DecodeTimes {
    fn push(&mut self, seconds: f64) {
        self.times[self.next] = seconds;
        self.next = (self.next + 1) % NUM_DECODE_TIMES;
        self.num_times = NUM_DECODE_TIMES.min(self.num_times + 1);
    }

    fn median(&self) -> Option<f64> {
        let mut times = self.times;
        let times = &mut times[..self.num_times];
        times.sort_unstable_by(f64::total_cmp);
        times.get(self.num_times / 2).copied()
    }
}

/// What prefill costs, in seconds per token and per `PAIRS_PER_TOKEN` pairs. Corrected by each step along the step's own mix of the
/// two (normalised least mean squares), so that steps like the last ones are foreseen well.
#[derive(Clone, Copy, Debug)]
struct PrefillCost {
    weights: [f64; 2],
}

impl PrefillCost {
    fn predict(self, num_tokens: f64, num_pairs: f64) -> f64 {
        let [per_token, per_pairs] = self.weights;
        per_token * num_tokens + per_pairs * num_pairs / PAIRS_PER_TOKEN
    }

    /// Solves `predict(n, pairs of n) = seconds` for n.
    fn tokens_within(self, seconds: f64, num_computed_tokens: f64) -> f64 {
        let [per_token, per_pairs] = self.weights;
        let per_pair = per_pairs / PAIRS_PER_TOKEN;
        let linear = per_token + per_pair * num_computed_tokens;
        let seconds = seconds.max(0.0);
        // The root in the form that also holds where nothing is known of pairs.
        2.0 * seconds / (linear + (linear * linear + 2.0 * per_pair * seconds).sqrt())
    }

    fn correct(&mut self, shape: StepShape, seconds: f64) {
        let tokens = shape.num_prefill_tokens as f64;
        let features = [tokens, shape.num_prefill_pairs / PAIRS_PER_TOKEN];
        let foreseen = self.predict(tokens, shape.num_prefill_pairs);
        let error = seconds.min(MAX_SURPRISE * foreseen) - foreseen;
        let belief = LEARNING_RATE * tokens / (tokens + HALF_BELIEVED_TOKENS);
        let size: f64 = features.iter().map(|feature| feature * feature).sum();
        self.weights = array::from_fn(|i| self.weights[i] + belief * error * features[i] / size);
        self.weights[0] = self.weights[0].max(LEAST_SECS_PER_TOKEN);
        self.weights[1] = self.weights[1].max(0.0);
    }
}

fn learn(cost: &mut Option<PrefillCost>, shape: StepShape, seconds: f64) {
    match cost {
        Some(cost) => cost.correct(shape, seconds),
        None => {
            let per_token = seconds / shape.num_prefill_tokens as f64;
            *cost = Some(PrefillCost {
                weights: [per_token.max(LEAST_SECS_PER_TOKEN), 0.0],
            });
        }
    }
}

/// 1 and 2 rows, 3 and 4, 5 to 8 and so on.
fn bucket(num_rows: usize) -> usize {
    let bits = num_rows.max(1).next_power_of_two().trailing_zeros() as usize;
    bits.saturating_sub(1).min(NUM_BUCKETS - 1)
}
