"""What a checkpoint says about fp8: `quantization_config` of config.json, in one shape for its two dialects, and how tensors
with scales for the KV cache are called.

Must not import torch. Whatever cannot be served is a ValueError of one line.
"""

import re
from dataclasses import dataclass
from typing import Any

SUPPORTED = "supported are float32, bfloat16, float16, and fp8 with scales of tensors or channels"

# Behind the name of a layer's attention; which of them a checkpoint has depends on the tool that wrote it.
KEY_SCALES = ("k_scale", "k_proj.k_scale", "k_proj.output_scale")
VALUE_SCALES = ("v_scale", "v_proj.v_scale", "v_proj.output_scale")


@dataclass(frozen=True)
class KVScales:
    """What the numbers in an fp8 KV cache of one layer are multiplied by when they are read, and divided by when written."""

    key: float
    value: float


@dataclass(frozen=True)
class Fp8Config:
    """The linear layers of the decoder are float8_e4m3fn with scales, but for some."""

    ignored: tuple[str, ...]  # modules in full precision: names, or patterns behind "re:"
    has_input_scales: bool  # activations are divided by a number of the checkpoint; False: by one of each token

    def covers(self, name: str) -> bool:
        """Whether the layer of this name is in fp8."""
        return not any(_matches(entry, name) for entry in self.ignored)


def parse_fp8(content: object) -> Fp8Config:
    """content: `quantization_config` of config.json. ValueError for every other format."""
    if not isinstance(content, dict):
        raise _unsupported(repr(content))
    method = content.get("quant_method")
    if method == "fp8":
        return _parse_plain(content)
    if method == "compressed-tensors":
        return _parse_compressed_tensors(content)
    raise _unsupported(str(method))


def _parse_plain(content: dict[str, Any]) -> Fp8Config:
    if content.get("weight_block_size") is not None:
        raise _unsupported(f"fp8 with a scale for each block of {content['weight_block_size']} weights")
    number_format = content.get("fmt", "e4m3")
    if number_format not in ("e4m3", "float8_e4m3fn"):
        raise _unsupported(f"fp8 {number_format}")
    scheme = content.get("activation_scheme", "dynamic")
    if scheme not in ("static", "dynamic"):
        raise _unsupported(f"fp8 with activation_scheme {scheme!r}")
    ignored = content.get("ignored_layers") or content.get("modules_to_not_convert")
    return Fp8Config(_names(ignored), scheme == "static")


def _parse_compressed_tensors(content: dict[str, Any]) -> Fp8Config:
    groups = content.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _unsupported("compressed-tensors without or with several config_groups")
    (group,) = groups.values()
    if not isinstance(group, dict) or group.get("targets") != ["Linear"]:
        raise _unsupported("compressed-tensors of other targets than all linear layers")
    sparsity = content.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise _unsupported(f"compressed-tensors with sparsity {sparsity['format']}")
    weights = _eight_bit(group.get("weights"), "weights", ("tensor", "channel"))
    inputs = _eight_bit(group.get("input_activations"), "activations", ("tensor", "token"))
    is_dynamic = inputs.get("dynamic", False)
    if weights.get("dynamic", False) or (inputs.get("strategy") == "token" and is_dynamic is not True):
        raise _unsupported("compressed-tensors with static scales of tokens or dynamic ones of weights")
    return Fp8Config(_names(content.get("ignore")), is_dynamic is not True)


def _eight_bit(numbers: object, what: str, strategies: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(numbers, dict):
        raise _unsupported(f"compressed-tensors with {what} in full precision")
    kind = f"{numbers.get('num_bits')}-bit {numbers.get('type')} {what}"
    if numbers.get("num_bits") != 8 or numbers.get("type") != "float" or numbers.get("symmetric", True) is not True:
        raise _unsupported(f"compressed-tensors with {kind}")
    if numbers.get("strategy", "tensor") not in strategies:
        raise _unsupported(f"compressed-tensors with {kind} and a scale for each {numbers['strategy']}")
    return numbers


def _names(entries: object) -> tuple[str, ...]:
    entries = [] if entries is None else entries
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(f"config.json: the modules in full precision are {entries!r}, they must be a list of names")
    for entry in entries:
        if entry.startswith("re:"):
            try:
                re.compile(entry[3:])
            except re.error as error:
                raise ValueError(f"config.json: {entry!r} is no pattern of names: {error}") from error
    return tuple(entries)


def _matches(entry: str, name: str) -> bool:
    """An entry names a module with all within it, perhaps without what comes before it."""
    if entry.startswith("re:"):
        return re.match(entry[3:], name) is not None
    return f".{entry}." in f".{name}."


def _unsupported(what: str) -> ValueError:
    return ValueError(f"config.json: the checkpoint is quantized ({what}); {SUPPORTED}")
