"""Linear layers that know how to shard and load themselves. Weights are [out, in] as in the checkpoint.

Column layers split their outputs over the ranks and need no communication; a row layer takes such split inputs, multiplies
its part and sums over the ranks. Layers that read the same input are merged into one multiplication. `pack`, once after
loading, hands a weight to the operations, which keep it in their own form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from text_gen_server.layers.weight import make_weight
from text_gen_server.weights import WantedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.config import ModelConfig
    from text_gen_server.layers.placement import Placement
    from text_gen_server.ops.interface import Linear, Written


class MergedColumnLinear:
    """Several linear layers with one input, each split by output rows; the outputs lie side by side."""

    multiply: Linear  # after `pack`

    def __init__(self, parts: dict[str, tuple[int, slice]], in_features: int, *, bias: bool, placement: Placement) -> None:
        """parts: name in the checkpoint -> (output rows of the whole layer, rows of this rank)"""
        self.parts = parts
        self.in_features = in_features
        rows = sum(part.stop - part.start for _, part in parts.values())
        self.weight = make_weight(parts, rows, in_features, placement)  # [rows of all parts, in]
        self.bias = placement.empty(rows) if bias else None

    def wanted(self) -> Iterator[WantedTensor]:
        start = 0
        for name, (total, part) in self.parts.items():
            target = slice(start, start + part.stop - part.start)
            yield from self.weight.wanted(name, (total, self.in_features), rows=target, part=(part,))
            if self.bias is not None:
                yield WantedTensor(f"{name}.bias", (total,), self.bias[target], (part,))
            start = target.stop

    def pack(self) -> None:
        self.multiply = self.weight.linear(self.bias)
        del self.weight, self.bias

    def __call__(self, hidden: Written) -> Written:
        """hidden: [T, in] -> [T, rows of all parts on this rank]"""
        return self.multiply(hidden)


class QkvLinear(MergedColumnLinear):
    """Query, key and value projections: whole heads to each rank, [T, hidden] -> [T, (H + 2 KH) * D]."""

    def __init__(self, name: str, config: ModelConfig, placement: Placement) -> None:
        parallel, head_dim = placement.tensor_parallel, config.head_dim
        heads = parallel.split(config.num_heads, "attention heads")
        kv_heads = parallel.split_kv_heads(config.num_kv_heads)
        self.num_heads = heads.stop - heads.start  # H
        self.num_kv_heads = kv_heads.stop - kv_heads.start  # KH
        query = (config.num_heads * head_dim, slice(heads.start * head_dim, heads.stop * head_dim))
        key_value = (config.num_kv_heads * head_dim, slice(kv_heads.start * head_dim, kv_heads.stop * head_dim))
        parts = {f"{name}.q_proj": query, f"{name}.k_proj": key_value, f"{name}.v_proj": key_value}
        super().__init__(parts, config.hidden_size, bias=config.qkv_bias, placement=placement)


class GateUpLinear(MergedColumnLinear):
    """silu(gate) * up of a gated MLP, from both projections: [T, hidden] -> [T, intermediate of this rank]."""

    def __init__(self, name: str, config: ModelConfig, placement: Placement, *, reader: RowLinear) -> None:
        """reader: the layer that reads it, and is packed before"""
        self.reader = reader
        part = (config.intermediate_size, placement.tensor_parallel.split(config.intermediate_size, "MLP features"))
        parts = {f"{name}.gate_proj": part, f"{name}.up_proj": part}
        super().__init__(parts, config.hidden_size, bias=config.mlp_bias, placement=placement)

    def pack(self) -> None:
        self.multiply = self.weight.gated(self.bias, self.reader.multiply)
        del self.weight, self.bias


class RowLinear:
    """A linear layer whose inputs are split over the ranks; the result is the whole sum on every rank."""

    multiply: Linear  # after `pack`

    def __init__(self, name: str, in_features: int, out_features: int, *, bias: bool, placement: Placement, what: str) -> None:
        """what: its inputs are, for whoever reads that they cannot be split"""
        self.name = name
        self.in_features = in_features
        self.parallel = placement.tensor_parallel
        self.part = self.parallel.split(in_features, what)
        self.out_features = out_features
        self.weight = make_weight([name], out_features, self.part.stop - self.part.start, placement)
        self.bias = placement.empty(out_features) if bias else None

    def wanted(self) -> Iterator[WantedTensor]:
        shape, part = (self.out_features, self.in_features), (slice(None), self.part)
        yield from self.weight.wanted(self.name, shape, rows=slice(None), part=part)
        if self.bias is not None:
            yield WantedTensor(f"{self.name}.bias", (self.out_features,), self.bias, ())

    def pack(self) -> None:
        # The sum over the ranks must contain the bias once.
        self.multiply = self.weight.linear(self.bias if self.parallel.rank == 0 else None)
        del self.weight, self.bias

    def __call__(self, hidden: Written) -> Tensor:
        """hidden: [T, in of this rank] -> [T, out]"""
        return self.parallel.all_reduce(self.multiply(hidden))
