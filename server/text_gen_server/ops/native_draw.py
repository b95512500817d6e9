"""Draws tokens with our CPU kernel, row by row what `sampler.draw` draws; what few requests ask for is left to that."""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from text_gen_server import native
from text_gen_server.sampling.sampler import draw as draw_by_pytorch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from text_gen_server.sampling.processors import SamplingRow

# `draw::Parameters`
PARAMETERS = np.dtype(
    [
        ("seed", np.uint64),
        ("position", np.uint64),
        ("top_k", np.uint64),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("log_min_p", np.float32),
        ("unused", np.float32),
    ]
)


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """See `sampler.draw`. logits: [n, V] float32 on the CPU"""
    others = [n for n, row in enumerate(rows) if row.parameters.typical_p < 1]
    token_ids = _draw(logits, rows)
    if others:
        token_ids[others] = draw_by_pytorch(logits[others], [rows[n] for n in others])
    return token_ids


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Without typical_p."""
    assert logits.dtype == torch.float32, "logits are float32"
    assert logits.stride(1) == 1, "the logits of a row lie side by side"
    num_rows, size = logits.shape
    parameters = np.array([_parameters(row, size) for row in rows], dtype=PARAMETERS)
    token_ids = torch.empty(num_rows, dtype=torch.int64)
    arguments = native.Draw(
        logits=logits.data_ptr(),
        stride=logits.stride(0),
        num_rows=num_rows,
        size=size,
        parameters=parameters.ctypes.data,
        token_ids=token_ids.data_ptr(),
    )
    native.library().tgk_draw(ctypes.addressof(arguments))
    return token_ids


def _parameters(row: SamplingRow, vocab_size: int) -> tuple[int, int, int, float, float, float, float]:
    asked = row.parameters
    top_k = asked.top_k if asked.top_k < vocab_size else 0
    log_min_p = math.log(asked.min_p) if asked.min_p > 0 else -math.inf
    return asked.seed, row.position, top_k, asked.temperature, asked.top_p, log_min_p, 0.0
