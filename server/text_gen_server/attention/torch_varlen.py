"""Attention with the FlashAttention kernels inside PyTorch, through `torch.nn.attention.varlen` with a block table.

Needs a PyTorch whose `varlen_attn` takes `block_table` and `seqused_k`: 2.12 and newer by its documentation, 2.11 does not
promise it; `is_supported` looks. Written against the source of 2.15. What has run is the preparation of the arguments, with
`varlen_attn` replaced by a fake; the kernels have not run here, because they need a GPU. `make gpu-check` compares them.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

import torch

from text_gen_server.attention.flash_attn import BLOCK_MULTIPLE, check_block_size, cumulative_lens, window_of

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache

MODULE = "torch.nn.attention.varlen"


def is_supported() -> bool:
    """Whether the installed PyTorch can read a paged KV cache."""
    try:
        varlen = importlib.import_module(MODULE)
    except ImportError:
        return False
    return {"block_table", "seqused_k", "enable_gqa"} <= inspect.signature(varlen.varlen_attn).parameters.keys()


class TorchVarlenAttention:
    name = "torch-varlen"
    # PyTorch brings the kernels of flash-attn 2 and their demand on the block size.
    default_block_size = BLOCK_MULTIPLE

    def __init__(self) -> None:
        self.varlen: ModuleType = importlib.import_module(MODULE)
        # PyTorch would prefer cuDNN, which builds a plan for every new shape: far too slow for batches that change.
        torch.backends.cuda.enable_cudnn_sdp(False)

    def prepare(self, metadata: AttentionMetadata, kv_cache: KVCache) -> PreparedTorchVarlen:
        check_block_size(self.name, kv_cache)
        return PreparedTorchVarlen(metadata, kv_cache, self.varlen)


class PreparedTorchVarlen:
    """See `PreparedAttention`."""

    def __init__(self, metadata: AttentionMetadata, kv_cache: KVCache, varlen: ModuleType) -> None:
        self.kv_cache = kv_cache
        self.varlen = varlen
        self.metadata = metadata
        self.cumulative_kv_lens = cumulative_lens(metadata.kv_lens)
        self.max_query_len = max(metadata.query_lens_host)
        self.max_kv_len = max(metadata.kv_lens_host)

    def attend(self, layer: int, query: Tensor, sliding_window: int | None) -> Tensor:
        output: Tensor = self.varlen.varlen_attn(
            query,
            self.kv_cache.keys[layer],
            self.kv_cache.values[layer],
            self.metadata.query_start,
            self.cumulative_kv_lens,
            self.max_query_len,
            self.max_kv_len,
            window_size=window_of(sliding_window),
            enable_gqa=True,
            seqused_k=self.metadata.kv_lens,
            block_table=self.metadata.block_tables,
        )
        return output
