"""The operations in plain PyTorch, in any dtype on any device: what all others are tested against."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from text_gen_server.ops.interface import HeadNorm
from text_gen_server.sampling import sampler
from text_gen_server.sampling.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from text_gen_server.ops.interface import CosSin, Linear, Norm, Rotation, StepPositions, Vocabulary
    from text_gen_server.sampling.processors import SamplingRow
    from text_gen_server.sampling.summary import Summary


class PyTorchOps:
    """See `Ops`."""

    name = "pytorch"

    def __init__(self, dtype: torch.dtype) -> None:
        self.activation_dtype = dtype

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return partial(F.linear, weight=weight, bias=bias)

    def gated(self, weight: Tensor, bias: Tensor | None, reader: Linear) -> Linear:  # noqa: ARG002
        def multiply(hidden: Tensor) -> Tensor:
            gate, up = F.linear(hidden, weight, bias).chunk(2, dim=-1)
            return F.silu(gate).mul_(up)

        return multiply

    def norm(self, weight: Tensor, epsilon: float, reader: Linear | None) -> Norm:  # noqa: ARG002
        def normalize(hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
            residual = hidden if residual is None else residual.add_(hidden)
            return F.rms_norm(residual, weight.shape, weight, epsilon), residual

        return normalize

    def vocabulary(self, weight: Tensor) -> Vocabulary:
        return PyTorchVocabulary(weight)

    def head_norm(self, weight: Tensor, epsilon: float) -> HeadNorm:
        return HeadNorm(weight, epsilon)

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        return sampler.draw(logits, rows)

    def rotation(self, cos_sin: CosSin, *, num_positions: int, head_dim: int) -> Rotation:  # noqa: ARG002
        return partial(cos_sin, dtype=self.activation_dtype)

    def summarize(self, logits: Tensor) -> Summary:
        return summarize(logits)

    def rotate_and_write(
        self, heads: Tensor, step: StepPositions, key_slots: Tensor, value_slots: Tensor, norm: HeadNorm | None
    ) -> Tensor:
        num_kv_heads = key_slots.shape[1]
        num_rotated = heads.shape[1] - num_kv_heads
        query_key, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if norm is not None:
            query_key = F.rms_norm(query_key, query_key.shape[-1:], None, norm.epsilon).mul_(norm.weight)
        rotated = rotate(query_key, step.cos, step.sin)
        # Slot -1 counts from the end: it is the one that no block has.
        key_slots.index_put_((step.slot_mapping,), rotated[:, num_rotated - num_kv_heads :])
        value_slots.index_put_((step.slot_mapping,), value)
        return rotated[:, : num_rotated - num_kv_heads]


class PyTorchVocabulary:
    """See `Vocabulary`."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def embed(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + D/2) of every head.

    heads: [T, any number of heads, D]; cos, sin: [T, 1, D] as in `StepPositions` -> as heads, new memory
    """
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    return torch.addcmul(heads * cos, swapped, sin)
