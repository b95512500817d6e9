"""Steps over a paged KV cache for tests: rows of any length in shuffled blocks, and NaN wherever a row must not look."""

import random
from dataclasses import dataclass, field

import torch
from text_gen_server.triton_kernels.paged_attention import PagedKV, PagedRows
from torch import Tensor

POISON = float("nan")
FORBIDDEN_BLOCK = 2**30  # a read of it ends the process


@dataclass(frozen=True)
class Shape:
    """What a model and its KV cache look like."""

    num_kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype | None = None  # None = dtype


@dataclass(frozen=True)
class Step:
    query: Tensor
    kv: PagedKV
    rows: PagedRows
    block_ids: list[list[int]] = field(repr=False)


def make_step(shape: Shape, lens: list[tuple[int, int]], seed: int = 0) -> Step:
    """lens: (tokens of this step, tokens in the KV cache) of each row. What no row holds is NaN."""
    torch.manual_seed(seed)
    query_lens, kv_lens = ([pair[side] for pair in lens] for side in (0, 1))
    counts = [-(-kv_len // shape.block_size) for kv_len in kv_lens]
    free = list(range(sum(counts) + 2))
    random.Random(seed).shuffle(free)
    block_ids = [[free.pop() for _ in range(count)] for count in counts]
    kv_shape = (sum(counts) + 2, shape.block_size, shape.num_kv_heads, shape.head_dim)
    kv_dtype = shape.kv_dtype or shape.dtype
    key, value = (torch.full(kv_shape, POISON).to(kv_dtype) for _ in range(2))
    for blocks, kv_len in zip(block_ids, kv_lens, strict=True):
        for n, block in enumerate(blocks):
            used = min(shape.block_size, kv_len - n * shape.block_size)
            for cache in (key, value):
                cache[block, :used] = torch.randn(used, *kv_shape[2:]).to(kv_dtype)
    width = max(1, *counts) + 1
    tables = torch.tensor([blocks + [FORBIDDEN_BLOCK] * (width - len(blocks)) for blocks in block_ids], dtype=torch.int32)
    rows = PagedRows(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
        block_tables=tables,
        max_query_len=max(query_lens),
    )
    query = torch.randn(sum(query_lens), shape.num_kv_heads * shape.group, shape.head_dim).to(shape.dtype)
    return Step(query, PagedKV(key, value), rows, block_ids)
