"""How large the KV cache may be: computed from the machine's memory and the worst step, never guessed, and said with its
arithmetic. Must never allocate anything, and must never let the ranks disagree.
"""

from dataclasses import dataclass

import torch

from text_gen_server.config import ModelConfig
from text_gen_server.host import free_cpu_bytes

MIB = 2**20
# Of what a CPU machine has free. The rest is for the page cache of the weights, the router and everybody else.
CPU_MEMORY_FRACTION = 0.5
# Of a GPU, left alone: CUDA loads the code of a kernel when it is first called, and the allocator leaves holes.
CUDA_RESERVE_BYTES = 512 * MIB


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """What this rank may use, in bytes."""

    free_bytes: int  # on the machine or device, after the weights
    num_sharers: int  # ranks that share it
    activation_bytes: int  # of the worst step of this rank
    fraction: float  # of the rest, for the KV cache
    graph_bytes: int = 0  # of all graphs of this rank
    reserve_bytes: int = 0  # that nobody may use

    @property
    def rest_bytes(self) -> int:
        """What is left to this rank beside the worst step, the graphs and the reserve."""
        return max(0, self.free_bytes // self.num_sharers - self.activation_bytes - self.graph_bytes - self.reserve_bytes)

    @property
    def kv_cache_bytes(self) -> int:
        return int(self.rest_bytes * self.fraction)

    def __str__(self) -> str:
        graphs = f" - {self.graph_bytes / MIB:.0f} MiB for graphs" if self.graph_bytes > 0 else ""
        reserve = f" - {self.reserve_bytes / MIB:.0f} MiB in reserve" if self.reserve_bytes > 0 else ""
        return (
            f"({self.free_bytes / MIB:.0f} MiB free / {self.num_sharers} rank(s) - {self.activation_bytes / MIB:.0f} MiB for "
            f"the worst step{graphs}{reserve}) x {self.fraction:g} = {self.kv_cache_bytes / MIB:.0f} MiB"
        )


@dataclass(frozen=True, kw_only=True)
class CapacityRequest:
    """What the router asks of the KV cache, in tokens and sequences."""

    max_batch_size: int
    max_total_tokens: int  # longest sequence
    max_batch_total_tokens: int  # 0 = derive from memory
    block_size: int
    bytes_per_token: int  # in the KV cache of this rank
    copied_bytes_per_token: int = 0  # more memory that a step may need for each token in the KV cache


@dataclass(frozen=True, kw_only=True)
class KVCacheSize:
    """The size of this rank's KV cache."""

    num_blocks: int
    block_size: int  # in tokens
    kv_cache_bytes: int
    arithmetic: str  # how it came about, for the log

    @property
    def num_tokens(self) -> int:
        return self.num_blocks * self.block_size

    def with_blocks(self, num_blocks: int) -> "KVCacheSize":
        """This size, or the smaller one that another rank can have."""
        if num_blocks == self.num_blocks:
            return self
        return KVCacheSize(
            num_blocks=num_blocks,
            block_size=self.block_size,
            kv_cache_bytes=self.kv_cache_bytes // self.num_blocks * num_blocks,
            arithmetic=f"{self.arithmetic}; another rank has memory for {num_blocks} blocks only",
        )


def size_kv_cache(request: CapacityRequest, budget: MemoryBudget) -> KVCacheSize:
    """The number of blocks: what `max_batch_total_tokens` says, else what fits, and never more than can be used.

    ValueError, with the arithmetic, where what is asked does not fit, or nothing does.
    """
    block_bytes = request.block_size * request.bytes_per_token
    needed_bytes = request.block_size * (request.bytes_per_token + request.copied_bytes_per_token)
    block = f"{needed_bytes} bytes a block of {request.block_size} tokens"
    if request.copied_bytes_per_token > 0:
        block += f" ({needed_bytes - block_bytes} of them for what attention copies)"
    if request.max_batch_total_tokens > 0:
        num_blocks = max(1, request.max_batch_total_tokens // request.block_size)
        arithmetic = f"as set: {num_blocks} blocks x {block}"
        if num_blocks * needed_bytes > budget.rest_bytes:
            raise ValueError(
                f"max_batch_total_tokens {request.max_batch_total_tokens} needs {num_blocks * needed_bytes / MIB:.0f} MiB "
                f"({arithmetic}), there is {budget.rest_bytes / MIB:.0f} MiB: {budget}"
            )
    else:
        fitting = budget.kv_cache_bytes // needed_bytes
        # Every sequence at its longest; what is beyond it no batch could fill.
        usable = request.max_batch_size * -(-request.max_total_tokens // request.block_size)
        num_blocks = min(fitting, usable)
        arithmetic = (
            f"{budget}; / {block} = {fitting} blocks; at most {usable} for {request.max_batch_size} sequences of "
            f"{request.max_total_tokens} tokens"
        )
        if num_blocks < 1:
            raise ValueError(f"no memory for a single block of the KV cache: {arithmetic}")
    return KVCacheSize(
        num_blocks=num_blocks,
        block_size=request.block_size,
        kv_cache_bytes=num_blocks * block_bytes,
        arithmetic=f"{arithmetic} -> {num_blocks} blocks, {num_blocks * block_bytes / MIB:.0f} MiB",
    )


def activation_bound_bytes(config: ModelConfig, *, num_tokens: int, num_rows: int, dtype: torch.dtype) -> int:
    """More than the tensors of one step on a CPU can take, in bytes, should one rank hold the whole model.

    num_tokens: of the step; num_rows: of its logits
    """
    heads = 2 * config.num_heads + 2 * config.num_kv_heads  # query, key, value and the result of attention
    # The residual and its normalized copies; gate, up and their product. All of one layer; the layers follow each other.
    per_token = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size
    # Raw and processed logits, their softmax and running sum, and room for a sort, in float32.
    per_row = 6 * config.vocab_size
    return num_tokens * per_token * dtype.itemsize + num_rows * per_row * 4


def cpu_budget(*, activation_bytes: int, num_ranks: int) -> MemoryBudget:
    """The memory that is free on this machine, shared by its ranks."""
    return MemoryBudget(
        free_bytes=free_cpu_bytes(),
        num_sharers=num_ranks,
        activation_bytes=activation_bytes,
        fraction=CPU_MEMORY_FRACTION,
    )


def cuda_used_bytes(device: torch.device) -> int:
    """How much of the memory of `device` is in use, by whomever. Waits for the device."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return total_bytes - free_bytes


def cuda_budget(*, activation_bytes: int, graph_bytes: int, fraction: float, device: torch.device) -> MemoryBudget:
    """The memory that is free on `device`, which belongs to this rank alone."""
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return MemoryBudget(
        free_bytes=free_bytes,
        num_sharers=1,
        activation_bytes=activation_bytes,
        graph_bytes=graph_bytes,
        reserve_bytes=CUDA_RESERVE_BYTES,
        fraction=fraction,
    )
