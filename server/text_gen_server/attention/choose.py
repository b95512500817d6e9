"""Chooses the attention implementation, once, at start. Must not import what the chosen one does not need."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from text_gen_server.attention import flash_attn, torch_varlen
from text_gen_server.attention.cpu import CpuAttention
from text_gen_server.attention.native import NativeAttention
from text_gen_server.attention.reference import ReferenceAttention

if TYPE_CHECKING:
    from text_gen_server.attention.interface import Attention
    from text_gen_server.config import ModelConfig

NAMES = ("auto", "reference", "cpu", "native", "flash-attn", "torch-varlen", "triton")
HALF_DTYPES = (torch.float16, torch.bfloat16)
FLASH_CAPABILITY = (8, 0)  # Ampere
FP8_CAPABILITY = {torch.float8_e4m3fn: (8, 9), torch.float8_e5m2: (8, 0)}  # of Triton's conversions: Ada, Ampere
LARGEST_FLASH_HEAD = 256


def choose_attention(
    name: str | None, *, device: torch.device, dtype: torch.dtype, config: ModelConfig, block_size: int | None = None
) -> Attention:
    """The implementation called `name`, or the fastest for `device` and `config` where it is None or "auto".

    dtype: of keys and values
    block_size: of the KV cache; None: the implementation's own
    ValueError for an unknown name, and for one that does not run there.
    """
    if name is None or name == "auto":
        on_cpu = device.type == "cpu"
        name = _fastest_on_cpu(dtype) if on_cpu else _fastest_on_gpu(_why_not_flash(device, config, dtype, block_size))
    if dtype in FP8_CAPABILITY and name in NAMES and name != "triton":
        raise ValueError(f"attention {name!r} cannot read a KV cache in {_name(dtype)}; on a GPU auto and triton can")
    if name == "native":
        if device.type != "cpu" or dtype != torch.bfloat16:
            raise ValueError(f"attention {name!r} runs on a CPU in bfloat16 only; use auto or reference")
        return NativeAttention()
    if name == "reference":
        return ReferenceAttention()
    if name == "cpu":
        if device.type != "cpu":
            raise ValueError(f"attention {name!r} does not run on {device.type}; use auto or reference")
        return CpuAttention()
    if name in ("flash-attn", "torch-varlen"):
        return _flash_attention(name, _why_not_flash(device, config, dtype, block_size))
    if name == "triton":
        return _triton_attention(device, dtype)
    raise ValueError(f"attention {name!r} is unknown; there are {', '.join(NAMES)}")


def _fastest_on_cpu(dtype: torch.dtype) -> str:
    return "native" if dtype == torch.bfloat16 else "cpu"


def _fastest_on_gpu(why_not_flash: str | None) -> str:
    if why_not_flash is None:
        if flash_attn.is_installed():
            return "flash-attn"
        if torch_varlen.is_supported():
            return "torch-varlen"
    return "triton" if importlib.util.find_spec("triton") is not None else "reference"


def _flash_attention(name: str, why_not: str | None) -> Attention:
    if why_not is not None:
        raise ValueError(f"attention {name!r} {why_not}; use auto, triton or reference")
    if name == "flash-attn":
        if not flash_attn.is_installed():
            raise ValueError("attention 'flash-attn' needs the package flash-attn, which is not installed for this PyTorch")
        return flash_attn.FlashAttention()
    if not torch_varlen.is_supported():
        raise ValueError(f"attention 'torch-varlen' needs a newer PyTorch than {torch.__version__}")
    return torch_varlen.TorchVarlenAttention()


def _why_not_flash(device: torch.device, config: ModelConfig, dtype: torch.dtype, block_size: int | None) -> str | None:
    """Why FlashAttention's kernels cannot serve this, or None where they can."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    if dtype not in HALF_DTYPES:
        return f"needs float16 or bfloat16, not {_name(dtype)}"
    if config.head_dim > LARGEST_FLASH_HEAD or config.head_dim % 8 != 0:
        return f"needs a head size of at most {LARGEST_FLASH_HEAD} that 8 divides, not {config.head_dim}"
    if torch.cuda.get_device_capability(device) < FLASH_CAPABILITY:
        return "needs a GPU of compute capability 8.0 or newer"
    if block_size is not None and block_size % flash_attn.BLOCK_MULTIPLE != 0:
        return f"needs a block size that {flash_attn.BLOCK_MULTIPLE} divides, not {block_size}"
    return None


def _triton_attention(device: torch.device, dtype: torch.dtype) -> Attention:
    if importlib.util.find_spec("triton") is None:
        raise ValueError("attention 'triton' needs the package triton, which is not installed")
    from triton import knobs

    from text_gen_server.attention.triton import TritonAttention

    if device.type == "cpu":
        if not knobs.runtime.interpret:
            raise ValueError("attention 'triton' runs on cpu only in Triton's interpreter (TRITON_INTERPRET=1); use auto")
        return TritonAttention(num_processors=1)
    capability, needed = torch.cuda.get_device_capability(device), FP8_CAPABILITY.get(dtype, (0, 0))
    if torch.version.hip is None and capability < needed:
        raise ValueError(f"a KV cache in {_name(dtype)} needs a GPU of compute capability {needed[0]}.{needed[1]} or newer")
    return TritonAttention(num_processors=_num_processors(device))


def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
