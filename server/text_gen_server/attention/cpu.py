"""Attention on the CPU with PyTorch's fused kernel: decode rows of similar length in one call, each prefill row in slices
that read only the keys they can see. Never lets a row read what another sequence left in a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache

# Below this many padded tokens, one call more costs more than the padding.
SMALL_KV_LEN = 256
# Queries of one fused call in a prefill with a mask; fewer read fewer keys in vain, more use the cores better.
PREFILL_SLICE = 256
# Prefill masks of a step kept for the next layer, in elements; beyond, each layer makes its own again.
MAX_KEPT_MASK_ELEMENTS = 1 << 24


class CpuAttention:
    name = "cpu"
    default_block_size = 16

    def prepare(self, metadata: AttentionMetadata, kv_cache: KVCache) -> PreparedCpu:
        return PreparedCpu(metadata, kv_cache)


@dataclass
class _DecodeGroup:
    """Decode rows of similar length, padded to the longest."""

    rows: Tensor | None  # [G] int64, indices of the rows; None = all decode rows in order
    kv_lens: Tensor  # [G, 1, 1, 1] int32
    block_ids: Tensor  # [G * blocks of the longest] int32
    key: Tensor  # [G * blocks of the longest, BS, KH, D], every layer gathers into the same memory
    value: Tensor  # as key
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # sliding window -> [G, 1, 1, L], 0 or -inf


@dataclass(frozen=True)
class _Prefill:
    """A row with more than one token in this step, or one that comes after such rows."""

    start: int  # of its tokens in the step
    query_len: int
    kv_len: int
    block_ids: Tensor  # [blocks] int32


class PreparedCpu:
    """See `PreparedAttention`."""

    def __init__(self, metadata: AttentionMetadata, kv_cache: KVCache) -> None:
        self.kv_cache = kv_cache
        self.num_decodes = metadata.num_decodes
        self.num_tokens = sum(metadata.query_lens_host)
        self.decode_groups = _group_decodes(metadata, kv_cache)
        self.prefills = _list_prefills(metadata, kv_cache.block_size)
        self.prefill_masks: dict[tuple[int, int, int, int | None], Tensor] = {}
        self.num_kept_mask_elements = 0
        _clear_started_blocks(metadata, kv_cache)

    def attend(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        if self.num_decodes == self.num_tokens and len(self.decode_groups) == 1:
            return self._decode(self.decode_groups[0], layer, query, sliding_window)
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        decode_query = query[: self.num_decodes]
        for group in self.decode_groups:
            if group.rows is None:
                output[: self.num_decodes] = self._decode(group, layer, decode_query, sliding_window)
            else:
                output[group.rows] = self._decode(group, layer, decode_query[group.rows], sliding_window)
        for prefill in self.prefills:
            end = prefill.start + prefill.query_len
            self._prefill(prefill, layer, (query[prefill.start : end], output[prefill.start : end]), sliding_window)
        return output

    def _decode(self, group: _DecodeGroup, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        """query: [G, H, D] -> [G, H, D]"""
        torch.index_select(self.kv_cache.keys[layer], 0, group.block_ids, out=group.key)
        torch.index_select(self.kv_cache.values[layer], 0, group.block_ids, out=group.value)
        key, value = (
            gathered.view(query.shape[0], -1, *gathered.shape[2:]).transpose(1, 2) for gathered in (group.key, group.value)
        )  # [G, KH, L, D]
        mask = group.masks.get(sliding_window)
        if mask is None:
            mask = group.masks[sliding_window] = _decode_mask(group.kv_lens, key, sliding_window)
        output = F.scaled_dot_product_attention(query.unsqueeze(2), key, value, attn_mask=mask, enable_gqa=True)
        return output.squeeze(2)

    def _prefill(self, prefill: _Prefill, layer: int, query_output: tuple[Tensor, Tensor], sliding_window: int | None) -> None:
        """query_output: the row's [Q, H, D], read and written"""
        query, output = (tensor.transpose(0, 1).unsqueeze(0) for tensor in query_output)  # [1, H, Q, D]
        key, value = (
            blocks[layer].index_select(0, prefill.block_ids).flatten(0, 1)[: prefill.kv_len].transpose(0, 1).unsqueeze(0)
            for blocks in (self.kv_cache.keys, self.kv_cache.values)
        )  # [1, KH, kv_len, D]
        sees_all = sliding_window is None or sliding_window >= prefill.kv_len
        if sees_all and prefill.query_len == prefill.kv_len:
            output.copy_(F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True))
            return
        num_before = prefill.kv_len - prefill.query_len
        for begin in range(0, prefill.query_len, PREFILL_SLICE):
            end = min(begin + PREFILL_SLICE, prefill.query_len)
            first, last = num_before + begin, num_before + end  # positions of the slice
            low = 0 if sliding_window is None else max(0, first - sliding_window + 1)
            mask = self._prefill_mask(low, first, last, sliding_window)
            output[:, :, begin:end] = F.scaled_dot_product_attention(
                query[:, :, begin:end], key[:, :, low:last], value[:, :, low:last], attn_mask=mask, enable_gqa=True
            )

    def _prefill_mask(self, low: int, first: int, last: int, sliding_window: int | None) -> Tensor:
        """What the positions [first, last) see of [low, last): [last - first, last - low], 0 or -inf"""
        mask = self.prefill_masks.get((low, first, last, sliding_window))
        if mask is None:
            keys = self.kv_cache.keys[0]
            key_position = torch.arange(low, last, device=keys.device)
            query_position = torch.arange(first, last, device=keys.device).unsqueeze(-1)
            hidden = key_position > query_position
            if sliding_window is not None:
                hidden |= key_position <= query_position - sliding_window
            mask = torch.zeros(hidden.shape, dtype=keys.dtype, device=keys.device).masked_fill_(hidden, float("-inf"))
            if self.num_kept_mask_elements + mask.numel() <= MAX_KEPT_MASK_ELEMENTS:
                self.num_kept_mask_elements += mask.numel()
                self.prefill_masks[low, first, last, sliding_window] = mask
        return mask


