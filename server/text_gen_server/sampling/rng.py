"""Random numbers without a generator: each is a pure function of (seed, position), so any step can be repeated.

Two rounds of the splitmix64 finalizer (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): the first
turns the seed into a key, the second turns key and position into 64 bits. Must never hold state.
"""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


def to_signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit `value`."""
    return value - 2**64 if value >= 2**63 else value


def uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) with 53 random bits.

    seeds:     [N] int64, the bits of unsigned seeds (see `to_signed`)
    positions: [N] int64, index of the drawn token in its sequence
    returns:   [N] float64
    """
    key = _mix(seeds + to_signed(GOLDEN))
    bits = _mix(key + (positions + 1) * to_signed(GOLDEN))
    return _shift_right(bits, 11).to(torch.float64) * 2.0**-53


def _mix(bits: Tensor) -> Tensor:
    # Products and sums of int64 wrap around, which is arithmetic modulo 2**64 on the same bits.
    bits = (bits ^ _shift_right(bits, 30)) * to_signed(MIX_1)
    bits = (bits ^ _shift_right(bits, 27)) * to_signed(MIX_2)
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    # The shift of int64 copies the sign; the mask clears the copies.
    return (bits >> count) & ((1 << (64 - count)) - 1)
