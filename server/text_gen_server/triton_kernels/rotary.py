"""From the output of the query, key and value projection to attention in one pass: optional normalization of query and key
heads, rotary position embedding, and the write of keys and values to their slots. The plain form is `plain.py`.

Shapes: T tokens, H query heads, KH KV heads, D head size, NB blocks, BS block size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.triton_kernels.paged_attention import PagedKV

HEADS_PER_PROGRAM = 16


@dataclass(frozen=True)
class TokenPlaces:
    """Where each token of a step stands in its sequence and in the KV cache."""

    cos: Tensor  # [T, 1, D] of the positions
    sin: Tensor  # [T, 1, D]; the first half is negative
    slot_mapping: Tensor  # [T] int64, slot of each token's K/V; -1 = do not write


@dataclass(frozen=True)
class HeadNorm:
    """Root mean square normalization of every query and key head by itself."""

    weight: Tensor  # [H + KH, D]
    epsilon: float


def rotate_and_write_kv(heads: Tensor, places: TokenPlaces, kv: PagedKV, norm: HeadNorm | None = None) -> Tensor:
    """Normalizes (with `norm`) and rotates the pairs (i, i + D/2) of query and key heads, and writes keys and values.

    heads: [T, H + 2 KH, D], query heads first, then keys, then values; the last dimension contiguous; its queries are
        overwritten
    kv: written at the slots, divided by its scales and cut to the range of its dtype where that has 8 bits
    -> the rotated queries, [T, H, D], a view of `heads`
    """
    num_tokens, num_all_heads, head_dim = heads.shape
    num_kv_heads = kv.key.shape[2]
    num_heads = num_all_heads - 2 * num_kv_heads
    cos, sin = places.cos, places.sin
    assert head_dim % 2 == 0, "pairs need an even head size"
    assert heads.stride(2) == 1, "the last dimension of heads is contiguous"
    assert kv.key.is_contiguous(), "slots follow each other in memory"
    assert kv.value.is_contiguous(), "slots follow each other in memory"
    assert cos.is_contiguous(), "one row of cosines follows the other"
    assert sin.is_contiguous(), "one row of sines follows the other"
    if num_tokens > 0:
        _rotate_and_write[(num_tokens, triton.cdiv(num_all_heads, HEADS_PER_PROGRAM))](
            heads,
            cos,
            sin,
            places.slot_mapping,
            kv.key,
            kv.value,
            heads if norm is None else norm.weight,
            0.0 if norm is None else norm.epsilon,
            1.0 / kv.key_scale,
            1.0 / kv.value_scale,
            heads.stride(0),
            heads.stride(1),
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HALF=head_dim // 2,
            BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
            BLOCK_HEADS=HEADS_PER_PROGRAM,
            HAS_NORM=norm is not None,
            LARGEST=torch.finfo(kv.key.dtype).max if kv.key.element_size() == 1 else 0.0,
        )
    return heads[:, :num_heads]


@triton.jit
def _write_halves(target, first, second, half, mask, HALF: tl.constexpr, LARGEST: tl.constexpr):
    """target: [rows, 1] pointers; first, second: [rows, HALF] float32, of which LARGEST cuts the range"""
    if LARGEST > 0:
        # NaN stays, so that whoever reads it learns of it.
        first = tl.where(first == first, tl.minimum(tl.maximum(first, -LARGEST), LARGEST), first)
        second = tl.where(second == second, tl.minimum(tl.maximum(second, -LARGEST), LARGEST), second)
    tl.store(target + half[None, :], first.to(target.dtype.element_ty), mask=mask)
    tl.store(target + half[None, :] + HALF, second.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["slot_mapping"])
def _rotate_and_write(
    heads,
    cos,
    sin,
    slot_mapping,
    key_cache,
    value_cache,
    norm_weight,
    epsilon,
    key_factor,
    value_factor,
    stride_token,
    stride_head,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    LARGEST: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    half = tl.arange(0, BLOCK_HALF)
    num_rotated: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    is_inside = (head < num_rotated + NUM_KV_HEADS)[:, None] & (half < HALF)[None, :]
    is_rotated = (head < num_rotated)[:, None]
    source = heads + token * stride_token + head[:, None] * stride_head
    first = tl.load(source + half[None, :], mask=is_inside, other=0.0).to(tl.float32)
    second = tl.load(source + half[None, :] + HALF, mask=is_inside, other=0.0).to(tl.float32)
    value_first = first
    value_second = second
    if HAS_NORM:
        scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + epsilon)[:, None]
        weight = norm_weight + head[:, None] * (2 * HALF) + half[None, :]
        first = first * scale * tl.load(weight, mask=is_inside & is_rotated, other=0.0).to(tl.float32)
        second = second * scale * tl.load(weight + HALF, mask=is_inside & is_rotated, other=0.0).to(tl.float32)
    angle = token * (2 * HALF) + half
    is_half = half < HALF
    cos_first = tl.load(cos + angle, mask=is_half, other=0.0).to(tl.float32)[None, :]
    cos_second = tl.load(cos + angle + HALF, mask=is_half, other=0.0).to(tl.float32)[None, :]
    sin_first = tl.load(sin + angle, mask=is_half, other=0.0).to(tl.float32)[None, :]
    sin_second = tl.load(sin + angle + HALF, mask=is_half, other=0.0).to(tl.float32)[None, :]
    rotated_first = first * cos_first + second * sin_first
    rotated_second = second * cos_second + first * sin_second
    is_query = is_inside & (head < NUM_HEADS)[:, None]
    _write_halves(source, rotated_first, rotated_second, half, is_query, HALF, 0.0)

    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        key_row = slot * NUM_KV_HEADS + (head - NUM_HEADS)[:, None]
        key_target = key_cache + key_row * (2 * HALF)
        is_key = is_inside & is_rotated & (head >= NUM_HEADS)[:, None]
        _write_halves(key_target, rotated_first * key_factor, rotated_second * key_factor, half, is_key, HALF, LARGEST)
        value_target = value_cache + (key_row - NUM_KV_HEADS) * (2 * HALF)
        is_value = is_inside & (head >= num_rotated)[:, None]
        _write_halves(value_target, value_first * value_factor, value_second * value_factor, half, is_value, HALF, LARGEST)
