"""The operations for a GPU: products by PyTorch and the vendor's library, what lies between them in one launch each.

Never imported before it is chosen, because a CPU installation may lack Triton. Nothing here waits for the device, and shapes
never depend on what it holds, so that a step can be captured. Tested in Triton's interpreter.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F

from text_gen_server.ops import fp8
from text_gen_server.ops.interface import HeadNorm
from text_gen_server.ops.pytorch import PyTorchVocabulary
from text_gen_server.sampling import sampler
from text_gen_server.sampling.summary import summarize
from text_gen_server.triton_kernels import rotary
from text_gen_server.triton_kernels.activation import silu_mul
from text_gen_server.triton_kernels.norm import add_rms_norm, rms_norm
from text_gen_server.triton_kernels.paged_attention import PagedKV

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from text_gen_server.fp8_config import KVScales
    from text_gen_server.ops.fp8 import Fp8Math
    from text_gen_server.ops.interface import CosSin, Fp8Weight, Linear, Norm, Rotation, StepPositions, Vocabulary, Written
    from text_gen_server.sampling.processors import SamplingRow
    from text_gen_server.sampling.summary import Summary


class TritonOps:
    """See `Fp8Ops`."""

    name = "triton"

    def __init__(self, dtype: torch.dtype, *, fp8_math: Fp8Math | None = None, rounds_to_fp8: bool = False) -> None:
        """fp8_math: for weights in fp8; rounds_to_fp8: weights in full precision become such when they are read"""
        assert fp8_math is not None or not rounds_to_fp8, "what is rounded must be multiplied"
        self.activation_dtype = dtype
        self.fp8_math = fp8_math
        self.rounds_to_fp8 = rounds_to_fp8
        self.one_rounds = threading.Lock()

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return partial(F.linear, weight=weight, bias=bias)

    def gated(self, weight: Tensor, bias: Tensor | None, reader: Linear) -> Linear:
        return GatedLinear(self.linear(weight, bias), reader)

    def rounds(self, num_rows: int, in_features: int) -> bool:
        return self.rounds_to_fp8 and fp8.fits(num_rows, in_features)

    def round_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        assert self.fp8_math is not None, "what is rounded must be multiplied"
        with self.one_rounds:  # or several threads would compile the same kernel
            values, scales = self.fp8_math.quantize(rows, None)
        return values, scales.squeeze(1)

    def fp8_linear(self, weight: Fp8Weight, bias: Tensor | None) -> Linear:
        assert self.fp8_math is not None, "the operations were chosen for a checkpoint in fp8"
        if fp8.fits(*weight.values.shape):
            return fp8.Fp8Linear(self.fp8_math, weight, bias)
        return partial(F.linear, weight=fp8.dequantize_weight(weight, self.activation_dtype), bias=bias)

    def fp8_gated(self, weight: Fp8Weight, bias: Tensor | None, reader: Linear) -> Linear:
        return GatedLinear(self.fp8_linear(weight, bias), reader)

    def norm(self, weight: Tensor, epsilon: float, reader: Linear | None) -> Norm:
        if isinstance(reader, GatedLinear):
            reader = reader.linear
        if isinstance(reader, fp8.Fp8Linear):
            return reader.norm(weight, epsilon)

        def normalize(hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
            if residual is None:
                return rms_norm(hidden, weight, epsilon), hidden
            return add_rms_norm(hidden, residual, weight, epsilon), residual

        return normalize

    def vocabulary(self, weight: Tensor) -> Vocabulary:
        return PyTorchVocabulary(weight)

    def head_norm(self, weight: Tensor, epsilon: float) -> HeadNorm:
        return HeadNorm(weight.contiguous(), epsilon)

    def rotation(self, cos_sin: CosSin, *, num_positions: int, head_dim: int) -> Rotation:  # noqa: ARG002
        return partial(cos_sin, dtype=self.activation_dtype)

    def rotate_and_write(
        self, heads: Tensor, step: StepPositions, key_slots: Tensor, value_slots: Tensor, norm: HeadNorm | None
    ) -> Tensor:
        return _rotate_and_write(heads, step, _as_block(key_slots, value_slots), norm)

    def rotate_and_write_fp8(
        self, heads: Tensor, step: StepPositions, slots: tuple[Tensor, Tensor], scales: KVScales, norm: HeadNorm | None
    ) -> Tensor:
        return _rotate_and_write(heads, step, _as_block(*slots, scales), norm)

    def summarize(self, logits: Tensor) -> Summary:
        return summarize(logits)

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        return sampler.draw(logits, rows)


class GatedLinear:
    """See `Linear`. silu(gate) * up of what `linear` gives, in which the gates come first, as `reader` wants it."""

    def __init__(self, linear: Linear, reader: Linear) -> None:
        self.linear = linear
        self.activate = reader.silu_mul if isinstance(reader, fp8.Fp8Linear) else silu_mul

    def __call__(self, hidden: Written) -> Written:
        return self.activate(self.linear(hidden))


def _as_block(key_slots: Tensor, value_slots: Tensor, scales: KVScales | None = None) -> PagedKV:
    """To the kernel all slots are one block. The last one, for what is not kept, it leaves alone."""
    key, value = key_slots.unsqueeze(0), value_slots.unsqueeze(0)
    return PagedKV(key, value) if scales is None else PagedKV(key, value, scales.key, scales.value)


def _rotate_and_write(heads: Tensor, step: StepPositions, kv: PagedKV, norm: HeadNorm | None) -> Tensor:
    places = rotary.TokenPlaces(step.cos, step.sin, step.slot_mapping)
    head_norm = None if norm is None else rotary.HeadNorm(norm.weight, norm.epsilon)
    return rotary.rotate_and_write_kv(heads, places, kv, head_norm)