def _group_decodes(metadata: AttentionMetadata, kv_cache: KVCache) -> list[_DecodeGroup]:
    """Rows in one group differ by less than a factor of two in length, so that padding wastes less than half."""
    block_size = kv_cache.block_size
    rows_by_size: dict[int, list[int]] = {}
    for row, kv_len in enumerate(metadata.kv_lens_host[: metadata.num_decodes]):
        rows_by_size.setdefault(max(kv_len, SMALL_KV_LEN).bit_length(), []).append(row)
    groups = []
    for rows in rows_by_size.values():
        num_blocks = -(-max(metadata.kv_lens_host[row] for row in rows) // block_size)
        indices = None if len(rows) == metadata.num_decodes else torch.tensor(rows, device=metadata.kv_lens.device)
        part = slice(0, metadata.num_decodes) if indices is None else indices
        kv_lens = metadata.kv_lens[part].view(-1, 1, 1, 1)
        block_tables = metadata.block_tables[part, :num_blocks]
        if len(rows) > 1:
            # The padding of the tables names block 0, which may be another's; a row must read nothing but its own.
            block_start = torch.arange(0, num_blocks * block_size, block_size, device=kv_lens.device)
            block_tables = block_tables.where(block_start < kv_lens.view(-1, 1), block_tables[:, :1])
        block_ids = block_tables.reshape(-1)
        key, value = (blocks[0].new_empty(len(block_ids), *blocks[0].shape[1:]) for blocks in (kv_cache.keys, kv_cache.values))
        groups.append(_DecodeGroup(indices, kv_lens, block_ids, key, value))
    return groups


def _list_prefills(metadata: AttentionMetadata, block_size: int) -> list[_Prefill]:
    prefills = []
    start = 0
    for row, (query_len, kv_len) in enumerate(zip(metadata.query_lens_host, metadata.kv_lens_host, strict=True)):
        if row >= metadata.num_decodes:
            block_ids = metadata.block_tables[row, : -(-kv_len // block_size)]
            prefills.append(_Prefill(start, query_len, kv_len, block_ids))
        start += query_len
    return prefills


def _clear_started_blocks(metadata: AttentionMetadata, kv_cache: KVCache) -> None:
    """Clears the last block of a row in the step that starts it.

    A decode reads its last block to the end and gives weight zero to what lies beyond its length. Zero times a NaN that an
    earlier sequence left there would be NaN.
    """
    started = [
        (row, (kv_len - 1) // kv_cache.block_size)
        for row, (query_len, kv_len) in enumerate(zip(metadata.query_lens_host, metadata.kv_lens_host, strict=True))
        if (kv_len - 1) // kv_cache.block_size * kv_cache.block_size >= kv_len - query_len
    ]
    if started:
        rows, columns = zip(*started, strict=True)
        kv_cache.clear_blocks(metadata.block_tables[list(rows), list(columns)].long())


def _decode_mask(kv_lens: Tensor, key: Tensor, sliding_window: int | None) -> Tensor:
    """kv_lens: [G, 1, 1, 1]; key: [G, KH, L, D] -> [G, 1, 1, L] in the dtype of key, 0 or -inf"""
    position = torch.arange(key.shape[2], device=key.device)
    hidden = position >= kv_lens
    if sliding_window is not None:
        hidden |= position < kv_lens - sliding_window
    return torch.zeros(hidden.shape, dtype=key.dtype, device=key.device).masked_fill_(hidden, float("-inf"))
