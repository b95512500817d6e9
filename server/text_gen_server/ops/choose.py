"""Chooses the operations, once, at start. Must not import what the chosen ones do not need."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from text_gen_server import native
from text_gen_server.ops.native import NativeOps
from text_gen_server.ops.pytorch import PyTorchOps

if TYPE_CHECKING:
    from text_gen_server.ops.interface import Ops


# Names of formats for weights that are rounded when they are loaded -> bits of a weight.
QUANTIZED_BITS = {"int8": 8, "int4": 4}


def choose_ops(*, dtype: torch.dtype, device: torch.device, num_threads: int, quantize: str | None = None) -> Ops:
    """Our kernels: for bf16 on a CPU the native ones, on a GPU those for Triton where that is installed. PyTorch elsewhere.

    quantize: a key of QUANTIZED_BITS
    ValueError, for the user, where the kernels were not built, or for quantized weights where there are none for them.
    """
    by_native = device.type == "cpu" and dtype == torch.bfloat16
    if quantize is not None and not by_native:
        raise ValueError(f"quantize {quantize} works on CPUs in bfloat16 only; remove it or --dtype and --device")
    if by_native:
        return NativeOps(num_threads, QUANTIZED_BITS[quantize] if quantize is not None else 16)
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from text_gen_server.ops.triton import TritonOps

        return TritonOps(dtype)
    return PyTorchOps(dtype)


def choose_cpu_dtype() -> torch.dtype:
    """bf16 where our kernels have the instructions to be fast; float32, by PyTorch, elsewhere."""
    return torch.float32 if native.instruction_set() == "portable" else torch.bfloat16
