"""Attention in plain PyTorch on any device, one row after the other: slow and obviously right. All others are tested
against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache


class ReferenceAttention:
    name = "reference"
    default_block_size = 16

    def prepare(self, metadata: AttentionMetadata, kv_cache: KVCache) -> PreparedReference:
        return PreparedReference(metadata, kv_cache)


class PreparedReference:
    """See `PreparedAttention`."""

    def __init__(self, metadata: AttentionMetadata, kv_cache: KVCache) -> None:
        self.metadata = metadata
        self.kv_cache = kv_cache

    def attend(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        rows = torch.split(query, list(self.metadata.query_lens_host))
        outputs = []
        for row, (row_query, kv_len) in enumerate(zip(rows, self.metadata.kv_lens_host, strict=True)):
            key = self._gather(self.kv_cache.keys[layer], row, kv_len)
            value = self._gather(self.kv_cache.values[layer], row, kv_len)
            outputs.append(_attend_row(row_query, key, value, sliding_window))
        return torch.cat(outputs)

    def _gather(self, blocks: Tensor, row: int, kv_len: int) -> Tensor:
        """The row's part of [NB, BS, KH, D] as [kv_len, KH, D]."""
        num_blocks = -(-kv_len // self.kv_cache.block_size)
        return blocks[self.metadata.block_tables[row, :num_blocks].long()].flatten(0, 1)[:kv_len]


def _attend_row(query: Tensor, key: Tensor, value: Tensor, sliding_window: int | None) -> Tensor:
    """query: [Q, H, D]; key, value: [K, KH, D]; the queries are the last Q of the K tokens -> [Q, H, D]"""
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.float().repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.float(), key) * query.shape[-1] ** -0.5
    key_position = torch.arange(key.shape[0], device=query.device)
    query_position = key_position[-query.shape[0] :].unsqueeze(-1)
    visible = key_position <= query_position
    if sliding_window is not None:
        visible &= key_position > query_position - sliding_window
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)
