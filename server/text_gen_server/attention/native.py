"""Attention on the CPU by our own kernel: decode rows and chunks of prompts alike, over keys and values in bf16 that stay where
they are. The kernels keep them in an order of their own within each 16 slots (`kv_layout.rs`), so that what a block holds is
theirs alone. What a slot holds that the row did not write never counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from text_gen_server import native
from text_gen_server.native.kernels import kernels

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache


CHUNK = 16  # slots that the kernels keep together


class NativeAttention:
    name = "native"
    default_block_size = 16

    def __init__(self) -> None:
        """ValueError where the kernels were not built."""
        kernels()

    def prepare(self, metadata: AttentionMetadata, kv_cache: KVCache) -> PreparedNative:
        return PreparedNative(metadata, kv_cache)


class PreparedNative:
    """See `PreparedAttention`."""

    def __init__(self, metadata: AttentionMetadata, kv_cache: KVCache) -> None:
        self.kernels = kernels()
        self.metadata = metadata  # keeps alive what the arguments point to
        self.kv_cache = kv_cache
        _, block_size, num_kv_heads, head_dim = kv_cache.keys[0].shape
        assert kv_cache.keys[0].dtype == torch.bfloat16, "the cache holds bf16"
        if block_size % CHUNK != 0:
            raise ValueError(f"attention 'native' needs a block size that {CHUNK} divides, not {block_size}")
        self.arguments = native.Attend(
            rows=rows_of(metadata),
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
        )

    def attend(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        num_tokens, num_heads, head_dim = query.shape
        assert query.dtype == torch.float32, "hidden states are float32"
        assert query.stride()[1:] == (head_dim, 1), "heads of a token lie side by side"
        output = self.kernels.empty(num_tokens, num_heads, head_dim)
        arguments = self.arguments
        arguments.query = query.data_ptr()
        arguments.query_stride = query.stride(0)
        arguments.output = output.data_ptr()
        arguments.keys = self.kv_cache.keys[layer].data_ptr()
        arguments.values = self.kv_cache.values[layer].data_ptr()
        arguments.num_heads = num_heads
        arguments.sliding_window = sliding_window or 0
        self.kernels.attend(arguments, num_tokens)
        return output


def rows_of(metadata: AttentionMetadata) -> native.Rows:
    """As the kernels know the rows of a step, for as long as `metadata` lives."""
    tables = metadata.block_tables
    assert tables.is_contiguous(), "the block tables of the rows lie side by side"
    return native.Rows(
        query_start=metadata.query_start.data_ptr(),
        kv_lens=metadata.kv_lens.data_ptr(),
        block_tables=tables.data_ptr(),
        num_rows=tables.shape[0],
        max_blocks=tables.shape[1],
    )
