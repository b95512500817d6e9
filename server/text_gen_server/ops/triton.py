"""The operations for a GPU: products by PyTorch and the vendor's library, what lies between them in one launch each.

Never imported before it is chosen, because a CPU installation may lack Triton. Nothing here waits for the device, and shapes
never depend on what it holds, so that a step can be captured. Tested in Triton's interpreter.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F

from text_gen_server.ops.interface import HeadNorm
from text_gen_server.ops.pytorch import PyTorchVocabulary
from text_gen_server.sampling.summary import summarize
from text_gen_server.triton_kernels import rotary
from text_gen_server.triton_kernels.activation import silu_mul
from text_gen_server.triton_kernels.norm import add_rms_norm, rms_norm
from text_gen_server.triton_kernels.paged_attention import PagedKV

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from text_gen_server.ops.interface import Linear, Norm, StepPositions, Vocabulary
    from text_gen_server.sampling.summary import Summary


class TritonOps:
    """See `Ops`."""

    name = "triton"

    def __init__(self, dtype: torch.dtype) -> None:
        self.activation_dtype = dtype

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return partial(F.linear, weight=weight, bias=bias)

    def gated(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return _gated(self.linear(weight, bias))

    def norm(self, weight: Tensor, epsilon: float) -> Norm:
        def normalize(hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
            if residual is None:
                return rms_norm(hidden, weight, epsilon), hidden
            return add_rms_norm(hidden, residual, weight, epsilon), residual

        return normalize

    def vocabulary(self, weight: Tensor) -> Vocabulary:
        return PyTorchVocabulary(weight)

    def head_norm(self, weight: Tensor, epsilon: float) -> HeadNorm:
        return HeadNorm(weight.contiguous(), epsilon)

    def rotate_and_write(
        self, heads: Tensor, step: StepPositions, key_slots: Tensor, value_slots: Tensor, norm: HeadNorm | None
    ) -> Tensor:
        places = rotary.TokenPlaces(step.cos, step.sin, step.slot_mapping)
        head_norm = None if norm is None else rotary.HeadNorm(norm.weight, norm.epsilon)
        # To the kernel all slots are one block. The last one, for what is not kept, it leaves alone.
        kv = PagedKV(key_slots.unsqueeze(0), value_slots.unsqueeze(0))
        return rotary.rotate_and_write_kv(heads, places, kv, head_norm)

    def summarize(self, logits: Tensor) -> Summary:
        return summarize(logits)


def _gated(multiply: Linear) -> Linear:
    """silu(gate) * up of what `multiply` gives, in which the gates come first."""

    def gate_up(hidden: Tensor) -> Tensor:
        return silu_mul(multiply(hidden))

    return gate_up
