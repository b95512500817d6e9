"""Rounds rows to fp8, each with a scale of its own, in one pass: weights when they are read, and activations on their way into
a product, unless the kernel that writes them does it (`store_rounded`). The plain form is `plain.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 448.0  # of float8_e4m3fn, which has no infinity
SMALLEST_SCALE = 1e-12  # so that a row of zeros has one to be divided by


def quantize_rows(rows: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Divides each row by a scale, cuts it to the range of float8_e4m3fn and rounds it.

    rows: [T, size], last dimension contiguous; a row that is not finite becomes one that is not
    scale: [] float32 for all rows; None: what makes the largest number of a row the largest of the format
    -> [T, size] float8_e4m3fn, [T, 1] float32
    """
    num_rows, size = rows.shape
    assert rows.stride(1) == 1, "the last dimension is contiguous"
    values, scales = empty_rounded(num_rows, size, rows.device)
    if num_rows > 0:
        block = triton.next_power_of_2(size)
        _quantize_rows[(num_rows,)](
            values,
            scales,
            rows,
            scales if scale is None else scale,
            rows.stride(0),
            SIZE=size,
            BLOCK=block,
            HAS_SCALE=scale is not None,
            LARGEST=LARGEST,
            SMALLEST_SCALE=SMALLEST_SCALE,
            num_warps=min(16, max(4, block // 512)),
        )
    return values, scales


def empty_rounded(num_rows: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Memory for what `quantize_rows` gives."""
    values = torch.empty((num_rows, size), dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty((num_rows, 1), dtype=torch.float32, device=device)


@triton.jit
def _quantize_rows(
    values,
    scales,
    rows,
    given_scale,
    stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    is_inside = at < SIZE
    row_values = tl.load(rows + row * stride + at, mask=is_inside, other=0.0).to(tl.float32)
    store_rounded(values, scales, row, row_values, given_scale, SIZE, BLOCK, HAS_SCALE, LARGEST, SMALLEST_SCALE)


@triton.jit
def store_rounded(
    values,
    scales,
    row,
    row_values,
    given_scale,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST_SCALE: tl.constexpr,
):
    """Rounds one row, of which what lies beyond SIZE is 0, for any kernel that has it."""
    at = tl.arange(0, BLOCK)
    largest = tl.max(tl.abs(row_values), 0)
    scale = tl.load(given_scale) if HAS_SCALE else tl.maximum(largest / LARGEST, SMALLEST_SCALE)
    # Eight bits have no infinity, and cutting the range removes NaN: the scale must tell.
    is_nan = tl.max(tl.where(row_values == row_values, 0, 1), 0) > 0
    is_sound = (largest < float("inf")) & (is_nan == 0)
    divided = tl.minimum(tl.maximum(row_values / scale, -LARGEST), LARGEST)
    tl.store(values + row * SIZE + at, divided.to(values.dtype.element_ty), mask=at < SIZE)
    tl.store(scales + row, tl.where(is_sound, scale, float("nan")))
