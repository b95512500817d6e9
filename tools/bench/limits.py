"""How fast this machine could be at best: its read bandwidth and its arithmetic, and what a model's tokens cost of both."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.model import Shape

READ_BYTES = 1 << 29
SQUARE = 2048
REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """Measured with PyTorch on all CPUs that the process may use."""

    bytes_per_s: float
    flops: float

    def seconds_per_token(self, weight_bytes: float) -> float:
        """A step of one stream reads every weight once."""
        return weight_bytes / self.bytes_per_s

    def tokens_per_s(self, shape: Shape, weight_bytes: float, num_streams: int, prompt_len: int, output_len: int) -> float:
        """So many streams with such requests: all arithmetic, and all weights once for each step of the decode."""
        prefill = 2 * shape.num_body_parameters * prompt_len / self.flops
        arithmetic = 2 * shape.num_parameters * output_len / self.flops
        reading = self.seconds_per_token(weight_bytes) * output_len / num_streams
        return output_len / (prefill + max(arithmetic, reading))

    def as_row(self) -> dict[str, object]:
        return {"kind": "machine", "cpus": len(os.sched_getaffinity(0)), **asdict(self)}


def measure_machine(read_bytes: int = READ_BYTES, square: int = SQUARE) -> Machine:
    """Takes a few seconds of all CPUs. `read_bytes` must be far above any cache."""
    seconds_read = _best(torch.ones(read_bytes // 4).sum)  # a product with a vector is on one thread on some processors
    flops = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        factor = torch.ones(square, square, dtype=dtype)
        flops = max(flops, 2 * square**3 / _best(partial(torch.mm, factor, factor)))
    return Machine(read_bytes / seconds_read, flops)


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
