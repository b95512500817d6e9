"""Which tokens of a step belong together, as every attention implementation needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AttentionMetadata:
    """The rows of a step in batch order. The tokens of a row are the last ones of its sequence in the KV cache."""

    query_start: Tensor  # [B + 1] int32, row i's tokens of this step are [query_start[i], query_start[i + 1])
    kv_lens: Tensor  # [B] int32, tokens of each row in the KV cache, this step's included
    block_tables: Tensor  # [B, max_blocks] int32, blocks of each row in order, padded with 0
    query_lens_host: tuple[int, ...]  # the differences of query_start on the host, so that no implementation waits
    kv_lens_host: tuple[int, ...]  # kv_lens on the host
    num_decodes: int  # leading rows with exactly one token in this step
