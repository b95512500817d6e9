"""Chooses a token in each row of logits and says how likely it was, in one launch, and finds the most likely tokens in another:
no sort, no generator state, no wait for the device. One program reads one row several times.

The semantics are those of `sampling/`, which is what these kernels are tested against. Sums of probabilities are
rounded otherwise here and there: a threshold or a draw within about 1e-6 of the boundary between two tokens may fall on the
other side. Whether a row is finite is judged number by number; there, a sum that overflows counts as well.

Shapes: N rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from text_gen_server.triton_kernels.threshold import (
    DIGITS,
    add_weights,
    key_of,
    load_row,
    next_digit,
    no_weights,
    number_of,
)

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024
PENALTY_BLOCK = 4096
LARGEST = torch.finfo(torch.float32).max
# The constants of `sampling/rng.py`.
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)


@dataclass(frozen=True)
class DrawParameters:
    """How the token of each row is chosen; one copy to the device for each tensor."""

    # [N, 4] float32: temperature > 0; top_p, 1 = off; typical_p, 1 = off; log of min_p, minus infinity = off
    numbers: Tensor
    # [N, 4] int64: 1 = draw, 0 = the most likely token; top_k, 0 = off; bits of the seed; index of the token in its sequence
    integers: Tensor


@dataclass(frozen=True)
class Choices:
    token_ids: Tensor  # [N] int64; 0 where the row is not finite
    logprobs: Tensor  # [N] float32, log_softmax of the raw logits at the token, among the allowed ones
    normalizers: Tensor  # [N] float32, log of the sum of exp(raw logits), among the allowed ones
    is_finite: Tensor  # [N] bool; False: the raw logits held NaN or infinity


def choose_tokens(raw: Tensor, processed: Tensor, parameters: DrawParameters, allowed: Tensor | None = None) -> Choices:
    """Draws by inverting the cumulative distribution over the ids in order, after temperature, top_k, top_p, typical_p, min_p.

    raw, processed: [N, V] float32, contiguous; what probabilities are taken from, and what is chosen from (may be the same)
    allowed: [N, at least V / 32] int32, contiguous, one bit for each token a row may have, lowest first; None = any
    """
    num_rows, vocab_size = raw.shape
    assert raw.is_contiguous(), "one row follows the other"
    assert processed.is_contiguous(), "one row follows the other"
    choices = Choices(
        token_ids=raw.new_empty(num_rows, dtype=torch.int64),
        logprobs=raw.new_empty(num_rows),
        normalizers=raw.new_empty(num_rows),
        is_finite=raw.new_empty(num_rows, dtype=torch.bool),
    )
    if num_rows > 0:
        _choose[(num_rows,)](
            choices.token_ids,
            choices.logprobs,
            choices.normalizers,
            choices.is_finite,
            raw,
            processed,
            raw if allowed is None else allowed,
            parameters.numbers,
            parameters.integers,
            vocab_size,
            0 if allowed is None else allowed.stride(0),
            HAS_MASK=allowed is not None,
            BLOCK=BLOCK,
            num_warps=8,
        )
    return choices


def most_likely(raw: Tensor, count: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The largest logits of each row, largest first; of equals the lower id first.

    raw: [N, V] float32, contiguous; allowed: as in `choose_tokens`, where a forbidden token counts as minus infinity
    count: at most V
    -> ids [N, count] int64, logits [N, count] float32
    """
    num_rows, vocab_size = raw.shape
    assert raw.is_contiguous(), "one row follows the other"
    assert count <= vocab_size, f"{count} tokens are asked of {vocab_size}"
    token_ids = raw.new_empty((num_rows, count), dtype=torch.int64)
    logits = raw.new_empty((num_rows, count))
    if count > 0 and num_rows > 0:
        _collect_largest[(num_rows,)](
            token_ids,
            logits,
            raw,
            raw if allowed is None else allowed,
            vocab_size,
            count,
            0 if allowed is None else allowed.stride(0),
            HAS_MASK=allowed is not None,
            BLOCK=BLOCK,
            num_warps=8,
        )
    # They are in the order of their ids, which a stable sort keeps among equals.
    logits, order = logits.sort(dim=-1, descending=True, stable=True)
    return token_ids.gather(-1, order), logits


def count_tokens(token_ids: Tensor, starts: Tensor, prompt_lens: Tensor, *, longest: int, vocab_size: int) -> Tensor:
    """How often each row has each token: twice the number of generated ones, plus one where it was seen at all.

    token_ids: [all of them] int64, prompt and generated tokens of the rows behind each other: padded to the longest they would
        take as much as all rows at their longest
    starts: [N + 1] int64, row n has [starts[n], starts[n + 1]); prompt_lens: [N] int64; longest: tokens of a row
    -> [N, V] int32
    """
    num_rows = len(prompt_lens)
    counts = token_ids.new_zeros((num_rows, vocab_size), dtype=torch.int32)
    if num_rows > 0 and longest > 0:
        grid = (num_rows, triton.cdiv(longest, BLOCK))
        _count_tokens[grid](counts, token_ids, starts, prompt_lens, vocab_size, BLOCK=BLOCK)
    return counts


