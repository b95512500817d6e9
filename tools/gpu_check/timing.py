"""How long a computation takes on its device, and how long the host is busy with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_WARMUPS = 3


def device_seconds(compute: Callable[[], object], device: torch.device, num_repeats: int) -> float:
    """Seconds of one call, back to back on the device; the median would hide what a serving loop pays."""
    for _ in range(min(NUM_WARMUPS, num_repeats)):
        compute()
    if device.type != "cuda":
        return wall_seconds(compute, device, num_repeats)
    begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(num_repeats):
        compute()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / num_repeats


def wall_seconds(compute: Callable[[], object], device: torch.device, num_repeats: int) -> float:
    """Seconds of one call as the caller sees them, with all that is still under way at the end."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(num_repeats):
        compute()
    synchronize(device)
    return (time.perf_counter() - begin) / num_repeats


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
