"""Models, KV caches and steps made on the device: nothing is read from files, so that no model is needed."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch
from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.layers.placement import Placement
from text_gen_server.models.loader import FAMILIES
from text_gen_server.ops.choose import choose_ops
from text_gen_server.ops.fp8 import PlainFp8Math
from text_gen_server.ops.triton import TritonOps

from gpu_check.timing import synchronize

if TYPE_CHECKING:
    from collections.abc import Callable

    from text_gen_server.attention.interface import Attention
    from text_gen_server.config import ModelConfig
    from text_gen_server.models.causal_lm import CausalLM
    from text_gen_server.ops.interface import Ops
    from torch import Tensor


def served_ops(dtype: torch.dtype, device: torch.device, quantize: str | None = None) -> Ops:
    """What a shard would compute with there; on a CPU the same kernels, interpreted. quantize: None or "fp8" """
    if device.type == "cuda":
        return choose_ops(dtype=dtype, device=device, num_threads=1, quantize=quantize)
    return TritonOps(dtype, fp8_math=PlainFp8Math(dtype), rounds_to_fp8=quantize is not None)


def make_model(
    config: ModelConfig,
    ops: Ops,
    device: torch.device,
    attention: Attention,
    *,
    drawn_in: torch.dtype | None = None,
    also: dict[str, Tensor] | None = None,
) -> CausalLM:
    """Random weights whose hidden states neither vanish nor grow; the same for every call with one device.

    also: gets the weights too, by their names in a checkpoint
    drawn_in: dtype of the random numbers before they become that of the operations, which they have by default
    """
    dtype = ops.activation_dtype
    placement = Placement(TensorParallel.single(), dtype, device, ops)
    model: CausalLM = FAMILIES[config.architecture](config, placement, attention)
    generator = torch.Generator(device).manual_seed(0)
    for wanted in model.wanted():
        drawn = torch.empty(wanted.shape, dtype=drawn_in or dtype, device=device)
        if len(wanted.shape) == 1:
            drawn.fill_(1.0)  # a norm
        else:
            drawn.normal_(std=wanted.shape[-1] ** -0.5, generator=generator)
        wanted.target.copy_(drawn)
        if also is not None:
            also[wanted.name].detach().copy_(drawn)
    model.pack()
    return model


def make_cache(config: ModelConfig, dtype: torch.dtype, device: torch.device, num_blocks: int, block_size: int) -> KVCache:
    cache = KVCache.allocate(
        config=config,
        tensor_parallel=TensorParallel.single(),
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=dtype,
        device=device,
    )
    generator = torch.Generator(device).manual_seed(1)
    for layer in (*cache.keys, *cache.values):
        layer.normal_(generator=generator)
    return cache


def free(device: torch.device) -> None:
    """Gives back what nobody holds any longer."""
    gc.collect()
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def decode_step(token_ids: Tensor, kv_lens: list[int], block_size: int) -> dict[str, Any]:
    """The arguments of a forward of one token per row, the last of its `kv_len`. Rows have their blocks in order.

    token_ids: [B] int64
    """
    return step_of(token_ids, [1] * len(kv_lens), kv_lens, block_size)


def step_of(token_ids: Tensor, query_lens: list[int], kv_lens: list[int], block_size: int) -> dict[str, Any]:
    """As `decode_step`, with rows of any number of tokens; rows of one token come first. token_ids: [T] int64"""
    device = token_ids.device
    counts = [-(-kv_len // block_size) for kv_len in kv_lens]
    tables = torch.zeros((len(kv_lens), max(counts)), dtype=torch.int32)
    positions, slots, first_block = [], [], 0
    for row, (query_len, kv_len, count) in enumerate(zip(query_lens, kv_lens, counts, strict=True)):
        tables[row, :count] = torch.arange(first_block, first_block + count)
        own = torch.arange(kv_len - query_len, kv_len)
        positions.append(own)
        slots.append(first_block * block_size + own)  # the blocks of a row follow each other
        first_block += count
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32).to(device),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32, device=device),
        block_tables=tables.to(device),
        query_lens_host=tuple(query_lens),
        kv_lens_host=tuple(kv_lens),
        num_decodes=next((n for n, query_len in enumerate(query_lens) if query_len != 1), len(query_lens)),
    )
    return {
        "token_ids": token_ids,
        "positions": torch.cat(positions).to(device),
        "slot_mapping": torch.cat(slots).to(device),
        "attention_metadata": metadata,
    }


class EagerCapture:
    """Stands where a graph is captured, and computes again at each replay: what a graph must give, bit for bit."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute
        self.output = compute().clone()

    def replay(self) -> None:
        self.output.copy_(self.compute())
