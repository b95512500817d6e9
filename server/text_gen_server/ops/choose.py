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
FP8 = "fp8"  # rounded when they are loaded as well, on a GPU


def choose_ops(
    *, dtype: torch.dtype, device: torch.device, num_threads: int, quantize: str | None = None, is_fp8: bool = False
) -> Ops:
    """Our kernels: for bf16 on a CPU the native ones, on a GPU those for Triton where that is installed. PyTorch elsewhere.

    quantize: a key of QUANTIZED_BITS, or FP8
    is_fp8: linear layers of the checkpoint are in fp8 already
    ValueError, for the user, where the kernels were not built, or for quantized weights where there are none for them.
    """
    if is_fp8 or quantize == FP8:
        return _choose_fp8_ops(dtype, device, quantize=quantize, is_fp8=is_fp8)
    by_native = device.type == "cpu" and dtype == torch.bfloat16
    if quantize is not None and not by_native:
        raise ValueError(f"quantize {quantize} works on CPUs in bfloat16 only; remove it or --dtype and --device")
    if by_native:
        return NativeOps(num_threads, QUANTIZED_BITS[quantize] if quantize is not None else 16)
    if device.type == "cuda" and _has_triton():
        from text_gen_server.ops.triton import TritonOps

        return TritonOps(dtype)
    return PyTorchOps(dtype)


def _choose_fp8_ops(dtype: torch.dtype, device: torch.device, *, quantize: str | None, is_fp8: bool) -> Ops:
    what = "the checkpoint has fp8 weights, which work" if is_fp8 else f"quantize {FP8} works"
    if quantize not in (None, FP8):
        raise ValueError(f"the checkpoint has fp8 weights, which quantize {quantize} cannot round again; remove it")
    if device.type != "cuda":
        advice = "give the checkpoint in full precision" if is_fp8 else f"use {' or '.join(QUANTIZED_BITS)}"
        raise ValueError(f"{what} on NVIDIA GPUs only, not on {device.type}; {advice}")
    if dtype != torch.bfloat16:
        raise ValueError(f"{what} in bfloat16 only, not in {str(dtype).removeprefix('torch.')}; remove --dtype")
    if not _has_triton():
        raise ValueError(f"{what} with the package triton only, which is not installed")
    from text_gen_server.ops.fp8 import ScaledMatrixMath
    from text_gen_server.ops.triton import TritonOps

    return TritonOps(dtype, fp8_math=ScaledMatrixMath(device), rounds_to_fp8=not is_fp8)


def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def choose_cpu_dtype() -> torch.dtype:
    """bf16 where our kernels have the instructions to be fast; float32, by PyTorch, elsewhere."""
    return torch.float32 if native.instruction_set() == "portable" else torch.bfloat16
