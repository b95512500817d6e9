"""The KV cache of one rank: keys and values of all layers in blocks. Which block belongs to which sequence is the router's
business; nothing here allocates, frees or counts blocks.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.config import ModelConfig
    from text_gen_server.distributed import TensorParallel
    from text_gen_server.fp8_config import KVScales

HUGE_PAGE_BYTES = 2 * 2**20


@dataclass(frozen=True)
class KVCache:
    """Slot `block_id * block_size + offset` of a layer holds the K/V of one token."""

    num_blocks: int
    block_size: int  # in tokens
    keys: tuple[Tensor, ...]  # per layer [NB, BS, KH, D]
    values: tuple[Tensor, ...]  # per layer [NB, BS, KH, D]
    _key_slots: tuple[Tensor, ...]  # per layer [NB * BS + 1, KH, D], the same memory and one slot for what is not to be kept
    _value_slots: tuple[Tensor, ...]
    scales: tuple[KVScales, ...] | None = None  # per layer, where the cache is in fp8

    @classmethod
    def allocate(
        cls,
        *,
        config: ModelConfig,
        tensor_parallel: TensorParallel,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: tuple[KVScales, ...] | None = None,
    ) -> KVCache:
        """Zeroed, so that slots never written hold finite numbers: attention multiplies masked values by zero."""
        heads = tensor_parallel.split_kv_heads(config.num_kv_heads)
        shape = (num_blocks * block_size + 1, heads.stop - heads.start, config.head_dim)
        key_slots, value_slots = (tuple(_zeros(shape, dtype, device) for _ in range(config.num_layers)) for _ in range(2))
        keys, values = (
            tuple(layer[:-1].view(num_blocks, block_size, *shape[1:]) for layer in slots) for slots in (key_slots, value_slots)
        )
        return cls(num_blocks, block_size, keys, values, key_slots, value_slots, scales)

    @staticmethod
    def bytes_per_token(config: ModelConfig, tensor_parallel: TensorParallel, dtype: torch.dtype) -> int:
        """What one token takes on this rank, over all layers, keys and values."""
        heads = tensor_parallel.split_kv_heads(config.num_kv_heads)
        num_kv_heads: int = heads.stop - heads.start
        return 2 * config.num_layers * num_kv_heads * config.head_dim * dtype.itemsize

    def slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer by slot, [NB * BS + 1, KH, D]; the last slot, also called -1, is for what is not kept."""
        return self._key_slots[layer], self._value_slots[layer]

    def clear_blocks(self, block_ids: Tensor) -> None:
        """Sets blocks to zero in all layers. block_ids: [any] int64"""
        for layer in (*self.keys, *self.values):
            # Zero has no bit set, and PyTorch cannot fill fp8.
            (layer.view(torch.uint8) if layer.element_size() == 1 else layer).index_fill_(0, block_ids, 0)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On the CPU their memory is taken when a block is first written: to touch gigabytes at the start takes half a
    minute, and a laptop seldom needs all of them.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = prod(shape) * dtype.itemsize
    untouched = np.frombuffer(_untouched_pages(num_bytes), dtype=np.uint8, count=num_bytes)
    return torch.from_numpy(untouched).view(dtype).view(shape)


def _untouched_pages(num_bytes: int) -> mmap.mmap:
    """Zeroed pages of the system's, huge ones where it has them: a step reads the blocks of many sequences, and with small
    pages finding out where they are takes longer than reading them.
    """
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
