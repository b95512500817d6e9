//! How long steps take, learnt from those that were measured, and with it how much prefill a step has room for while others decode.
//!
//! ```text
//! time(step) = decode(rows)                          median of late steps that only decoded as many rows, about
//!            + fixed + per_token * tokens + per_pair * pairs   what prefill adds; pairs = tokens that each token attends to
//! ```
//!
//! Without what is fixed, small chunks would seem to be dear, and be made smaller for that, and seem to be dearer still.
//!
//! There is no clock here: times come in, and the same times always give the same answers. One wild measurement moves the decode times
//! not at all and the costs by a bounded factor, and all of it wears off.

use std::array;

use crate::plan::MIN_PREFILL_TOKENS;

/// A step with prefill is to take so many times what one takes that only decodes. Nobody should see 3, and some take longer than foreseen.
const MAX_STEP_RATIO: f64 = 1.7;
/// A step that only computes prompts takes at most so many times what the smallest one takes. Larger ones would save little and
/// keep others from their first token.
const MAX_PREFILL_RATIO: f64 = 16.0;
/// Nobody sees the difference between steps that are faster than this.
const UNNOTICED_SECS: f64 = 0.015;
/// After so many steps with prefill one only decodes, so that it is known how long that takes; earlier while little is known.
const MAX_UNMEASURED_STEPS: usize = 64;
const FIRST_UNMEASURED_STEPS: usize = 8;
const NUM_FIRST_TIMES: usize = 3;
const NUM_DECODE_TIMES: usize = 7;
/// Row counts up to 2, 4, 8 and so on.
const NUM_BUCKETS: usize = 16;
/// So many pairs weigh as much as a token at first sight, and what is fixed as much as so many tokens.
const PAIRS_PER_TOKEN: f64 = 1024.0;
const FIXED_TOKENS: f64 = 16.0;
/// The share of an error that is corrected at once.
const LEARNING_RATE: f64 = 0.5;
/// By so much of itself a decode time may be wrong. Prefill that adds less than that is believed less.
const DECODE_NOISE: f64 = 0.2;
/// Prefill is at least so much of its step, however fast that was.
const LEAST_SHARE: f64 = 0.02;
/// What costs nothing could never be seen to cost more.
const LEAST_SECS_PER_TOKEN: f64 = 1e-9;
/// A step can be believed to cost at most so many times what was foreseen.
const MAX_SURPRISE: f64 = 3.0;

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

/// How much prefill a step may have, beside what is fixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Room {
    /// As much as there is work for: nothing is known yet.
    Unlimited,
    Seconds(f64),
    /// This step is to be measured without any.
    Nothing,
}

/// All that was learnt.
#[derive(Default)]
pub(crate) struct StepTimes {
    decode: [DecodeTimes; NUM_BUCKETS],
    /// Of prefill without decode, where even all of the step counts as prefill, and on top of decode.
    alone: Option<PrefillCost>,
    on_top: Option<PrefillCost>,
}

impl StepTimes {
    /// Takes a measured step into account.
    pub(crate) fn observe(&mut self, shape: StepShape, seconds: f64) {
        let (rows, tokens) = (shape.num_decode_rows, shape.num_prefill_tokens);
        if seconds <= 0.0 || rows + tokens == 0 {
            return;
        }
        if tokens == 0 {
            self.decode[bucket(rows)].push(seconds);
        } else if rows == 0 {
            learn(&mut self.alone, shape, seconds, 0.0);
        } else if let Some(decode) = self.decode_secs(rows) {
            let extra = (seconds - decode).max(LEAST_SHARE * seconds);
            self.on_top = self.on_top.or(self.alone);
            learn(&mut self.on_top, shape, extra, DECODE_NOISE * decode);
        }
    }

    /// How long such a step will take, as far as is known.
    pub(crate) fn foresee(&self, shape: StepShape) -> Option<f64> {
        let decode = match shape.num_decode_rows {
            0 => 0.0,
            rows => self.decode_secs(rows)?,
        };
        let prefill = match shape.num_prefill_tokens {
            0 => 0.0,
            tokens => self.cost()?.predict(tokens as f64, shape.num_prefill_pairs),
        };
        Some(decode + prefill)
    }

    /// What the next step may have, in which so many rows decode while so many sequences wait for prefill. The more wait for each
    /// that decodes, the more these bear, for the sake of the others: small chunks cost more for each of their tokens.
    pub(crate) fn room(&mut self, num_decode_rows: usize, num_waiting: usize) -> Room {
        let Some(fixed) = self.cost().map(PrefillCost::fixed) else {
            return Room::Unlimited;
        };
        if num_decode_rows == 0 {
            let least = self.decode_secs(1);
            return least.map_or(Room::Unlimited, |least| {
                Room::Seconds(MAX_PREFILL_RATIO * least - fixed)
            });
        }
        let known = self.decode_secs(num_decode_rows);
        let bucket = &mut self.decode[bucket(num_decode_rows)];
        if num_waiting == 0 || bucket.is_due(known.is_none()) {
            bucket.num_unmeasured_steps = 1;
            return Room::Nothing;
        }
        bucket.num_unmeasured_steps += 1;
        known.map_or(Room::Unlimited, |decode| {
            let share = 1.0 + num_waiting as f64 / num_decode_rows as f64;
            let longest = (MAX_STEP_RATIO * share * decode).max(UNNOTICED_SECS);
            Room::Seconds(longest - decode - fixed)
        })
    }

