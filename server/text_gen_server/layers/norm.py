"""Root mean square normalization, of hidden states (together with the residual sum) and of single heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from text_gen_server.weights import WantedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.layers.placement import Placement


class RMSNorm:
    """x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension. Every rank has the whole of it."""

    def __init__(self, name: str, size: int, *, epsilon: float, placement: Placement) -> None:
        self.name = name
        self.size = size
        self.epsilon = epsilon
        self.weight = placement.empty(size)

    def wanted(self) -> Iterator[WantedTensor]:
        yield WantedTensor(f"{self.name}.weight", (self.size,), self.weight, ())

    def __call__(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adds `hidden` to the residual stream and normalizes the sum.

        hidden: [T, size], may become the residual
        residual: [T, size], overwritten; None before the first layer
        -> normalized [T, size], residual [T, size]
        """
        residual = hidden if residual is None else residual.add_(hidden)
        return F.rms_norm(residual, (self.size,), self.weight, self.epsilon), residual


class QueryKeyNorm:
    """Normalizes each query and key head by itself, with one weight for all query heads and one for all key heads."""

    def __init__(
        self, name: str, num_heads: int, num_kv_heads: int, *, head_dim: int, epsilon: float, placement: Placement
    ) -> None:
        self.name = name
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.epsilon = epsilon
        self.weight = placement.empty(num_heads + num_kv_heads, head_dim)

    def wanted(self) -> Iterator[WantedTensor]:
        # Loading repeats the checkpoint's [D] for every head, so that one multiplication serves queries and keys.
        yield WantedTensor(f"{self.name}.q_norm.weight", (self.head_dim,), self.weight[: self.num_heads], ())
        yield WantedTensor(f"{self.name}.k_norm.weight", (self.head_dim,), self.weight[self.num_heads :], ())

    def __call__(self, heads: Tensor) -> Tensor:
        """heads: [T, H + KH, D], query heads first -> the same shape, new memory"""
        return F.rms_norm(heads, (self.head_dim,), None, self.epsilon).mul_(self.weight)
