"""The activation of a gated MLP in one pass, rounded to fp8 where a product in fp8 reads it. The plain form is `plain.py`.

Shapes: T tokens, I features of this rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from text_gen_server.triton_kernels.quantize import LARGEST, SMALLEST_SCALE, empty_rounded, store_rounded

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1024


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where silu(x) = x * sigmoid(x).

    gate_up: [T, 2 I], the gate first, last dimension contiguous
    -> [T, I] in the dtype of gate_up
    """
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.shape[1] == 2 * size, "gate and up have one size"
    assert gate_up.stride(1) == 1, "the last dimension is contiguous"
    output = gate_up.new_empty((num_tokens, size))
    if output.numel() > 0:
        grid = (num_tokens, triton.cdiv(size, BLOCK))
        _silu_mul[grid](output, gate_up, gate_up.stride(0), SIZE=size, BLOCK=BLOCK)
    return output


def silu_mul_fp8(gate_up: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """`quantize.quantize_rows` of `silu_mul`. A program takes a whole row, because its scale hangs on all of it."""
    num_tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.shape[1] == 2 * size, "gate and up have one size"
    assert gate_up.stride(1) == 1, "the last dimension is contiguous"
    values, scales = empty_rounded(num_tokens, size, gate_up.device)
    if num_tokens > 0:
        block = triton.next_power_of_2(size)
        _silu_mul_fp8[(num_tokens,)](
            values,
            scales,
            gate_up,
            scales if scale is None else scale,
            gate_up.stride(0),
            SIZE=size,
            BLOCK=block,
            HAS_SCALE=scale is not None,
            LARGEST=LARGEST,
            SMALLEST_SCALE=SMALLEST_SCALE,
            num_warps=min(32, max(4, block // 512)),
        )
    return values, scales


@triton.jit
def _silu_mul(output, gate_up, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < SIZE
    result = _activated(gate_up + token * stride, at, is_inside, SIZE)
    tl.store(output + token * SIZE + at, result, mask=is_inside)


@triton.jit
def _silu_mul_fp8(
    values,
    scales,
    gate_up,
    given_scale,
    stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    # Rounded as it would have been written, so that it does not matter who rounds to eight bits.
    result = _activated(gate_up + token * stride, at, at < SIZE, SIZE).to(tl.float32)
    store_rounded(values, scales, token, result, given_scale, SIZE, BLOCK, HAS_SCALE, LARGEST, SMALLEST_SCALE)


@triton.jit
def _activated(row, at, is_inside, SIZE: tl.constexpr):
    gate = tl.load(row + at, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(row + SIZE + at, mask=is_inside, other=0.0).to(tl.float32)
    return (gate * tl.sigmoid(gate) * up).to(row.dtype.element_ty)