    /// The prefill tokens that take so long, behind so many computed ones; never less than `MIN_PREFILL_TOKENS`.
    pub(crate) fn tokens_within(&self, seconds: f64, num_computed_tokens: usize) -> usize {
        let fitting = self.cost().map_or(f64::INFINITY, |cost| {
            cost.tokens_within(seconds, num_computed_tokens as f64)
        });
        (fitting as usize).max(MIN_PREFILL_TOKENS as usize)
    }

    /// The seconds that a chunk is expected to add to a step with prefill.
    pub(crate) fn chunk_secs(&self, num_tokens: usize, num_computed_tokens: usize) -> f64 {
        let pairs = num_pairs(num_tokens, num_computed_tokens);
        self.cost()
            .map_or(0.0, |cost| cost.of_chunks(num_tokens as f64, pairs))
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
}

/// Late times of steps with about as many rows, in a ring.
#[derive(Default)]
struct DecodeTimes {
    times: [f64; NUM_DECODE_TIMES],
    num_times: usize,
    next: usize,
    /// Since the last step that was to be measured, with that one; 0 before the first.
    num_unmeasured_steps: usize,
}

impl DecodeTimes {
    fn push(&mut self, seconds: f64) {
        self.times[self.next] = seconds;
        self.next = (self.next + 1) % NUM_DECODE_TIMES;
        self.num_times = NUM_DECODE_TIMES.min(self.num_times + 1);
    }

    /// Whether it is time for a step that only decodes.
    fn is_due(&self, nothing_is_known: bool) -> bool {
        let most = if self.num_times < NUM_FIRST_TIMES {
            FIRST_UNMEASURED_STEPS
        } else {
            MAX_UNMEASURED_STEPS
        };
        let is_first = nothing_is_known && self.num_unmeasured_steps == 0;
        is_first || self.num_unmeasured_steps >= most
    }

    fn median(&self) -> Option<f64> {
        let mut times = self.times;
        let times = &mut times[..self.num_times];
        times.sort_unstable_by(f64::total_cmp);
        times.get(self.num_times / 2).copied()
    }
}

/// What prefill costs, in seconds per `FIXED_TOKENS`th of what is fixed, per token and per `PAIRS_PER_TOKEN` pairs. Corrected by each
/// step along the step's own mix of the three (normalised least mean squares), so that steps like the last ones are foreseen well.
#[derive(Clone, Copy, Debug)]
struct PrefillCost {
    weights: [f64; 3],
}

impl PrefillCost {
    fn fixed(self) -> f64 {
        FIXED_TOKENS * self.weights[0]
    }

    /// Without what is fixed.
    fn of_chunks(self, num_tokens: f64, num_pairs: f64) -> f64 {
        let [_, per_token, per_pairs] = self.weights;
        per_token * num_tokens + per_pairs * num_pairs / PAIRS_PER_TOKEN
    }

    fn predict(self, num_tokens: f64, num_pairs: f64) -> f64 {
        self.fixed() + self.of_chunks(num_tokens, num_pairs)
    }

    /// Solves `of_chunks(n, pairs of n) = seconds` for n.
    fn tokens_within(self, seconds: f64, num_computed_tokens: f64) -> f64 {
        let [_, per_token, per_pairs] = self.weights;
        let per_pair = per_pairs / PAIRS_PER_TOKEN;
        let linear = per_token + per_pair * num_computed_tokens;
        let seconds = seconds.max(0.0);
        // The root in the form that also holds where nothing is known of pairs.
        2.0 * seconds / (linear + (linear * linear + 2.0 * per_pair * seconds).sqrt())
    }

    fn correct(&mut self, shape: StepShape, seconds: f64, noise: f64) {
        let tokens = shape.num_prefill_tokens as f64;
        let features = [
            FIXED_TOKENS,
            tokens,
            shape.num_prefill_pairs / PAIRS_PER_TOKEN,
        ];
        let foreseen = self.predict(tokens, shape.num_prefill_pairs);
        let error = seconds.min(MAX_SURPRISE * foreseen) - foreseen;
        let belief = LEARNING_RATE * foreseen / (foreseen + noise);
        let size: f64 = features.iter().map(|feature| feature * feature).sum();
        self.weights = array::from_fn(|i| {
            let least = if i == 1 { LEAST_SECS_PER_TOKEN } else { 0.0 };
            (self.weights[i] + belief * error * features[i] / size).max(least)
        });
    }
}

/// `seconds` may be wrong by `noise`.
fn learn(cost: &mut Option<PrefillCost>, shape: StepShape, seconds: f64, noise: f64) {
    match cost {
        Some(cost) => cost.correct(shape, seconds, noise),
        None => {
            let per_token = seconds / shape.num_prefill_tokens as f64;
            *cost = Some(PrefillCost {
                weights: [0.0, per_token.max(LEAST_SECS_PER_TOKEN), 0.0],
            });
        }
    }
}

/// 1 and 2 rows, 3 and 4, 5 to 8 and so on.
fn bucket(num_rows: usize) -> usize {
    let bits = num_rows.max(1).next_power_of_two().trailing_zeros() as usize;
    bits.saturating_sub(1).min(NUM_BUCKETS - 1)
}
