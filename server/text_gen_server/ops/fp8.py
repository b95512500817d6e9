"""Products of fp8 weights and of activations that are rounded to fp8 on their way in: on a GPU by its matrix units, and the
same in plain PyTorch, against which that is tested.

Every token has a scale, and every output row of a weight. The vocabulary is never rounded: the choice of a token hangs on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from text_gen_server.ops.interface import Fp8Weight
from text_gen_server.triton_kernels import plain

if TYPE_CHECKING:
    from torch import Tensor

SIZE_MULTIPLE = 16  # of both sizes of a weight, for the matrix units


class Fp8Math(Protocol):
    """How numbers are rounded and multiplied."""

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `triton_kernels.quantize.quantize_rows`. Of activations, and of weights when they are read."""

    def multiply(self, values: Tensor, scales: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
        """values: [T, in] float8_e4m3fn; scales: [T, 1] float32; bias: [out] -> [T, out]"""


class PlainFp8Math:
    """Slow and obviously right, on any device."""

    def __init__(self, dtype: torch.dtype) -> None:
        """dtype: of the products"""
        self.dtype = dtype

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        return plain.quantize_rows(rows, scale)

    def multiply(self, values: Tensor, scales: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
        product = values.float() @ weight.values.float().t() * scales * weight.scales
        return (product if bias is None else product + bias.float()).to(self.dtype)


class ScaledMatrixMath:
    """By `torch._scaled_mm`: the left side in rows, the right side in columns, and scales of [T, 1] and [1, out]."""

    def __init__(self, device: torch.device) -> None:
        """ValueError where the device or this PyTorch has no such product."""
        try:
            values = torch.zeros((SIZE_MULTIPLE, SIZE_MULTIPLE), dtype=torch.float8_e4m3fn, device=device)
            scales = torch.ones(SIZE_MULTIPLE, device=device)
            self.multiply(values, scales.unsqueeze(1), Fp8Weight(values, scales, None), None)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"fp8 weights need a GPU that multiplies them row by row (Hopper or newer): {reason}") from error

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        from text_gen_server.triton_kernels.quantize import quantize_rows

        return quantize_rows(rows, scale)

    def multiply(self, values: Tensor, scales: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
        return torch._scaled_mm(
            values,
            weight.values.t(),
            scale_a=scales,
            scale_b=weight.scales.unsqueeze(0),
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,  # sums of fewer bits than float32, as inference with eight bits is usually done
        )


class Fp8Linear:
    """See `Linear`."""

    def __init__(self, math: Fp8Math, weight: Fp8Weight, bias: Tensor | None) -> None:
        assert fits(*weight.values.shape), "the sizes were looked at before"
        self.math = math
        self.weight = weight
        self.bias = bias

    def __call__(self, hidden: Tensor) -> Tensor:
        values, scales = self.math.quantize(hidden, self.weight.input_scale)
        return self.math.multiply(values, scales, self.weight, self.bias)


def fits(num_rows: int, in_features: int) -> bool:
    """Whether the matrix units can multiply by a weight of this shape."""
    return num_rows % SIZE_MULTIPLE == 0 and in_features % SIZE_MULTIPLE == 0


def dequantize_weight(weight: Fp8Weight, dtype: torch.dtype) -> Tensor:
    """[out, in] in `dtype`"""
    return (weight.values.float() * weight.scales.unsqueeze(1)).to(dtype)
