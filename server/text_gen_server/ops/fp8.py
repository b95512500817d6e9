"""Products of fp8 weights and of activations that are rounded to fp8 on their way in: on a GPU by its matrix units, and the
same in plain PyTorch, against which that is tested.

Every token has a scale, and every output row of a weight. The vocabulary is never rounded: the choice of a token hangs on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from text_gen_server.ops.interface import Fp8Weight
from text_gen_server.triton_kernels import plain

SIZE_MULTIPLE = 16  # of both sizes of a weight, for the matrix units


@dataclass(frozen=True)
class Fp8Rows:
    """Activations as a product in fp8 reads them: a row stands for its numbers times its scale."""

    values: Tensor  # [T, in] float8_e4m3fn
    scales: Tensor  # [T, 1] float32


class Fp8Math(Protocol):
    """How numbers are rounded and multiplied. scale: [] float32 for all rows, None: each row gets its own"""

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `triton_kernels.quantize.quantize_rows`. Of activations, and of weights when they are read."""

    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `triton_kernels.norm.add_rms_norm_fp8`."""

    def silu_mul(self, gate_up: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `triton_kernels.activation.silu_mul_fp8`."""

    def multiply(self, rows: Fp8Rows, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
        """bias: [out] -> [T, out]"""


class PlainFp8Math:
    """Slow and obviously right, on any device."""

    def __init__(self, dtype: torch.dtype) -> None:
        """dtype: of the products"""
        self.dtype = dtype

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        return plain.quantize_rows(rows, scale)

    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.quantize(plain.add_rms_norm(hidden, residual, weight, epsilon), scale)

    def silu_mul(self, gate_up: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.quantize(plain.silu_mul(gate_up), scale)

    def multiply(self, rows: Fp8Rows, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
        product = rows.values.float() @ weight.values.float().t() * rows.scales * weight.scales
        return (product if bias is None else product + bias.float()).to(self.dtype)


class ScaledMatrixMath:
    """By `torch._scaled_mm`: the left side in rows, the right side in columns, and scales of [T, 1] and [1, out]."""

    def __init__(self, device: torch.device) -> None:
        """ValueError where the device or this PyTorch has no such product."""
        try:
            values = torch.zeros((SIZE_MULTIPLE, SIZE_MULTIPLE), dtype=torch.float8_e4m3fn, device=device)
            scales = torch.ones(SIZE_MULTIPLE, device=device)
            self.multiply(Fp8Rows(values, scales.unsqueeze(1)), Fp8Weight(values, scales, None), None)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"fp8 weights need a GPU that multiplies them row by row (Hopper or newer): {reason}") from error

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        from text_gen_server.triton_kernels.quantize import quantize_rows

        return quantize_rows(rows, scale)

    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from text_gen_server.triton_kernels.norm import add_rms_norm_fp8

        return add_rms_norm_fp8(hidden, residual, weight, epsilon, scale)

    def silu_mul(self, gate_up: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        from text_gen_server.triton_kernels.activation import silu_mul_fp8

        return silu_mul_fp8(gate_up, scale)

    def multiply(self, rows: Fp8Rows, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
        return torch._scaled_mm(
            rows.values,
            weight.values.t(),
            scale_a=rows.scales,
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

    def __call__(self, hidden: Tensor | Fp8Rows) -> Tensor:
        if isinstance(hidden, Tensor):
            hidden = Fp8Rows(*self.math.quantize(hidden, self.weight.input_scale))
        return self.math.multiply(hidden, self.weight, self.bias)

    def norm(self, weight: Tensor, epsilon: float) -> Fp8Norm:
        """The norm of what this reads."""
        return Fp8Norm(self.math, weight, epsilon, self.weight.input_scale)

    def silu_mul(self, gate_up: Tensor) -> Fp8Rows:
        """silu(gate) * up, for this to read."""
        return Fp8Rows(*self.math.silu_mul(gate_up, self.weight.input_scale))


class Fp8Norm:
    """See `Norm`. What is normalized is rounded while it is written."""

    def __init__(self, math: Fp8Math, weight: Tensor, epsilon: float, scale: Tensor | None) -> None:
        self.math = math
        self.weight = weight
        self.epsilon = epsilon
        self.scale = scale

    def __call__(self, hidden: Tensor, residual: Tensor | None) -> tuple[Fp8Rows, Tensor]:
        rows = Fp8Rows(*self.math.add_rms_norm(hidden, residual, self.weight, self.epsilon, self.scale))
        return rows, hidden if residual is None else residual


def fits(num_rows: int, in_features: int) -> bool:
    """Whether the matrix units can multiply by a weight of this shape."""
    return num_rows % SIZE_MULTIPLE == 0 and in_features % SIZE_MULTIPLE == 0


def dequantize_weight(weight: Fp8Weight, dtype: torch.dtype) -> Tensor:
    """[out, in] in `dtype`"""
    return (weight.values.float() * weight.scales.unsqueeze(1)).to(dtype)