def penalize_(logits: Tensor, row_idx: Tensor, counts: Tensor, penalties: Tensor) -> None:
    """Repetition penalty over seen tokens, then frequency and presence penalty over generated ones, in place.

    logits: [N, V] float32, contiguous
    row_idx: [n] int64, the rows with penalties; counts: [n, V] int32 of `count_tokens`
    penalties: [n, 3] float32: repetition, 1 = off; frequency, 0 = off; presence, 0 = off
    """
    vocab_size = logits.shape[1]
    assert logits.is_contiguous(), "one row follows the other"
    if len(row_idx) > 0:
        grid = (len(row_idx), triton.cdiv(vocab_size, PENALTY_BLOCK))
        _penalize[grid](logits, row_idx, counts, penalties, vocab_size, LARGEST, BLOCK=PENALTY_BLOCK, num_warps=8)


@triton.jit
def _count_tokens(counts, token_ids, starts, prompt_lens, vocab_size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(starts + row)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = at < tl.load(starts + row + 1) - start
    token = tl.load(token_ids + start + at, mask=is_token, other=0)
    target = counts + row * vocab_size + token
    tl.atomic_or(target, tl.full([BLOCK], 1, tl.int32), mask=is_token)
    tl.atomic_add(target, tl.full([BLOCK], 2, tl.int32), mask=is_token & (at >= tl.load(prompt_lens + row)))


@triton.jit
def _penalize(logits, row_idx, counts, penalties, vocab_size, largest, BLOCK: tl.constexpr):
    chosen = tl.program_id(0).to(tl.int64)
    row = tl.load(row_idx + chosen)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < vocab_size
    repetition = tl.load(penalties + chosen * 3)
    frequency = tl.load(penalties + chosen * 3 + 1)
    presence = tl.load(penalties + chosen * 3 + 2)
    count = tl.load(counts + chosen * vocab_size + at, mask=is_inside, other=0)
    scores = tl.load(logits + row * vocab_size + at, mask=is_inside, other=0.0)
    repeated = tl.where(scores > 0, tl.div_rn(scores, repetition), scores * repetition)
    scores = tl.where((count & 1) != 0, repeated, scores)
    num_generated = count >> 1
    scores = tl.where(num_generated > 0, scores - (num_generated.to(tl.float32) * frequency + presence), scores)
    scores = tl.where(scores > largest, largest, tl.where(scores < -largest, -largest, scores))
    tl.store(logits + row * vocab_size + at, scores, mask=is_inside)


@triton.jit
def _mix(bits):
    bits = (bits ^ (bits >> 30)) * MIX_1
    bits = (bits ^ (bits >> 27)) * MIX_2
    return bits ^ (bits >> 31)


@triton.jit
def _uniform(seed, position):
    """The number of `sampling/rng.py` in [0, 1), float64."""
    key = _mix(seed.to(tl.uint64, bitcast=True) + GOLDEN)
    bits = _mix(key + (position + 1).to(tl.uint64, bitcast=True) * GOLDEN)
    return (bits >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2^-53


@triton.jit
def _left(row, allowed, at, vocab_size, state, HAS_MASK: tl.constexpr):
    """Scores of the tokens `at` that the filters so far have left, minus infinity for the others.

    state: largest logit; temperature; lowest score (top_k); mass of exp(score) and lowest probability (top_p); log of the mass,
        entropy and largest distance from it (typical_p); lowest score (min_p)
    """
    top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely = state
    scores = tl.div_rn(load_row(row, allowed, at, vocab_size, HAS_MASK) - top, temperature + tl.zeros_like(at).to(tl.float32))
    scores = tl.where(scores >= lowest, scores, float("-inf"))
    scores = tl.where(tl.exp(scores) / mass >= lowest_probability, scores, float("-inf"))
    scores = tl.where(tl.abs(log_mass - scores - entropy) <= farthest, scores, float("-inf"))
    return tl.where(scores >= lowest_likely, scores, float("-inf"))


@triton.jit
def _sums(row, allowed, vocab_size, state, shift, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    """Over the tokens left: the largest score, and in float64 the sums of weight = exp(score - shift) and of weight * score."""
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK], tl.float64)
    moment = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab_size, BLOCK):
        scores = _left(row, allowed, start + tl.arange(0, BLOCK), vocab_size, state, HAS_MASK)
        largest = tl.maximum(largest, scores)
        weight = tl.exp(scores - shift).to(tl.float64)
        mass += weight
        moment += weight * tl.where(weight > 0, scores, 0.0).to(tl.float64)
    return tl.max(largest, 0), tl.sum(mass, 0), tl.sum(moment, 0)


