"""Copies tensors out of mapped files into the tensors of a model, on a GPU with several threads at once: each has memory that
the device reads by itself, so that reading a file and copying to the device go on side by side. The model is never whole in
the memory of the host, and what is rounded on its way never whole on the device.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PIECE_BYTES = 32 * 2**20
NUM_THREADS = 4  # one alone is as fast as one core copies
NUM_BUFFERS = 2  # of a thread: one is filled while the other is read


@dataclass(frozen=True)
class RoundedRows:
    """Where rows go that are rounded on their device as they arrive, each by itself."""

    values: Tensor  # [rows, in]
    scales: Tensor  # [rows]
    round_rows: Callable[[Tensor], tuple[Tensor, Tensor]]  # [n, in] -> values and scales; called by any thread

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def device(self) -> torch.device:
        return self.values.device

    def part(self, rows: slice) -> RoundedRows:
        return RoundedRows(self.values[rows], self.scales[rows], self.round_rows)

    def split(self, num_rows: int) -> list[RoundedRows]:
        """As that of a tensor."""
        return [self.part(slice(first, first + num_rows)) for first in range(0, len(self.values), num_rows)]

    def copy_(self, rows: Tensor, *, non_blocking: bool = False) -> None:
        """As that of a tensor. rows: [rows, in], on the same device"""
        values, scales = self.round_rows(rows)
        self.values.copy_(values, non_blocking=non_blocking)
        self.scales.copy_(scales, non_blocking=non_blocking)


Target: TypeAlias = Tensor | RoundedRows


class Stage(Protocol):
    """How one thread copies."""

    def copy(self, source: Tensor, target: Target) -> None:
        """May return before the device is done. source: broadcast to target, on the host"""

    def finish(self) -> None:
        """Waits for the device."""


def copy_tensors(pairs: Iterable[tuple[Tensor, Target]], device: torch.device) -> None:
    """pairs: source on the host, and its target on `device`, of any dtype, to whose shape it is broadcast"""
    if device.type == "cpu":
        for source, target in pairs:
            target.copy_(source)
        return
    torch.cuda.synchronize(device)  # what is still to happen to the targets comes first
    copy_in_threads(pairs, lambda: PinnedStage(device), num_threads=NUM_THREADS)


def copy_in_threads(pairs: Iterable[tuple[Tensor, Target]], make_stage: Callable[[], Stage], *, num_threads: int) -> None:
    """Copies in pieces, in any order, each by one of the threads. The first error is raised once all have stopped."""
    local = threading.local()
    stages: list[Stage] = []

    def begin() -> None:
        local.stage = make_stage()
        stages.append(local.stage)

    def copy(piece: tuple[Tensor, Target]) -> None:
        local.stage.copy(*piece)

    with ThreadPoolExecutor(num_threads, "weights", initializer=begin) as threads:
        running = [threads.submit(copy, piece) for pair in pairs for piece in _pieces(*pair)]
        try:
            for copied in running:
                copied.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    for stage in stages:
        stage.finish()


def _pieces(source: Tensor, target: Target) -> Iterator[tuple[Tensor, Target]]:
    """Rows of both that fit into a buffer. What is broadcast is small and stays whole."""
    if source.shape != target.shape or source.nbytes <= PIECE_BYTES:
        return iter([(source, target)])
    rows = max(1, PIECE_BYTES // (source.nbytes // len(source)))
    targets = target.split(rows) if isinstance(target, RoundedRows) else torch.split(target, rows)
    return zip(torch.split(source, rows), targets, strict=True)


class PinnedStage:
    """See `Stage`: through buffers in page-locked memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)  # a new thread has the first one, and Triton launches on that of its thread
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.buffers = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(NUM_BUFFERS)]
        self.read = [torch.cuda.Event() for _ in range(NUM_BUFFERS)]  # type: ignore[no-untyped-call]
        self.turn = 0

    def copy(self, source: Tensor, target: Target) -> None:
        self.turn = (self.turn + 1) % NUM_BUFFERS
        buffer, read = self.buffers[self.turn], self.read[self.turn]
        if source.nbytes > PIECE_BYTES:
            buffer = torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=True)  # a row longer than a piece
        read.synchronize()
        staged = buffer[: source.nbytes].view(source.dtype).view(source.shape)
        staged.copy_(source)
        with torch.cuda.stream(self.stream):
            # The device converts, spreads and rounds; the host would need memory for it that is not page-locked.
            target.copy_(staged.to(self.device, non_blocking=True) if _differ(source, target) else staged, non_blocking=True)
            read.record(self.stream)

    def finish(self) -> None:
        self.stream.synchronize()


def _differ(source: Tensor, target: Target) -> bool:
    if isinstance(target, RoundedRows):
        return True
    return source.dtype != target.dtype or source.shape != target.shape or not target.is_contiguous()
