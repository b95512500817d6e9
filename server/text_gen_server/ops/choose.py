"""Chooses the operations, once, at start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from text_gen_server import native
from text_gen_server.ops.cpu import CpuOps
from text_gen_server.ops.pytorch import PyTorchOps

if TYPE_CHECKING:
    from text_gen_server.ops.interface import Ops


def choose_ops(*, dtype: torch.dtype, device: torch.device, num_threads: int) -> Ops:
    """Our kernels for bf16 on a CPU, PyTorch elsewhere. ValueError where the kernels were not built."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        return CpuOps(num_threads)
    return PyTorchOps(dtype)


def choose_cpu_dtype() -> torch.dtype:
    """bf16 where our kernels have the instructions to be fast; float32, by PyTorch, elsewhere."""
    return torch.float32 if native.instruction_set() == "portable" else torch.bfloat16
