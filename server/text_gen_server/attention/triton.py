"""Attention with our own Triton kernel: any GPU that Triton knows, any block size, any dtype, head sizes up to 256.

Never imported before it is chosen, because a CPU installation may lack Triton. Tested in Triton's interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from text_gen_server.fp8_config import KVScales
from text_gen_server.triton_kernels.paged_attention import (
    MAX_SPLITS,
    PagedKV,
    PagedRows,
    Scores,
    choose_num_splits,
    paged_attention,
)

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache


class TritonAttention:
    name = "triton"
    default_block_size = 16

    def __init__(self, *, num_processors: int) -> None:
        """num_processors: streaming multiprocessors of the device"""
        self.num_processors = num_processors

    def prepare(self, metadata: AttentionMetadata, kv_cache: KVCache) -> PreparedTriton:
        return PreparedTriton(metadata, kv_cache, self.num_processors)

    def compile_kernels(self, kv_cache: KVCache, *, num_heads: int, dtype: torch.dtype) -> None:
        """See `CompiledAttention`. Triton keeps what it has compiled on disk, so that the next start only reads it."""
        key = kv_cache.keys[0]
        scores = Scores(key.shape[-1] ** -0.5)
        for query_len in (1, 2):  # decode, and all else
            rows = PagedRows(
                query_start=torch.tensor([0, query_len], dtype=torch.int32, device=key.device),
                kv_lens=torch.zeros(1, dtype=torch.int32, device=key.device),
                block_tables=torch.zeros((1, 1), dtype=torch.int32, device=key.device),
                max_query_len=query_len,
            )
            query = torch.zeros(query_len, num_heads, key.shape[-1], dtype=dtype, device=key.device)
            num_splits = 1
            while num_splits <= MAX_SPLITS:
                paged_attention(query, _paged(kv_cache, 0), rows, scores, num_splits=num_splits)
                num_splits *= 2


class PreparedTriton:
    """See `PreparedAttention`. Launches depend on what the host knows alone, so that a step can be captured."""

    def __init__(self, metadata: AttentionMetadata, kv_cache: KVCache, num_processors: int) -> None:
        self.kv_cache = kv_cache
        self.num_processors = num_processors
        self.max_kv_len = max(metadata.kv_lens_host)
        self.num_splits: dict[int | None, int] = {}  # by sliding window, the same for all layers that have it
        self.rows = PagedRows(
            query_start=metadata.query_start,
            kv_lens=metadata.kv_lens,
            block_tables=metadata.block_tables,
            max_query_len=max(metadata.query_lens_host),
        )

    def attend(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        kv = _paged(self.kv_cache, layer)
        num_splits = self.num_splits.get(sliding_window)
        if num_splits is None:
            num_splits = self.num_splits[sliding_window] = choose_num_splits(
                query,
                kv,
                self.rows,
                max_seen_len=min(self.max_kv_len, sliding_window or self.max_kv_len),
                num_processors=self.num_processors,
            )
        scores = Scores(query.shape[-1] ** -0.5, sliding_window)
        return paged_attention(query, kv, self.rows, scores, num_splits=num_splits)


def _paged(kv_cache: KVCache, layer: int) -> PagedKV:
    scales = KVScales(1.0, 1.0) if kv_cache.scales is None else kv_cache.scales[layer]
    return PagedKV(kv_cache.keys[layer], kv_cache.values[layer], scales.key, scales.value)
