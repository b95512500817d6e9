"""The weight of a linear layer in the form that the checkpoint has it, until the operations take it over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from text_gen_server.file_copies import RoundedRows
from text_gen_server.ops.interface import Fp8Ops, Fp8Weight
from text_gen_server.weights import WantedTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from text_gen_server.layers.placement import Placement
    from text_gen_server.ops.interface import Linear


class LinearWeight(Protocol):
    """[rows, in] of this rank, of one layer or of several that are merged."""

    def wanted(self, name: str, shape: tuple[int, int], *, rows: slice, part: tuple[slice, ...]) -> Iterator[WantedTensor]:
        """The tensors of the layer `name`, whose weight has `shape`; this rank's `part` of it goes to `rows`."""

    def linear(self, bias: Tensor | None) -> Linear: ...

    def gated(self, bias: Tensor | None, reader: Linear) -> Linear: ...


def make_weight(names: Iterable[str], num_rows: int, in_features: int, placement: Placement) -> LinearWeight:
    """For the layers of these names in the checkpoint. ValueError where some of them are in fp8 and some are not."""
    config = placement.fp8
    covered = [] if config is None else [name for name in names if config.covers(name)]
    if config is None or not covered:
        ops = placement.ops
        if isinstance(ops, Fp8Ops) and ops.rounds(num_rows, in_features):
            return RoundedFp8Weight(num_rows, in_features, ops, placement.device)
        return FullWeight(num_rows, in_features, placement)
    others = [name for name in names if name not in covered]
    if others:
        raise ValueError(f"{covered[0]} is in fp8 and {others[0]} is not; layers with one input must have one format")
    return CheckpointFp8Weight(num_rows, in_features, placement, has_input_scales=config.has_input_scales)


class FullWeight:
    """In the dtype of the model."""

    def __init__(self, num_rows: int, in_features: int, placement: Placement) -> None:
        self.ops = placement.ops
        self.values = placement.empty(num_rows, in_features)

    def wanted(self, name: str, shape: tuple[int, int], *, rows: slice, part: tuple[slice, ...]) -> Iterator[WantedTensor]:
        yield WantedTensor(f"{name}.weight", shape, self.values[rows], part)

    def linear(self, bias: Tensor | None) -> Linear:
        return self.ops.linear(self.values, bias)

    def gated(self, bias: Tensor | None, reader: Linear) -> Linear:
        return self.ops.gated(self.values, bias, reader)


class RoundedFp8Weight:
    """In full precision in the checkpoint, and in fp8 here: rows are rounded as they are read, so that only the result takes
    memory.
    """

    def __init__(self, num_rows: int, in_features: int, ops: Fp8Ops, device: torch.device) -> None:
        self.ops = ops
        values = torch.empty((num_rows, in_features), dtype=torch.float8_e4m3fn, device=device)
        self.rows = RoundedRows(values, torch.empty(num_rows, dtype=torch.float32, device=device), ops.round_rows)

    def wanted(self, name: str, shape: tuple[int, int], *, rows: slice, part: tuple[slice, ...]) -> Iterator[WantedTensor]:
        yield WantedTensor(f"{name}.weight", shape, self.rows.part(rows), part)

    def linear(self, bias: Tensor | None) -> Linear:
        return self.ops.fp8_linear(self._weight(), bias)

    def gated(self, bias: Tensor | None, reader: Linear) -> Linear:
        return self.ops.fp8_gated(self._weight(), bias, reader)

    def _weight(self) -> Fp8Weight:
        return Fp8Weight(self.rows.values, self.rows.scales, None)


class CheckpointFp8Weight:
    """In fp8, with a scale for each row: where a layer has one for all, its rows share it, so that merged layers can differ."""

    def __init__(self, num_rows: int, in_features: int, placement: Placement, *, has_input_scales: bool) -> None:
        assert isinstance(placement.ops, Fp8Ops), "the operations were chosen for this checkpoint"
        self.ops = placement.ops
        self.device = placement.device
        self.values = torch.empty((num_rows, in_features), dtype=torch.float8_e4m3fn, device=placement.device)
        self.scales = torch.empty(num_rows, dtype=torch.float32, device=placement.device)
        self.has_input_scales = has_input_scales
        self.input_scales: dict[str, Tensor] = {}  # of each layer, []

    def wanted(self, name: str, shape: tuple[int, int], *, rows: slice, part: tuple[slice, ...]) -> Iterator[WantedTensor]:
        yield WantedTensor(f"{name}.weight", shape, self.values[rows], part)
        yield WantedTensor(f"{name}.weight_scale", shape[:1], self.scales[rows], part[:1], is_scale=True)
        if self.has_input_scales:
            target = self.input_scales.setdefault(name, torch.empty((), dtype=torch.float32, device=self.device))
            yield WantedTensor(f"{name}.input_scale", (), target, (), is_scale=True)

    def linear(self, bias: Tensor | None) -> Linear:
        return self.ops.fp8_linear(self._weight(), bias)

    def gated(self, bias: Tensor | None, reader: Linear) -> Linear:
        return self.ops.fp8_gated(self._weight(), bias, reader)

    def _weight(self) -> Fp8Weight:
        # Merged layers read their input once, so it is divided by the scale that suits all of them.
        scales = tuple(self.input_scales.values())
        return Fp8Weight(self.values, self.scales, torch.stack(scales).max() if scales else None)
