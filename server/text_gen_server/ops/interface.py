"""What a decoder layer computes beside attention, as every implementation offers it. Chosen once at start (`choose.py`); models
never ask which one it is.

An implementation decides in which dtype hidden states travel and in what form weights are kept: it is given each weight once,
after loading, and answers with what multiplies by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from text_gen_server.fp8_config import KVScales
    from text_gen_server.sampling.processors import SamplingRow
    from text_gen_server.sampling.summary import Summary


# [T, size] from one operation to another: a tensor, or whatever else the reader told the writer. Models only pass it on.
Written: TypeAlias = Any


class Linear(Protocol):
    def __call__(self, hidden: Written) -> Written:
        """hidden: [T, in] -> [T, out], a tensor unless the layer was told who reads it"""


class Norm(Protocol):
    def __call__(self, hidden: Tensor, residual: Tensor | None) -> tuple[Written, Tensor]:
        """Adds `hidden` to the residual stream and normalizes the sum.

        hidden: [T, size], may become the residual
        residual: [T, size], overwritten; None before the first layer
        -> normalized [T, size], residual [T, size]
        """


class Vocabulary(Protocol):
    """One weight for both ends of the model."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids: [T] int64, each a row of the weight -> [T, hidden]"""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [N, hidden] -> [N, rows]"""


class CosSin(Protocol):
    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Computes what `Rotation` gives, each position by itself, in `dtype`."""


class Rotation(Protocol):
    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions: [T] int64 -> cos and sin, as `StepPositions` has them"""


@dataclass(frozen=True)
class StepPositions:
    """Where the tokens of a step are, the same for all layers."""

    cos: Tensor  # [T, 1, D] of the positions, the same in both halves
    sin: Tensor  # [T, 1, D], negative in the first half
    slot_mapping: Tensor  # [T] int64, slot of each token's K/V; -1 = do not write


@dataclass(frozen=True)
class HeadNorm:
    """A root mean square norm of each query and key head before its rotation."""

    weight: Tensor  # [H + KH, D]
    epsilon: float


@dataclass(frozen=True)
class Fp8Weight:
    """A weight in eight bits: a row stands for its numbers times its scale."""

    values: Tensor  # [out, in] float8_e4m3fn
    scales: Tensor  # [out] float32
    input_scale: Tensor | None  # [] float32, what activations are divided by before they are rounded; None: each token's own


class Ops(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of hidden states, between all layers."""

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """weight: [out, in]; bias: [out]"""

    def gated(self, weight: Tensor, bias: Tensor | None, reader: Linear) -> Linear:
        """Computes silu(gate) * up, for one that reads it. weight: [2 * out, in], gate rows first; bias: [2 * out]"""

    def norm(self, weight: Tensor, epsilon: float, reader: Linear | None) -> Norm:
        """x / sqrt(mean(x^2) + epsilon) * weight, over the last dimension. weight: [size]

        reader: the only one of what is normalized; None: it stays a tensor
        """

    def vocabulary(self, weight: Tensor) -> Vocabulary:
        """weight: [rows, hidden]"""

    def head_norm(self, weight: Tensor, epsilon: float) -> HeadNorm:
        """weight: [H + KH, D]"""

    def rotation(self, cos_sin: CosSin, *, num_positions: int, head_dim: int) -> Rotation:
        """Cosine and sine of positions below `num_positions`."""

    def rotate_and_write(
        self, heads: Tensor, step: StepPositions, key_slots: Tensor, value_slots: Tensor, norm: HeadNorm | None
    ) -> Tensor:
        """Normalizes and rotates query and key heads (the pairs (i, i + D/2)), and keeps keys and values.

        heads: [T, H + 2 KH, D], query heads first, then keys, then values; may be overwritten
        key_slots, value_slots: [slots + 1, KH, D] of one layer; the last one is not kept
        -> queries [T, H, D], the last dimension contiguous
        """

    def summarize(self, logits: Tensor) -> Summary:
        """See `sampling.summary.Summarize`."""

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """See `sampling.sampler.draw`."""


@runtime_checkable
class Fp8Ops(Ops, Protocol):
    """Operations that multiply in fp8, for which they round activations on their way in, and that keep K/V in fp8."""

    def rounds(self, num_rows: int, in_features: int) -> bool:
        """Whether a weight of this shape in full precision is rounded to fp8 as it is read."""

    def round_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[n, in] -> values and scales as `Fp8Weight` has them. May be called by several threads at once."""

    def fp8_linear(self, weight: Fp8Weight, bias: Tensor | None) -> Linear:
        """bias: [out]"""

    def fp8_gated(self, weight: Fp8Weight, bias: Tensor | None, reader: Linear) -> Linear:
        """As `gated`, with a weight in fp8."""

    def rotate_and_write_fp8(
        self, heads: Tensor, step: StepPositions, slots: tuple[Tensor, Tensor], scales: KVScales, norm: HeadNorm | None
    ) -> Tensor:
        """As `rotate_and_write`, to key and value slots in fp8: numbers are divided by the scales and cut to the range."""
