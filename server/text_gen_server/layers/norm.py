"""Root mean square normalization, of hidden states (together with the residual sum) and of single heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from text_gen_server.weights import WantedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.layers.linear import MergedColumnLinear
    from text_gen_server.layers.placement import Placement
    from text_gen_server.ops.interface import HeadNorm, Norm, Written


class RMSNorm:
    """x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension. Every rank has the whole of it."""

    normalize: Norm  # after `pack`

    def __init__(
        self, name: str, size: int, *, epsilon: float, placement: Placement, reader: MergedColumnLinear | None
    ) -> None:
        """reader: the layer that alone reads what is normalized, and is packed before; None: others do"""
        self.name = name
        self.size = size
        self.ops = placement.ops
        self.epsilon = epsilon
        self.reader = reader
        self.weight = placement.empty(size)

    def wanted(self) -> Iterator[WantedTensor]:
        yield WantedTensor(f"{self.name}.weight", (self.size,), self.weight, ())

    def pack(self) -> None:
        self.normalize = self.ops.norm(self.weight, self.epsilon, self.reader.multiply if self.reader is not None else None)
        del self.weight

    def __call__(self, hidden: Tensor, residual: Tensor | None) -> tuple[Written, Tensor]:
        """See `Norm`."""
        return self.normalize(hidden, residual)


class QueryKeyNorm:
    """Normalizes each query and key head by itself, with one weight for all query heads and one for all key heads."""

    packed: HeadNorm  # after `pack`

    def __init__(
        self, name: str, num_heads: int, num_kv_heads: int, *, head_dim: int, epsilon: float, placement: Placement
    ) -> None:
        self.name = name
        self.ops = placement.ops
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.epsilon = epsilon
        self.weight = placement.empty(num_heads + num_kv_heads, head_dim)

    def wanted(self) -> Iterator[WantedTensor]:
        # Loading repeats the checkpoint's [D] for every head, so that one multiplication serves queries and keys.
        yield WantedTensor(f"{self.name}.q_norm.weight", (self.head_dim,), self.weight[: self.num_heads], ())
        yield WantedTensor(f"{self.name}.k_norm.weight", (self.head_dim,), self.weight[self.num_heads :], ())

    def pack(self) -> None:
        self.packed = self.ops.head_norm(self.weight, self.epsilon)
        del self.weight
