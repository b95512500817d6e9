"""Chooses the sampler, once, at start. Must not import Triton where it is not used."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING

from text_gen_server.sampling import sampler

if TYPE_CHECKING:
    import torch

    from text_gen_server.sampling.sampler import Draw, Sample
    from text_gen_server.sampling.summary import Summarize


def choose_sampler(device: torch.device, summarize: Summarize, draw: Draw) -> Sample:
    """Our Triton kernels on a GPU that has Triton, PyTorch elsewhere.

    summarize, draw: by the operations of `device`, where the sampler leaves that to them
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from text_gen_server.sampling import fused

        return fused.sample
    return partial(sampler.sample, summarize=summarize, draw=draw)