@triton.jit
def _covering_key(row, allowed, vocab_size, state, goal, KIND: tl.constexpr, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    """The largest key such that the tokens with keys from it on hold `goal`; 0 where all of them do not.

    KIND: "top_k" counts tokens by score, "top_p" adds up probabilities by probability, "typical_p" by closeness to the entropy.
    """
    mass, log_mass, entropy = state[3], state[5], state[6]
    prefix = tl.zeros([], tl.int64)
    above = tl.zeros([], tl.float64)
    for step in range(DIGITS):
        shift = (DIGITS - 1 - step) * 3
        weights = no_weights(BLOCK)
        for start in range(0, vocab_size, BLOCK):
            at = start + tl.arange(0, BLOCK)
            scores = _left(row, allowed, at, vocab_size, state, HAS_MASK)
            if KIND == "top_k":
                keys = key_of(scores)
                amounts = tl.where(at < vocab_size, 1.0, 0.0)
            elif KIND == "top_p":
                probabilities = tl.exp(scores) / mass
                keys = probabilities.to(tl.int32, bitcast=True).to(tl.int64)
                amounts = probabilities
            else:
                keys = 0x7FFFFFFF - tl.abs(log_mass - scores - entropy).to(tl.int32, bitcast=True).to(tl.int64)
                amounts = tl.exp(scores - log_mass)
            weights = add_weights(weights, keys, amounts, prefix, shift)
        digit, above = next_digit(weights, above, goal)
        prefix = prefix * 8 + digit
    return prefix


@triton.jit
def _choose(
    token_ids,
    logprobs,
    normalizers,
    is_finite,
    raw,
    processed,
    allowed,
    numbers,
    integers,
    vocab_size,
    stride_allowed,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    raw_row = raw + n * vocab_size
    row = processed + n * vocab_size
    allowed_row = allowed + n * stride_allowed

    # The most likely token, and whether all is finite.
    lane = tl.arange(0, BLOCK)
    raw_largest = tl.full([BLOCK], float("-inf"), tl.float32)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    best = lane
    is_bad = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab_size, BLOCK):
        at = start + lane
        unmasked = tl.load(raw_row + at, mask=at < vocab_size, other=0.0)
        is_bad = tl.where(tl.abs(unmasked) < float("inf"), is_bad, 1)  # NaN is below nothing
        raw_largest = tl.maximum(raw_largest, load_row(raw_row, allowed_row, at, vocab_size, HAS_MASK))
        logits = load_row(row, allowed_row, at, vocab_size, HAS_MASK)
        best = tl.where(logits > largest, at, best)
        largest = tl.maximum(largest, logits)
    top = tl.max(largest, 0)
    token = tl.min(tl.where((largest == top) & (best < vocab_size), best, vocab_size - 1), 0)
    finite = tl.max(is_bad, 0) == 0

    raw_top = tl.max(raw_largest, 0)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, vocab_size, BLOCK):
        logits = load_row(raw_row, allowed_row, start + lane, vocab_size, HAS_MASK)
        total += tl.exp(logits - raw_top).to(tl.float64)
    normalizer = raw_top + tl.log(tl.sum(total, 0).to(tl.float32))

    if (tl.load(integers + n * 4) != 0) & finite:
        token = _draw(row, allowed_row, vocab_size, top, numbers + n * 4, integers + n * 4, HAS_MASK, BLOCK)
    token = tl.where(finite, token, 0)
    tl.store(token_ids + n, token.to(tl.int64))
    chosen = load_row(raw_row, allowed_row, token, vocab_size, HAS_MASK)
    tl.store(logprobs + n, chosen - normalizer)
    tl.store(normalizers + n, normalizer)
    tl.store(is_finite + n, finite)


