"""The rotary embedding part of `config.json`, in both spellings, checked: `rope_theta` with `rope_scaling`, or
`rope_parameters`. Must not import torch; the frequencies are computed in `layers/rotary.py`.
"""

import math
from dataclasses import dataclass
from typing import Any

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclass(frozen=True)
class RopeConfig:
    """One kind of rope scaling. A field that the kind does not use keeps its default."""

    kind: str  # one of KINDS
    theta: float
    max_position_embeddings: int  # of config.json, in tokens
    max_model_len: int  # how far the scaled embedding reaches, in tokens
    factor: float = 1.0
    original_max_position_embeddings: int = 0  # yarn, llama3, longrope: the length of the pretraining, in tokens
    attention_factor: float = 1.0  # yarn, longrope: scales cosine and sine
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: whether the range of interpolated dimensions ends at whole dimensions
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    short_factor: tuple[float, ...] = ()  # longrope, [head_dim / 2]
    long_factor: tuple[float, ...] = ()  # longrope, [head_dim / 2]


def parse_rope(
    content: dict[str, Any], head_dim: int, max_position_embeddings: int, override: dict[str, Any] | None
) -> RopeConfig:
    """The rope configuration of config.json's `content`; `override` (rope_type, factor) replaces its scaling, not its theta.

    ValueError for an unknown kind and for values that are missing or out of range.
    """
    old, new = (content.get(key) or {} for key in ("rope_scaling", "rope_parameters"))
    if not isinstance(old, dict) or not isinstance(new, dict):
        raise ValueError("config.json: rope_scaling and rope_parameters must be objects")
    # As transformers has it: what rope_scaling or rope_parameters say comes before the keys beside them.
    values = {**{key: content[key] for key in ("rope_theta", "partial_rotary_factor") if key in content}, **(old or new)}
    if "original_max_position_embeddings" in content:
        values["original_max_position_embeddings"] = content["original_max_position_embeddings"]
    if any(isinstance(value, dict) for value in values.values()):
        raise ValueError("config.json: rope parameters per layer type are not supported")
    if override is not None:
        values = {"rope_theta": values.get("rope_theta"), **override}
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ValueError(f"config.json: partial_rotary_factor is {values['partial_rotary_factor']!r}, supported is 1")
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind not in KINDS:
        raise ValueError(f"config.json: rope type {kind!r} is unknown; supported are {', '.join(KINDS)}")
    return _PARSERS[kind](_RopeFields(values, head_dim, max_position_embeddings))


class _RopeFields:
    """Typed access to the rope values."""

    def __init__(self, values: dict[str, Any], head_dim: int, max_position_embeddings: int) -> None:
        self.values = values
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.theta = self.number("rope_theta", 10000.0, above=1.0)

    def number(self, key: str, default: float | None = None, *, above: float = 0.0) -> float:
        """A number greater than `above`, or `default` where it is absent."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"config.json: the rope parameters need {key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < math.inf:
            raise ValueError(f"config.json: rope parameter {key} is {value!r}, it must be a number above {above:g}")
        return float(value)

    def factor(self) -> float:
        factor = self.number("factor")
        if factor < 1:
            raise ValueError(f"config.json: rope parameter factor is {factor}, it must be at least 1")
        return factor

    def original_length(self) -> int:
        length = self.number("original_max_position_embeddings", float(self.max_position_embeddings), above=1.0)
        if length != int(length):
            raise ValueError(f"config.json: rope parameter original_max_position_embeddings is {length}, not an integer")
        return int(length)

    def per_dimension(self, key: str) -> tuple[float, ...]:
        value = self.values.get(key)
        wanted = self.head_dim // 2
        if not isinstance(value, list) or len(value) != wanted:
            raise ValueError(f"config.json: rope parameter {key} must be a list of {wanted} numbers")
        if not all(type(item) in (int, float) and 0 < item < math.inf for item in value):
            raise ValueError(f"config.json: rope parameter {key} must hold positive numbers only")
        return tuple(float(item) for item in value)


def _default(fields: _RopeFields) -> RopeConfig:
    length = fields.max_position_embeddings
    return RopeConfig("default", fields.theta, length, length)


def _linear(fields: _RopeFields) -> RopeConfig:
    length, factor = fields.max_position_embeddings, fields.factor()
    return RopeConfig("linear", fields.theta, length, int(length * factor), factor)


def _dynamic(fields: _RopeFields) -> RopeConfig:
    length, factor = fields.max_position_embeddings, fields.factor()
    if fields.head_dim < 4:
        raise ValueError(f"config.json: dynamic rope scaling needs a head_dim of at least 4, it is {fields.head_dim}")
    return RopeConfig("dynamic", fields.theta, length, int(length * factor), factor)


def _yarn(fields: _RopeFields) -> RopeConfig:
    original = fields.original_length()
    factor = fields.factor() if fields.values.get("factor") is not None else fields.max_position_embeddings / original
    mscale, mscale_all_dim = fields.values.get("mscale"), fields.values.get("mscale_all_dim")
    default = _yarn_scale(factor, 1.0)
    if mscale and mscale_all_dim:
        default = _yarn_scale(factor, fields.number("mscale")) / _yarn_scale(factor, fields.number("mscale_all_dim"))
    beta_fast, beta_slow = fields.values.get("beta_fast"), fields.values.get("beta_slow")
    return RopeConfig(
        "yarn",
        fields.theta,
        fields.max_position_embeddings,
        int(original * factor),
        factor,
        original_max_position_embeddings=original,
        attention_factor=fields.number("attention_factor", default),
        beta_fast=fields.number("beta_fast") if beta_fast else 32.0,
        beta_slow=fields.number("beta_slow") if beta_slow else 1.0,
        truncate=bool(fields.values.get("truncate", True)),
    )


def _yarn_scale(factor: float, mscale: float) -> float:
    """Section 3.4 of the YaRN paper (arXiv 2309.00071)."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(fields: _RopeFields) -> RopeConfig:
    low, high = fields.number("low_freq_factor"), fields.number("high_freq_factor")
    if high <= low:
        raise ValueError(f"config.json: rope parameter high_freq_factor {high} must be above low_freq_factor {low}")
    length = fields.max_position_embeddings
    return RopeConfig(
        "llama3",
        fields.theta,
        length,
        length,
        fields.factor(),
        original_max_position_embeddings=fields.original_length(),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _longrope(fields: _RopeFields) -> RopeConfig:
    length, original = fields.max_position_embeddings, fields.original_length()
    factor = fields.number("factor") if fields.values.get("factor") is not None else length / original
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeConfig(
        "longrope",
        fields.theta,
        length,
        length,
        factor,
        original_max_position_embeddings=original,
        attention_factor=fields.number("attention_factor", default),
        short_factor=fields.per_dimension("short_factor"),
        long_factor=fields.per_dimension("long_factor"),
    )


_PARSERS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
}
