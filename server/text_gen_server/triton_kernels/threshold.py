"""Finds a threshold in a row of numbers without sorting it: a search over the bits of the numbers, three at a time from the
highest, where every pass adds up the weights of the eight values that the next three bits can have.

Only Triton functions that other kernels call. Passes over a row are made by one program, so a row should be in a cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

DIGITS: tl.constexpr = tl.constexpr(11)  # of three bits: 33 are more than enough for a key of 32


@triton.jit
def load_row(row, allowed, at, vocab_size, HAS_MASK: tl.constexpr):
    """Logits of the tokens `at`: minus infinity beyond the vocabulary, and where `allowed` (bits, lowest first) has a zero."""
    logits = tl.load(row + at, mask=at < vocab_size, other=float("-inf"))
    if HAS_MASK:
        word = tl.load(allowed + at // 32, mask=at < vocab_size, other=0)
        logits = tl.where(((word >> (at % 32)) & 1) != 0, logits, float("-inf"))
    return logits


@triton.jit
def key_of(numbers):
    """float32 -> int64 in [0, 2^32) of the same order; 0 and -0 are equal."""
    bits = tl.where(numbers == 0, 0.0, numbers).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ordered.to(tl.int64) + 2147483648


@triton.jit
def number_of(key):
    """The float32 with a key."""
    ordered = (key - 2147483648).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def no_weights(BLOCK: tl.constexpr):
    return tl.zeros([8, BLOCK], tl.float32)


@triton.jit
def add_weights(weights, keys, amounts, prefix, shift):
    """Adds the amounts of those keys whose bits above `shift + 3` are `prefix`, to the value of their next three bits.

    weights: [8, BLOCK] float32, each number the sum of one token of every block; keys: [BLOCK] int64; amounts: [BLOCK] float32
    """
    amounts = tl.where((keys >> (shift + 3)) == prefix, amounts, 0.0)
    digit = ((keys >> shift) & 7).to(tl.int32)
    return weights + tl.where(digit[None, :] == tl.arange(0, 8)[:, None], amounts[None, :], 0.0)


@triton.jit
def next_digit(weights, above, goal):
    """The largest digit whose keys, with all larger ones, weigh at least `goal`; 0 where none do.

    above: weight of the keys with a larger prefix -> digit, weight of the keys larger than it
    """
    digit = tl.arange(0, 8)
    sums = tl.sum(weights.to(tl.float64), 1)
    suffix = tl.sum(tl.where(digit[None, :] >= digit[:, None], sums[None, :], 0.0), 1)
    found = tl.max(tl.where(above + suffix >= goal, digit, 0), 0)
    return found.to(tl.int64), above + tl.sum(tl.where(digit > found, sums, 0.0), 0)
