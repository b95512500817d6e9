"""What each kernel of this folder computes, in plain PyTorch on any device: slow and obviously right. The kernels are tested
against it, and it serves where Triton does not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.decode_rows import DecodeDeltas, DecodeRows
    from text_gen_server.triton_kernels.paged_attention import PagedKV, PagedRows, Scores
    from text_gen_server.triton_kernels.rotary import HeadNorm, TokenPlaces


def add_rms_norm(hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    """See `norm.add_rms_norm`."""
    return rms_norm(hidden if residual is None else residual.add_(hidden), weight, epsilon)


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See `norm.rms_norm`."""
    return F.rms_norm(hidden, weight.shape, weight, epsilon)


def silu_mul(gate_up: Tensor) -> Tensor:
    """See `activation.silu_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate_and_write_kv(heads: Tensor, places: TokenPlaces, kv: PagedKV, norm: HeadNorm | None = None) -> Tensor:
    """See `rotary.rotate_and_write_kv`. Reads the slots on the host."""
    num_kv_heads, head_dim = kv.key.shape[2], heads.shape[2]
    num_rotated = heads.shape[1] - num_kv_heads
    query_key = heads[:, :num_rotated]
    if norm is not None:
        query_key = F.rms_norm(query_key, (head_dim,), None, norm.epsilon) * norm.weight
    rotated = query_key * places.cos + query_key.roll(head_dim // 2, -1) * places.sin
    query = heads[:, : num_rotated - num_kv_heads]
    query.copy_(rotated[:, : num_rotated - num_kv_heads])
    kept = (places.slot_mapping >= 0).nonzero().squeeze(1)
    slots = places.slot_mapping[kept]
    written = (
        (kv.key, rotated[:, num_rotated - num_kv_heads :], kv.key_scale),
        (kv.value, heads[:, num_rotated:], kv.value_scale),
    )
    for cache, new, scale in written:
        limit = torch.finfo(cache.dtype).max
        _bits(cache).flatten(0, 1)[slots] = _bits((new[kept].float() / scale).clamp(-limit, limit).to(cache.dtype))
    return query


def _bits(cache: Tensor) -> Tensor:
    """Where elements have 8 bits, the same memory as uint8: not every PyTorch indexes float8 on every device."""
    return cache.view(torch.uint8) if cache.element_size() == 1 else cache


def paged_attention(query: Tensor, kv: PagedKV, rows: PagedRows, scores: Scores) -> Tensor:
    """See `paged_attention.paged_attention`. Reads lengths on the host."""
    output = torch.zeros_like(query, memory_format=torch.contiguous_format)
    starts, kv_lens = rows.query_start.tolist(), rows.kv_lens.tolist()
    for row, kv_len in enumerate(kv_lens):
        part = slice(starts[row], starts[row + 1])
        if part.start < part.stop and kv_len > 0:
            blocks = rows.block_tables[row, : -(-kv_len // kv.key.shape[1])].long()
            key, value = (
                _bits(cache)[blocks].view(cache.dtype).flatten(0, 1)[:kv_len].double() for cache in (kv.key, kv.value)
            )
            output[part] = _attend_row(query[part], key * kv.key_scale, value * kv.value_scale, scores)
    return output


def _attend_row(query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
    """query: [Q, H, D]; key, value: [K, KH, D] float64; the queries are the last Q of the K tokens -> [Q, H, D]"""
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    score = torch.einsum("qhd,khd->hqk", query.double(), key) * scores.scale
    if scores.soft_cap is not None:
        score = scores.soft_cap * (score / scores.soft_cap).tanh()
    key_position = torch.arange(len(key), device=query.device)
    query_position = key_position[-len(query) :].unsqueeze(-1)
    is_seen = key_position <= query_position
    if scores.sliding_window is not None:
        is_seen &= key_position > query_position - scores.sliding_window
    weights = score.masked_fill(~is_seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)


def quantize_rows(rows: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `quantize.quantize_rows`."""
    largest = rows.abs().amax(-1, keepdim=True).float()
    used = (largest / 448.0).clamp(min=1e-12) if scale is None else scale.expand_as(largest)
    values = (rows.float() / used).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return values, used.where(largest.isfinite(), float("nan"))


def fill_decode_rows(
    deltas: DecodeDeltas, tables: Tensor, sampled_before: Tensor, rows: DecodeRows, *, block_size: int
) -> None:
    """See `decode_rows.fill_decode_rows`. Some twenty operations, none of which waits for the device."""
    token_ids, positions, table_rows, num_known, first_new = deltas.fields().to(torch.int64)
    last_column = positions // block_size
    column = torch.arange(rows.block_tables.shape[1], device=tables.device)
    is_used = column <= last_column.unsqueeze(1)
    is_new = is_used & (column >= num_known.unsqueeze(1))
    new_blocks = F.pad(deltas.new_blocks(), (0, 1))  # so that there is one
    at = (column + (first_new - num_known).unsqueeze(1)).clamp(0, len(new_blocks) - 1)
    own_columns = tables[:, : len(column)]
    blocks = torch.where(is_new, new_blocks[at], own_columns[table_rows])
    own_columns.index_copy_(0, table_rows, blocks)
    named = torch.where(token_ids < 0, sampled_before[(-1 - token_ids).clamp(min=0)], token_ids)
    last_blocks = blocks.gather(1, last_column.unsqueeze(1)).squeeze(1).to(torch.int64)
    slots = last_blocks * block_size + positions % block_size
    rows.part(slice(deltas.num_rows, None)).clear()
    filled = rows.part(slice(deltas.num_rows))
    for target, source in zip(filled.vectors(), (named, positions, slots, positions + 1), strict=True):
        target.copy_(source)
    filled.block_tables.copy_(blocks.masked_fill(~is_used, 0))
