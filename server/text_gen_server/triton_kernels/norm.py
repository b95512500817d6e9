"""Root mean square normalization in one pass over the hidden states, together with the sum that comes before it, and with the
rounding to fp8 where a product in fp8 comes behind it.

The plain form is `plain.py`. Shapes: T tokens, hidden size as large as a program can hold (65536 is tested to compile).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from text_gen_server.triton_kernels.quantize import LARGEST, SMALLEST_SCALE, empty_rounded, store_rounded

if TYPE_CHECKING:
    from torch import Tensor


def add_rms_norm(hidden: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Adds `hidden` to `residual` in place and normalizes the sum: sum / sqrt(mean(sum^2) + epsilon) * weight.

    hidden: [T, size], any float dtype; residual: as hidden, overwritten; both with the last dimension contiguous
    weight: [size]
    -> [T, size] in the dtype of hidden
    """
    assert residual.shape == hidden.shape, "what is added has the shape of the residual"
    return _normalized(hidden, residual, weight, epsilon)


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """hidden: [T, size], last dimension contiguous; weight: [size] -> hidden / sqrt(mean(hidden^2) + epsilon) * weight"""
    return _normalized(hidden, None, weight, epsilon)


def add_rms_norm_fp8(
    hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`quantize.quantize_rows` of `add_rms_norm`, or of `rms_norm` where there is no residual."""
    values, scales = empty_rounded(hidden.shape[0], hidden.shape[1], hidden.device)
    _launch(values, (hidden, residual, weight, epsilon), (scales, scale))
    return values, scales


def _normalized(hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    output = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    _launch(output, (hidden, residual, weight, epsilon), None)
    return output


def _launch(
    output: Tensor,
    inputs: tuple[Tensor, Tensor | None, Tensor, float],
    rounding: tuple[Tensor, Tensor | None] | None,
) -> None:
    """rounding: where scales go, and the scale if it is given"""
    hidden, residual, weight, epsilon = inputs
    num_tokens, size = hidden.shape
    summed = hidden if residual is None else residual
    assert hidden.stride(1) == summed.stride(1) == weight.stride(0) == 1, "the last dimension is contiguous"
    if num_tokens == 0:
        return
    scales, scale = rounding if rounding is not None else (output, None)
    block = triton.next_power_of_2(size)
    _add_rms_norm[(num_tokens,)](
        output,
        hidden,
        summed,
        weight,
        scales,
        scales if scale is None else scale,
        epsilon,
        hidden.stride(0),
        summed.stride(0),
        SIZE=size,
        BLOCK=block,
        HAS_RESIDUAL=residual is not None,
        ROUNDS=rounding is not None,
        HAS_SCALE=scale is not None,
        LARGEST=LARGEST,
        SMALLEST_SCALE=SMALLEST_SCALE,
        num_warps=min(16, max(4, block // 512)),
    )


@triton.jit
def _add_rms_norm(
    output,
    hidden,
    residual,
    weight,
    scales,
    given_scale,
    epsilon,
    stride_hidden,
    stride_residual,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ROUNDS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    is_inside = at < SIZE
    total = tl.load(hidden + token * stride_hidden + at, mask=is_inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        target = residual + token * stride_residual + at
        total += tl.load(target, mask=is_inside, other=0.0).to(tl.float32)
        # What is normalized is what the next layer will see, so it is rounded first.
        rounded = total.to(residual.dtype.element_ty)
        tl.store(target, rounded, mask=is_inside)
        total = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(total * total, 0) / SIZE + epsilon)
    normalized = total * scale * tl.load(weight + at, mask=is_inside, other=0.0).to(tl.float32)
    # What is rounded to eight bits is what the next layer would have seen, so that it does not matter who rounds.
    written = normalized.to(hidden.dtype.element_ty)
    if ROUNDS:
        given = written.to(tl.float32)
        store_rounded(output, scales, token, given, given_scale, SIZE, BLOCK, HAS_SCALE, LARGEST, SMALLEST_SCALE)
    else:
        tl.store(output + token * SIZE + at, written, mask=is_inside)
