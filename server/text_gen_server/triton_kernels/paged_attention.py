"""Attention over a paged KV cache in one Triton launch: prefill chunks and decode rows together, with a second small kernel
where few rows with long contexts are split over the device.

Online softmax (Milakov, Gimelshein, 2018; Dao et al.: FlashAttention, 2022), split over the keys as in Flash-Decoding (Dao et
al., 2023). Must never read a slot at or beyond a row's `kv_len`, nor wait for the device. The plain form is `plain.py`.

Shapes: T tokens of the step, B rows, H query heads, KH KV heads, D head size, NB blocks, BS block size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

NO_WINDOW = 2**30
MAX_SPLITS = 32
MIN_SPLIT_LEN = 256  # keys; a shorter part is not worth a program of its own
PREFILL_TILE = 64  # queries times heads of a group in one program, where a row has many tokens
TILE_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True)
class PagedKV:
    """One layer of the KV cache."""

    key: Tensor  # [NB, BS, KH, D] float32, float16, bfloat16, float8_e4m3fn or float8_e5m2
    value: Tensor  # as key
    key_scale: float = 1.0  # what a stored key is multiplied by
    value_scale: float = 1.0


@dataclass(frozen=True)
class PagedRows:
    """The rows of a step; the tokens of a row are the last ones of its sequence in the KV cache."""

    query_start: Tensor  # [B + 1] int32, row i's tokens are [query_start[i], query_start[i + 1])
    kv_lens: Tensor  # [B] int32, tokens in the KV cache, this step's included; 0 = the row's output is zero
    block_tables: Tensor  # [B, any] int32, blocks of each row in order; what is beyond kv_len is not read
    max_query_len: int  # at least the longest row; decides the shape of a tile


@dataclass(frozen=True)
class Scores:
    """How a query scores a key."""

    scale: float  # of the product
    sliding_window: int | None = None  # how many tokens a token sees, itself included; None = all before it
    soft_cap: float | None = None  # cap * tanh(score / cap)


def paged_attention(query: Tensor, kv: PagedKV, rows: PagedRows, scores: Scores, *, num_splits: int = 1) -> Tensor:
    """Causal attention of each row over its part of the KV cache. Query head h reads KV head h // (H / KH).

    query: [T, H, D] float32, float16 or bfloat16, last dimension contiguous
    num_splits: into how many programs the keys of a tile are divided; the same for equal shapes, or results differ in rounding
    -> [T, H, D] in the dtype of query
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = kv.key.shape[2], kv.key.shape[1]
    assert num_heads % num_kv_heads == 0, f"{num_heads} query heads cannot share {num_kv_heads} KV heads"
    assert query.stride(2) == 1, "the last dimension of query is contiguous"
    assert kv.key.stride() == kv.value.stride(), "keys and values have one layout"
    assert kv.key.stride(3) == 1, "the last dimension of the KV cache is contiguous"
    assert rows.block_tables.stride(1) == 1, "the last dimension of block_tables is contiguous"
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    num_rows = len(rows.kv_lens)
    if num_tokens == 0 or num_rows == 0:
        return output
    group = num_heads // num_kv_heads
    tile = _tile_size(group, rows.max_query_len)
    queries_per_tile = tile // group
    num_tiles = _num_tiles(num_tokens, num_rows, queries_per_tile)
    parts = output
    part_lse = output
    if num_splits > 1:
        parts = query.new_empty((num_splits, num_tokens, num_heads, head_dim), dtype=torch.float32)
        part_lse = query.new_empty((num_splits, num_tokens, num_heads), dtype=torch.float32)
    is_interpreted = query.device.type == "cpu"
    block_d = max(16, triton.next_power_of_2(head_dim))
    _attend_tile[(num_tiles, num_kv_heads, num_splits)](
        parts,
        part_lse,
        query,
        kv.key,
        kv.value,
        rows.query_start,
        rows.kv_lens,
        rows.block_tables,
        num_rows,
        num_tokens,
        scores.scale * kv.key_scale,
        scores.soft_cap or 0.0,
        kv.value_scale,
        scores.sliding_window or NO_WINDOW,
        query.stride(0),
        query.stride(1),
        kv.key.stride(0),
        kv.key.stride(1),
        kv.key.stride(2),
        rows.block_tables.stride(0),
        HAS_CAP=scores.soft_cap is not None,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_D=block_d,
        TILE=tile,
        QUERIES=queries_per_tile,
        KEYS=32 if block_d * query.element_size() > 256 else 64,
        BLOCK_SIZE=block_size,
        NUM_SPLITS=num_splits,
        # The interpreter multiplies the bits of bfloat16 as integers.
        DOT_DTYPE=tl.float32 if is_interpreted else TILE_DTYPES[query.dtype],
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=2,
    )
    if num_splits > 1:
        _join_splits[(num_tokens, num_heads)](
            output,
            parts,
            part_lse,
            num_tokens,
            NUM_SPLITS=num_splits,
            BLOCK_S=triton.next_power_of_2(num_splits),
            HEAD_DIM=head_dim,
            BLOCK_D=block_d,
        )
    return output


