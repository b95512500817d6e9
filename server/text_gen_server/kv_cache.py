"""The KV cache of one rank: keys and values of all layers in blocks. Which block belongs to which sequence is the router's
business; nothing here allocates, frees or counts blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from text_gen_server.growing_memory import GrowingMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from text_gen_server.config import ModelConfig
    from text_gen_server.distributed import TensorParallel
    from text_gen_server.fp8_config import KVScales

# How much is taken from the system before it is needed: as many tokens as a few long prompts have, but not all of a laptop.
AHEAD_TOKENS = 8192
MAX_AHEAD_BYTES = 512 * 2**20


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
    _memory: GrowingMemory | None = None  # of all layers, keys and values, on the CPU

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
        memory = None
        if device.type == "cpu":
            memory = _growing_memory(2 * config.num_layers, shape, dtype)
            slots = tuple(part.view(dtype).view(shape) for part in memory.parts)
        else:
            slots = tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * config.num_layers))
        key_slots, value_slots = slots[::2], slots[1::2]
        keys, values = (
            tuple(layer[:-1].view(num_blocks, block_size, *shape[1:]) for layer in slots) for slots in (key_slots, value_slots)
        )
        return cls(num_blocks, block_size, keys, values, key_slots, value_slots, scales, memory)

    @staticmethod
    def bytes_per_token(config: ModelConfig, tensor_parallel: TensorParallel, dtype: torch.dtype) -> int:
        """What one token takes on this rank, over all layers, keys and values."""
        heads = tensor_parallel.split_kv_heads(config.num_kv_heads)
        num_kv_heads: int = heads.stop - heads.start
        return 2 * config.num_layers * num_kv_heads * config.head_dim * dtype.itemsize

    def slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer by slot, [NB * BS + 1, KH, D]; the last slot, also called -1, is for what is not kept."""
        return self._key_slots[layer], self._value_slots[layer]

    def expect(self, block_ids: Sequence[int]) -> None:
        """These blocks are about to be written. Those after them will be next, since the lowest ones are given away first."""
        if self._memory is not None and block_ids:
            self._memory.reach((max(block_ids) + 1) * self.keys[0][0].nbytes)

    def clear_blocks(self, block_ids: Tensor) -> None:
        """Sets blocks to zero in all layers. block_ids: [any] int64"""
        for layer in (*self.keys, *self.values):
            # Zero has no bit set, and PyTorch cannot fill fp8.
            (layer.view(torch.uint8) if layer.element_size() == 1 else layer).index_fill_(0, block_ids, 0)


def _growing_memory(num_parts: int, shape: tuple[int, int, int], dtype: torch.dtype) -> GrowingMemory:
    """A part for each [slots, KH, D]."""
    slot_bytes = prod(shape[1:]) * dtype.itemsize
    ahead_bytes = min(AHEAD_TOKENS * slot_bytes, MAX_AHEAD_BYTES // num_parts)
    return GrowingMemory(num_parts=num_parts, part_bytes=shape[0] * slot_bytes, ahead_bytes=ahead_bytes)
