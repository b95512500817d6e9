"""The activation of a gated MLP in one pass. The plain form is `plain.py`. Shapes: T tokens, I features of this rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

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


@triton.jit
def _silu_mul(output, gate_up, stride, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = at < SIZE
    gate = tl.load(gate_up + token * stride + at, mask=is_inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + token * stride + SIZE + at, mask=is_inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(output + token * SIZE + at, result.to(output.dtype.element_ty), mask=is_inside)
