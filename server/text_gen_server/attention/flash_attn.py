"""Attention with the `flash-attn` package (Dao, 2023), where it is installed: decode rows in one call that divides long
contexts over the device, all other rows in a second one.

Written against the signatures and checks of flash-attn 2.6 to 2.8. What has run is the division into these calls, with
the package replaced by a fake; the package itself has not run here, because it needs a GPU. `make gpu-check` compares it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache

log = logging.getLogger("text_gen_server")

# The package's paged kernels refuse blocks that are not a multiple of it.
BLOCK_MULTIPLE = 256


def is_installed() -> bool:
    """Whether the package is there and fits the installed PyTorch."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    try:
        importlib.import_module("flash_attn")
    except ImportError as error:
        log.warning("flash-attn is installed, but cannot be used: %s", error)
        return False
    return True


def window_of(sliding_window: int | None) -> tuple[int, int]:
    """The package counts the tokens to the left and to the right, without the token itself; -1 = all."""
    return (-1, 0) if sliding_window is None else (sliding_window - 1, 0)


def cumulative_lens(lens: Tensor) -> Tensor:
    """lens: [B] int32 -> [B + 1] int32, from 0"""
    return F.pad(lens.cumsum(0, dtype=torch.int32), (1, 0))


class FlashAttention:
    name = "flash-attn"
    default_block_size = BLOCK_MULTIPLE

    def __init__(self) -> None:
        self.functions: ModuleType = importlib.import_module("flash_attn")

    def prepare(self, metadata: AttentionMetadata, kv_cache: KVCache) -> PreparedFlash:
        check_block_size(self.name, kv_cache)
        return PreparedFlash(metadata, kv_cache, self.functions)


def check_block_size(name: str, kv_cache: KVCache) -> None:
    """ValueError for a block size that the kernels refuse."""
    if kv_cache.block_size % BLOCK_MULTIPLE != 0:
        raise ValueError(f"attention {name!r} needs a block size that {BLOCK_MULTIPLE} divides, not {kv_cache.block_size}")


class PreparedFlash:
    """See `PreparedAttention`."""

    def __init__(self, metadata: AttentionMetadata, kv_cache: KVCache, functions: ModuleType) -> None:
        self.kv_cache = kv_cache
        self.functions = functions
        self.num_decodes = num_decodes = metadata.num_decodes
        self.num_tokens = sum(metadata.query_lens_host)
        self.decode_lens = metadata.kv_lens[:num_decodes]
        self.decode_tables = metadata.block_tables[:num_decodes]
        self.prefill: dict[str, Any] = {}
        if num_decodes < len(metadata.kv_lens_host):
            self.prefill = {
                "cu_seqlens_q": metadata.query_start[num_decodes:] - num_decodes,
                "cu_seqlens_k": cumulative_lens(metadata.kv_lens[num_decodes:]),
                "max_seqlen_q": max(metadata.query_lens_host[num_decodes:]),
                "max_seqlen_k": max(metadata.kv_lens_host[num_decodes:]),
                "block_table": metadata.block_tables[num_decodes:],
            }

    def attend(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        parts = []
        if self.num_decodes > 0:
            parts.append(self._decode(layer, query[: self.num_decodes], sliding_window))
        if self.prefill:
            parts.append(self._prefill(layer, query[self.num_decodes :], sliding_window))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        """query: [rows, H, D] -> the same"""
        output: Tensor = self.functions.flash_attn_with_kvcache(
            query.unsqueeze(1),
            self.kv_cache.keys[layer],
            self.kv_cache.values[layer],
            cache_seqlens=self.decode_lens,
            block_table=self.decode_tables,
            causal=True,
            window_size=window_of(sliding_window),
        )
        return output.squeeze(1)

    def _prefill(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        """query: [tokens of the other rows, H, D] -> the same"""
        output: Tensor = self.functions.flash_attn_varlen_func(
            query,
            self.kv_cache.keys[layer],
            self.kv_cache.values[layer],
            causal=True,
            window_size=window_of(sliding_window),
            **self.prefill,
        )
        return output
