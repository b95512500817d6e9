"""What every attention implementation offers. Chosen once at start (`choose.py`); models never ask which one it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache


class PreparedAttention(Protocol):
    """One step's attention: what all layers share is computed once."""

    def attend(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        """Causal attention of each row over its K/V in the cache, where this step's K/V must have been written.

        Scores are scaled by D^-0.5. Query head h reads KV head h // (H / KH).

        query: [T, H, D] with the last dimension contiguous
        sliding_window: how many tokens a token sees, itself included; None = all before it
        -> [T, H, D]
        """


class Attention(Protocol):
    """An implementation; holds nothing of a step."""

    @property
    def name(self) -> str: ...

    @property
    def default_block_size(self) -> int: ...

    def prepare(self, metadata: AttentionMetadata, kv_cache: KVCache) -> PreparedAttention:
        """Call before this step's K/V are written."""


@runtime_checkable
class CompiledAttention(Attention, Protocol):
    """One whose kernels are compiled when they are first launched."""

    def compile_kernels(self, kv_cache: KVCache, *, num_heads: int, dtype: torch.dtype) -> None:
        """Launches every kernel that a step with this KV cache can need, on rows that have no context.

        num_heads: H; dtype: of queries
        """