@triton.jit
def _draw(row, allowed, vocab_size, top, numbers, integers, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    """Filters one row and draws from what is left -> token, int32"""
    temperature = tl.load(numbers)
    top_p = tl.load(numbers + 1)
    typical_p = tl.load(numbers + 2)
    log_min_p = tl.load(numbers + 3)
    top_k = tl.load(integers + 1)
    zero = temperature * 0.0
    lowest = zero + float("-inf")
    mass = zero + 1.0
    lowest_probability = zero - 1.0
    log_mass = zero
    entropy = zero
    farthest = zero + float("inf")
    lowest_likely = zero + float("-inf")
    if (top_k > 0) & (top_k < vocab_size):
        state = (top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely)
        key = _covering_key(row, allowed, vocab_size, state, top_k.to(tl.float64), "top_k", HAS_MASK, BLOCK)
        lowest = number_of(key)
    if top_p < 1:
        state = (top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely)
        largest, sum_left, moment = _sums(row, allowed, vocab_size, state, zero, HAS_MASK, BLOCK)
        mass = sum_left.to(tl.float32)
        state = (top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely)
        key = _covering_key(row, allowed, vocab_size, state, top_p.to(tl.float64), "top_p", HAS_MASK, BLOCK)
        lowest_probability = key.to(tl.int32).to(tl.float32, bitcast=True)
    if typical_p < 1:
        state = (top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely)
        largest, sum_left, moment = _sums(row, allowed, vocab_size, state, zero, HAS_MASK, BLOCK)
        log_mass = tl.log(sum_left.to(tl.float32))
        entropy = log_mass - (moment / sum_left).to(tl.float32)
        state = (top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely)
        key = _covering_key(row, allowed, vocab_size, state, typical_p.to(tl.float64), "typical_p", HAS_MASK, BLOCK)
        distance = (0x7FFFFFFF - key).to(tl.int32).to(tl.float32, bitcast=True)
        farthest = tl.where(key == 0, float("inf"), distance)
    state = (top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely)
    largest, sum_left, moment = _sums(row, allowed, vocab_size, state, zero, HAS_MASK, BLOCK)
    lowest_likely = largest + log_min_p
    state = (top, temperature, lowest, mass, lowest_probability, log_mass, entropy, farthest, lowest_likely)
    _, sum_left, moment = _sums(row, allowed, vocab_size, state, largest, HAS_MASK, BLOCK)

    target = _uniform(tl.load(integers + 2), tl.load(integers + 3)) * sum_left
    lane = tl.arange(0, BLOCK)
    covered = tl.zeros([], tl.float64)
    token = tl.zeros([], tl.int32) + vocab_size
    last_possible = tl.zeros([], tl.int32)
    for start in range(0, vocab_size, BLOCK):
        at = start + lane
        weight = tl.exp(_left(row, allowed, at, vocab_size, state, HAS_MASK) - largest).to(tl.float64)
        cumulative = covered + tl.cumsum(weight, 0)
        is_possible = weight > 0
        token = tl.minimum(token, tl.min(tl.where(is_possible & (cumulative > target), at, vocab_size), 0))
        last_possible = tl.maximum(last_possible, tl.max(tl.where(is_possible, at, 0), 0))
        covered = tl.max(cumulative, 0)
    # Rounding must not lift the target to the total, which nothing is above.
    return tl.minimum(token, last_possible)


# The number of top tokens must not need a compilation of its own while requests wait.
@triton.jit(do_not_specialize=["count"])
def _collect_largest(
    token_ids, logits, raw, allowed, vocab_size, count, stride_allowed, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.program_id(0).to(tl.int64)
    row = raw + n * vocab_size
    allowed_row = allowed + n * stride_allowed
    lane = tl.arange(0, BLOCK)
    prefix = tl.zeros([], tl.int64)
    above = tl.zeros([], tl.float64)
    goal = tl.zeros([], tl.float64) + count
    for step in range(DIGITS):
        shift = (DIGITS - 1 - step) * 3
        weights = no_weights(BLOCK)
        for start in range(0, vocab_size, BLOCK):
            at = start + lane
            keys = key_of(load_row(row, allowed_row, at, vocab_size, HAS_MASK))
            amounts = tl.where(at < vocab_size, 1.0, 0.0)
            weights = add_weights(weights, keys, amounts, prefix, shift)
        digit, above = next_digit(weights, above, goal)
        prefix = prefix * 8 + digit

    # All above the threshold, and of those at it the first that still fit.
    num_equal_wanted = count - above.to(tl.int32)
    num_taken = tl.zeros([], tl.int32)
    num_equal = tl.zeros([], tl.int32)
    for start in range(0, vocab_size, BLOCK):
        at = start + lane
        numbers = load_row(row, allowed_row, at, vocab_size, HAS_MASK)
        keys = key_of(numbers)
        is_equal = ((keys == prefix) & (at < vocab_size)).to(tl.int32)
        rank = num_equal + tl.cumsum(is_equal, 0)
        is_above = ((keys > prefix) & (at < vocab_size)).to(tl.int32)
        is_taken = tl.where((is_equal == 1) & (rank <= num_equal_wanted), 1, is_above)
        place = num_taken + tl.cumsum(is_taken, 0) - 1
        tl.store(token_ids + n * count + place, at.to(tl.int64), mask=is_taken == 1)
        tl.store(logits + n * count + place, numbers, mask=is_taken == 1)
        num_taken += tl.sum(is_taken, 0)
        num_equal += tl.sum(is_equal, 0)
