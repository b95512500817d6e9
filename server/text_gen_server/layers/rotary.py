"""Rotary position embeddings: cosine and sine of a step's positions, computed once and used by all layers.

The angle of a token is a function of its position alone, never of the length that its sequence happens to have, because K/V
blocks are shared between sequences and computed in chunks. Two kinds depend on a length, and here is what that means:
dynamic uses, at each position, the length reached there (transformers does the same when a sequence grows token by token);
longrope uses the long factors throughout as soon as the model may go beyond its original length.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from text_gen_server.rope_config import RopeConfig


class RotaryEmbedding:
    """Kinds and formulas as in transformers' `modeling_rope_utils`."""

    def __init__(self, config: RopeConfig, head_dim: int, device: torch.device) -> None:
        self.config = config
        self.head_dim = head_dim
        # [D / 2] float32: the exponents 2i / D, and the angle per position
        self.exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        self.frequencies = _FREQUENCIES[config.kind](config, self.exponents)

    def cos_sin(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """positions: [T] int64 -> two of [T, 1, D]; as `StepPositions` has them"""
        distance = positions.to(torch.float32).unsqueeze(-1)
        frequencies = self._dynamic_frequencies(distance) if self.config.kind == "dynamic" else self.frequencies
        angle = (distance * frequencies).unsqueeze(1)  # [T, 1, D / 2]
        cos, sin = angle.cos(), angle.sin()
        if self.config.attention_factor != 1.0:
            cos, sin = cos * self.config.attention_factor, sin * self.config.attention_factor
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)

    def _dynamic_frequencies(self, positions: Tensor) -> Tensor:
        """Dynamic NTK: the base grows with the length. positions: [T, 1] float32 -> [T, D / 2]"""
        config, dim = self.config, self.head_dim
        stretch = (positions + 1).clamp(min=config.max_position_embeddings) / config.max_position_embeddings
        base = config.theta * (config.factor * stretch - (config.factor - 1)) ** (dim / (dim - 2))
        return 1.0 / base**self.exponents


def _default(config: RopeConfig, exponents: Tensor) -> Tensor:
    return 1.0 / config.theta**exponents


def _linear(config: RopeConfig, exponents: Tensor) -> Tensor:
    return _default(config, exponents) / config.factor


def _yarn(config: RopeConfig, exponents: Tensor) -> Tensor:
    """YaRN (arXiv 2309.00071): fast dimensions stay, slow ones are interpolated, with a ramp between them."""
    dim = 2 * exponents.numel()

    def dimension_with(num_rotations: float) -> float:
        length = config.original_max_position_embeddings
        return dim * math.log(length / (num_rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension_with(config.beta_fast), dimension_with(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device=exponents.device) - low) / width).clamp(0, 1)
    frequencies = _default(config, exponents)
    return frequencies / config.factor * ramp + frequencies * (1 - ramp)


def _llama3(config: RopeConfig, exponents: Tensor) -> Tensor:
    """Llama 3.1: long wavelengths are divided by the factor, short ones stay, those between are blended."""
    frequencies = _default(config, exponents)
    wavelengths = 2 * math.pi / frequencies
    low, high, length = config.low_freq_factor, config.high_freq_factor, config.original_max_position_embeddings
    smooth = ((length / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequencies / config.factor + smooth * frequencies


def _longrope(config: RopeConfig, exponents: Tensor) -> Tensor:
    """LongRoPE (arXiv 2402.13753): a factor for each dimension."""
    beyond = config.max_model_len > config.original_max_position_embeddings
    factors = torch.tensor(config.long_factor if beyond else config.short_factor, dtype=torch.float32, device=exponents.device)
    return 1.0 / (factors * config.theta**exponents)


_FREQUENCIES: dict[str, Callable[[RopeConfig, Tensor], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,  # up to max_position_embeddings; beyond, each position has its own
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