def choose_num_splits(query: Tensor, kv: PagedKV, rows: PagedRows, *, max_seen_len: int, num_processors: int) -> int:
    """How many programs share the keys of a tile, so that a small batch with long contexts fills the device.

    Depends on shapes and `max_seen_len` alone, so that a captured graph and an eager step like it agree.
    max_seen_len: at least the number of keys that any token sees
    num_processors: streaming multiprocessors of the device
    """
    num_kv_heads = kv.key.shape[2]
    group = query.shape[1] // num_kv_heads
    queries_per_tile = _tile_size(group, rows.max_query_len) // group
    num_programs = _num_tiles(len(query), len(rows.kv_lens), queries_per_tile) * num_kv_heads
    wanted = -(-2 * num_processors // max(1, num_programs))  # two programs fit on a processor
    useful = -(-max_seen_len // MIN_SPLIT_LEN)
    splits = max(1, min(wanted, useful, MAX_SPLITS))
    # A power of two, so that lengths and batch sizes share few compiled kernels.
    return int(2 ** math.floor(math.log2(splits)))


def _tile_size(group: int, max_query_len: int) -> int:
    """Rows of the score matrix of one program: queries times heads of a group, at least the 16 of a matrix instruction."""
    least = max(16, triton.next_power_of_2(group))
    return int(least if max_query_len == 1 else max(least, PREFILL_TILE))


def _num_tiles(num_tokens: int, num_rows: int, queries_per_tile: int) -> int:
    """Enough for any division of the tokens among the rows: row i's tiles begin at query_start[i] // queries + i."""
    return num_tokens // queries_per_tile + num_rows


@triton.jit
def _row_of_tile(query_start, num_rows, tile, QUERIES: tl.constexpr):
    """The last row whose first tile, query_start[row] // QUERIES + row, is not beyond `tile`."""
    low = tile * 0
    high = low + num_rows
    while high - low > 1:
        middle = (low + high) // 2
        is_before = tl.load(query_start + middle) // QUERIES + middle <= tile
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
    return low


# Batch sizes and lengths change from step to step; none of them may need a compilation of its own while requests wait.
@triton.jit(
    do_not_specialize=[
        "query_start",
        "kv_lens",
        "block_tables",
        "num_rows",
        "num_tokens",
        "window",
        "stride_table",
    ]
)
def _attend_tile(
    out,  # [T, H, D], or with splits [NUM_SPLITS, T, H, D] float32, each part normalized by itself
    out_lse,  # with splits [NUM_SPLITS, T, H] float32, log2 of each part's sum
    query,
    key_cache,
    value_cache,
    query_start,
    kv_lens,
    block_tables,
    num_rows,
    num_tokens,
    scale,
    soft_cap,
    value_scale,
    window,
    stride_query_token,
    stride_query_head,
    stride_block,
    stride_slot,
    stride_kv_head,
    stride_table,
    HAS_CAP: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    DOT_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    row = _row_of_tile(query_start, num_rows, tile, QUERIES)
    row_start = tl.load(query_start + row)
    query_len = tl.load(query_start + row + 1) - row_start
    first = (tile - row_start // QUERIES - row) * QUERIES  # of this tile's tokens, counted within the row
    if first >= query_len:
        return
    kv_len = tl.load(kv_lens + row)

    index = tl.arange(0, TILE)
    in_row = first + index // GROUP
    head = kv_head * GROUP + index % GROUP
    is_query = (index < QUERIES * GROUP) & (in_row < query_len)
    token = (row_start + in_row).to(tl.int64)
    position = kv_len - query_len + in_row  # of each query in its sequence
    dim = tl.arange(0, BLOCK_D)
    is_dim = dim < HEAD_DIM
    query_offset = token * stride_query_token + head * stride_query_head
    queries = tl.load(query + query_offset[:, None] + dim[None, :], mask=is_query[:, None] & is_dim[None, :], other=0.0)
    queries = queries.to(DOT_DTYPE)

    # The keys that some query of the tile sees, and this split's part of them.
    low = tl.maximum(kv_len - query_len + first - window + 1, 0)
    high = tl.minimum(kv_len - query_len + first + QUERIES, kv_len)
    begin = low // KEYS * KEYS
    part = tl.cdiv(tl.cdiv(tl.maximum(high - begin, 0), NUM_SPLITS), KEYS) * KEYS
    begin += split * part
    end = tl.minimum(begin + part, high)

    largest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    weighted = tl.zeros([TILE, BLOCK_D], tl.float32)
    for start in range(begin, end, KEYS):
        at = start + tl.arange(0, KEYS)
        is_key = (at >= low) & (at < end)
        block = tl.load(block_tables + row.to(tl.int64) * stride_table + at // BLOCK_SIZE, mask=is_key, other=0).to(tl.int64)
        kv_offset = block * stride_block + (at % BLOCK_SIZE) * stride_slot + kv_head * stride_kv_head
        is_element = is_key[:, None] & is_dim[None, :]
        keys = tl.load(key_cache + kv_offset[:, None] + dim[None, :], mask=is_element, other=0.0).to(DOT_DTYPE)
        score = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        if HAS_CAP:
            score = soft_cap * (2 * tl.sigmoid(2 * score / soft_cap) - 1)  # tanh
        is_seen = (at[None, :] <= position[:, None]) & (at[None, :] > position[:, None] - window)
        score *= 1.4426950408889634  # log2(e): the exponentials below are powers of two
        score = tl.where(is_seen & is_key[None, :] & is_query[:, None], score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1))
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # a query that has seen nothing yet
        weight = tl.exp2(score - shift[:, None])
        keep = tl.exp2(largest - shift)
        total = total * keep + tl.sum(weight, 1)
        values = tl.load(value_cache + kv_offset[:, None] + dim[None, :], mask=is_element, other=0.0).to(DOT_DTYPE)
        weighted = weighted * keep[:, None] + tl.dot(weight.to(DOT_DTYPE), values, input_precision=PRECISION)
        largest = new_largest

    result = weighted / tl.where(total == 0, 1.0, total)[:, None] * value_scale
    num_heads = tl.num_programs(1) * GROUP
    row_of_output = split.to(tl.int64) * num_tokens * num_heads + token * num_heads + head
    is_output = is_query[:, None] & is_dim[None, :]
    tl.store(out + row_of_output[:, None] * HEAD_DIM + dim[None, :], result.to(out.dtype.element_ty), mask=is_output)
    if NUM_SPLITS > 1:
        lse = tl.where(total == 0, float("-inf"), largest + tl.log2(tl.where(total == 0, 1.0, total)))
        tl.store(out_lse + row_of_output, lse, mask=is_query)


@triton.jit(do_not_specialize=["num_tokens"])
def _join_splits(
    out,  # [T, H, D]
    parts,  # [NUM_SPLITS, T, H, D] float32
    part_lse,  # [NUM_SPLITS, T, H] float32, log2 of each part's sum; minus infinity where a part saw nothing
    num_tokens,
    NUM_SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    num_heads = tl.num_programs(1)
    row = tl.program_id(0).to(tl.int64) * num_heads + tl.program_id(1)
    split = tl.arange(0, BLOCK_S).to(tl.int64)
    dim = tl.arange(0, BLOCK_D)
    is_split = split < NUM_SPLITS
    is_dim = dim < HEAD_DIM
    at = split * num_tokens * num_heads + row
    lse = tl.load(part_lse + at, mask=is_split, other=float("-inf"))
    largest = tl.max(lse, 0)
    weight = tl.exp2(lse - tl.where(largest == float("-inf"), 0.0, largest))
    part = tl.load(parts + at[:, None] * HEAD_DIM + dim[None, :], mask=is_split[:, None] & is_dim[None, :], other=0.0)
    total = tl.sum(weight, 0)
    result = tl.sum(part * weight[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(out + row * HEAD_DIM + dim, result.to(out.dtype.element_ty), mask=is_dim)
