"""Attention with our own Triton kernel: any GPU that Triton knows, any block size, any dtype, head sizes up to 256.

Never imported before it is chosen, because a CPU installation may lack Triton. Tested in Triton's interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from text_gen_server.fp8_config import KVScales
from text_gen_server.triton_kernels.paged_attention import PagedKV, PagedRows, Scores, choose_num_splits, paged_attention

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
        scales = KVScales(1.0, 1.0) if self.kv_cache.scales is None else self.kv_cache.scales[layer]
        kv = PagedKV(self.kv_cache.keys[layer], self.kv_cache.values[layer], scales.key, scales.value)
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
