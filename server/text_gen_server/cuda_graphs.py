"""Replays decode steps from CUDA graphs, so that a step costs the host one launch instead of hundreds.

A graph computes a fixed number of rows from fixed memory. So a batch is padded to the next captured size: what a graph reads
lies in persistent memory, every row of which is written for each step, or emptied. Must never replay on inputs of an earlier
step, and never change what a step computes.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.decode_rows import DecodeRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from text_gen_server.kv_cache import KVCache
    from text_gen_server.models.causal_lm import CausalLM
    from text_gen_server.weights import WantedTensor

log = logging.getLogger("text_gen_server")

# Attention that finds its lengths in device tensors. Others would replay the lengths of the capture.
CAPTURED_ATTENTION = ("flash-attn", "torch-varlen", "triton")
SMALL_SIZES = (1, 2, 4)
SIZE_STEP = 8
LARGEST_DEFAULT_SIZE = 256
# The least that a graph after the first is taken to need: its nodes lie on the device too, and a small difference of two
# measurements says little.
LEAST_GRAPH_BYTES = 4 * 2**20


class Graph(Protocol):
    """A captured computation."""

    @property
    def output(self) -> Tensor:
        """Where each replay leaves its result."""

    def replay(self) -> None:
        """Computes again from whatever the captured memory holds now."""


class Capture(Protocol):
    """How a computation becomes a graph."""

    def __call__(self, compute: Callable[[], Tensor]) -> Graph: ...


@dataclass(frozen=True, kw_only=True)
class GraphLimits:
    """What graphs are captured for."""

    sizes: tuple[int, ...]  # batch sizes, ascending; none = no graphs
    max_total_tokens: int  # longest sequence
    is_alone: bool = True  # no other rank computes the same batches, and must compute them with as many rows


def graph_sizes(asked: Sequence[int] | None, max_batch_size: int) -> tuple[int, ...]:
    """The batch sizes to capture, ascending: those asked for that a batch can fill, or a default where None.

    `[0]` and an empty list mean none. A size above `max_batch_size` is cut to it. ValueError for a negative size.
    """
    if asked is None:
        largest = min(max_batch_size, LARGEST_DEFAULT_SIZE)
        asked = [*(size for size in SMALL_SIZES if size < largest), *range(SIZE_STEP, largest, SIZE_STEP), largest]
    if any(size < 0 for size in asked):
        raise ValueError(f"cuda graphs are asked for {min(asked)} rows, a batch has at least 1")
    return tuple(sorted({min(size, max_batch_size) for size in asked if size > 0}))


def choose_capture(device: torch.device, attention: str) -> Callable[[], Capture] | None:
    """What makes the capture of a `GraphedModel` on `device` with the attention of this name; None: there are no graphs."""
    return CudaCapture if device.type == "cuda" and attention in CAPTURED_ATTENTION else None


@dataclass(frozen=True)
class GraphInputs:
    """What the graph of one size reads. It does so once a forward is given these very objects; a forward that is given a step
    elsewhere copies it here first.
    """

    rows: DecodeRows
    metadata: AttentionMetadata  # of all rows; what the host is told of lengths is the worst case

    def copy_from(self, token_ids: Tensor, positions: Tensor, slot_mapping: Tensor, metadata: AttentionMetadata) -> None:
        """Puts a step of one token per row into the first rows and empties those behind."""
        num_rows, num_blocks = metadata.block_tables.shape
        assert num_blocks <= self.rows.block_tables.shape[1], "a block table fits the longest sequence"
        self.rows.part(slice(num_rows, None)).clear()
        filled = self.rows.part(slice(num_rows))
        for target, source in zip(filled.vectors(), (token_ids, positions, slot_mapping, metadata.kv_lens), strict=True):
            target.copy_(source, non_blocking=True)
        filled.block_tables[:, :num_blocks].copy_(metadata.block_tables, non_blocking=True)
        filled.block_tables[:, num_blocks:].zero_()


class GraphedModel:
    """A `CausalLM` whose decode steps are replayed. All other steps, and batches above the largest size, run as they are.

    Graphs are captured by `capture_all`, or else when a batch first needs them; before any other the largest, which takes the
    memory that all share. All ranks capture in the same order, because they are called alike and compute the same batches.
    """

    def __init__(
        self, model: CausalLM, *, kv_cache: KVCache, limits: GraphLimits, capture: Capture, device: torch.device
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.capture = capture
        self.is_alone = limits.is_alone
        self.sizes = list(limits.sizes)
        self.graphs: dict[int, Graph] = {}
        self.buffers = _Buffers(limits, kv_cache.block_size, device) if limits.sizes else None
        self.inputs: dict[int, GraphInputs] = {}  # of the graphs

    def wanted(self) -> Iterator[WantedTensor]:
        return self.model.wanted()

    def pack(self) -> None:
        self.model.pack()

    def logits(self, hidden: Tensor) -> Tensor | None:
        return self.model.logits(hidden)

    def forward(
        self,
        *,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        attention_metadata: AttentionMetadata,
        kv_cache: KVCache,
    ) -> Tensor:
        """See `CausalLM`. What a replayed step returns is overwritten by the next one; of a step that was made where its graph
        reads it, the hidden states of empty rows are returned too.
        """
        in_place = self.inputs.get(len(token_ids))
        if in_place is not None and attention_metadata is in_place.metadata:
            assert kv_cache is self.kv_cache, "a graph reads the KV cache with which it was captured"
            return self._replay(len(token_ids))
        num_rows = len(attention_metadata.kv_lens_host)
        # Memory that was measured with another KV cache must not be read through graphs of this one.
        is_decode = attention_metadata.num_decodes == num_rows and kv_cache is self.kv_cache
        inputs = self.inputs_for(num_rows) if is_decode else None
        if inputs is None:
            return self.model.forward(
                token_ids=token_ids,
                positions=positions,
                slot_mapping=slot_mapping,
                attention_metadata=attention_metadata,
                kv_cache=kv_cache,
            )
        inputs.copy_from(token_ids, positions, slot_mapping, attention_metadata)
        return self._replay(len(inputs.rows.token_ids))[:num_rows]

    def inputs_for(self, num_rows: int) -> GraphInputs | None:
        """Where the smallest graph that holds so many decodes reads them, captured if it must be; None: they run as they are.

        Whoever writes a step there writes all rows, and calls `forward` with it before anything else is written.
        """
        if self.sizes and not self.graphs:
            self._capture(self.sizes[-1])
        while True:
            index = bisect_left(self.sizes, num_rows)
            if index == len(self.sizes):
                return None
            size = self.sizes[index]
            if size in self.graphs:
                return self.inputs[size]
            self._capture(size)

    def capture_next(self) -> bool:
        """Captures the largest size that is still missing. False where none is: for a caller that has time to spare."""
        missing = [size for size in self.sizes if size not in self.graphs]
        if missing:
            self._capture(missing[-1])
        return bool(missing)

    def capture_all(self) -> None:
        """Captures every size, so that no step has to wait for it."""
        while self.capture_next():
            pass

    def measure_bytes(self, used_bytes: Callable[[], int]) -> int:
        """What the graphs of all sizes will keep of the device's memory, inputs included, judged by the two largest, which are
        captured for it.

        used_bytes: how much of the device's memory is in use
        """
        if self.buffers is None:
            return 0
        num_sizes, before = len(self.sizes), used_bytes()
        self.capture_next()
        first = used_bytes() - before
        self.capture_next()
        second = used_bytes() - before - first
        return self.buffers.num_bytes + max(first, 0) + (num_sizes - 1) * max(second, LEAST_GRAPH_BYTES)

    def _replay(self, size: int) -> Tensor:
        graph = self.graphs[size]
        graph.replay()
        return graph.output

    def _capture(self, size: int) -> None:
        """Adds the graph of `size`. Where memory does not suffice, a rank that is alone gives the size up.

        torch.OutOfMemoryError where it is not: the others would replay the graph, and wait for sums of more rows.
        """
        assert self.buffers is not None, "where there are sizes there are buffers"
        inputs = self.buffers.first(size)
        inputs.rows.clear()  # so that a capture reads and writes nobody's blocks

        def compute() -> Tensor:
            return self.model.forward(
                token_ids=inputs.rows.token_ids,
                positions=inputs.rows.positions,
                slot_mapping=inputs.rows.slot_mapping,
                attention_metadata=inputs.metadata,
                kv_cache=self.kv_cache,
            )

        try:
            self.graphs[size] = self.capture(compute)
        except torch.OutOfMemoryError:
            if not self.is_alone:
                raise
            log.warning("no memory for a CUDA graph of %d rows; such batches are computed without", size)
            self.sizes.remove(size)
        else:
            self.inputs[size] = inputs


class _Buffers:
    """The persistent inputs of all graphs: a graph of n rows reads the first n."""

    def __init__(self, limits: GraphLimits, block_size: int, device: torch.device) -> None:
        size = limits.sizes[-1]
        self.max_total_tokens = limits.max_total_tokens
        self.rows = DecodeRows.allocate(size, -(-limits.max_total_tokens // block_size), device)
        self.query_start = torch.arange(size + 1, dtype=torch.int32, device=device)

    @property
    def num_bytes(self) -> int:
        return self.rows.num_bytes + self.query_start.nbytes

    def first(self, size: int) -> GraphInputs:
        rows = self.rows.part(slice(size))
        metadata = AttentionMetadata(
            query_start=self.query_start[: size + 1],
            kv_lens=rows.kv_lens,
            block_tables=rows.block_tables,
            query_lens_host=(1,) * size,
            kv_lens_host=(self.max_total_tokens,) * size,
            num_decodes=size,
        )
        return GraphInputs(rows, metadata)


class CudaCapture:
    """Captures with PyTorch, on one stream of its own. All graphs share one pool of memory, because one replays at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, compute: Callable[[], Tensor]) -> Graph:
        # What happens once (compilation, handles, workspaces) must have happened before a capture, on the same stream.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            compute()
        torch.cuda.current_stream().wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (that of NCCL, which looks at its events) may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            output = compute()
        return CudaGraph(graph, output)


@dataclass(frozen=True)
class CudaGraph:
    """See `Graph`."""

    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> None:
        self.graph.replay()
