"""Chooses the attention implementation, once, at start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from text_gen_server.attention.cpu import CpuAttention
from text_gen_server.attention.native import NativeAttention
from text_gen_server.attention.reference import ReferenceAttention

if TYPE_CHECKING:
    from text_gen_server.attention.interface import Attention
    from text_gen_server.config import ModelConfig

NAMES = ("auto", "reference", "cpu", "native")


def choose_attention(name: str | None, *, device: torch.device, dtype: torch.dtype, config: ModelConfig) -> Attention:
    """The implementation called `name`, or the fastest for `device` and `config` where it is None or "auto".

    dtype: of keys and values
    ValueError for an unknown name, and for one that does not run there.
    """
    del config  # The implementations there are can do all that a configuration can ask for.
    by_native = device.type == "cpu" and dtype == torch.bfloat16
    if name is None or name == "auto":
        name = "native" if by_native else "cpu" if device.type == "cpu" else "reference"
    if name == "native":
        if not by_native:
            raise ValueError(f"attention {name!r} runs on a CPU in bfloat16 only; use auto or reference")
        return NativeAttention()
    if by_native:
        raise ValueError(
            f"attention {name!r} does not fit the native kernels, which compute bfloat16 on a CPU; use auto or --dtype float32"
        )
    if name == "reference":
        return ReferenceAttention()
    if name == "cpu":
        if device.type != "cpu":
            raise ValueError(f"attention {name!r} does not run on {device.type}; use auto or reference")
        return CpuAttention()
    raise ValueError(f"attention {name!r} is unknown; there are {', '.join(NAMES)}")
