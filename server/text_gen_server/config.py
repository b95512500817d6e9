"""What a model folder says about its architecture: `config.json`, checked and in one shape for all families.

Must not import torch: the same check runs before anything is loaded, so that a bad folder is refused at once.
Everything a user can get wrong is a ValueError of one line with the value and what is supported.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text_gen_server.checkpoint import header_bytes, read_json_object
from text_gen_server.fp8_config import Fp8Config, parse_fp8
from text_gen_server.rope_config import RopeConfig, parse_rope

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
TORCH_DTYPES = ("float32", "bfloat16", "float16")
# What a missing key means; where a family is not named, `None` stands for "as many as query heads" or "from the sizes".
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. All sizes are of the whole model, not of one rank."""

    architecture: str  # a key of ARCHITECTURES
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int  # in tokens, rope scaling included
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]  # per layer: how many tokens a token sees, itself included; None = all
    eos_token_ids: tuple[int, ...]  # of config.json and generation_config.json
    torch_dtype: str  # of the checkpoint, one of TORCH_DTYPES
    fp8: Fp8Config | None = None  # how its linear layers are kept, where that is fp8


def load_model_config(folder: Path, *, rope_scaling: str | None = None, rope_factor: float | None = None) -> ModelConfig:
    """Reads and checks `config.json` (and the end tokens of `generation_config.json`).

    `rope_scaling` ("linear" or "dynamic") with `rope_factor` (at least 1) replaces the rope scaling of the file; a factor
    alone means linear. ValueError for everything that cannot be served.
    """
    try:
        content = read_json_object(folder / "config.json")
        return _parse(_Fields(content, _architecture(content)), folder, _override(rope_scaling, rope_factor))
    except ValueError as error:
        raise ValueError(f"cannot serve the model: {error}") from error


def model_fingerprint(folder: Path) -> str:
    """sha256 in hex over config.json and the safetensors headers: equal on every rank and after a restart.

    Each part goes in with its name and its length, so that no two folders can run together. The data is not read.
    """
    digest = hashlib.sha256()
    for name, content in [("config.json", (folder / "config.json").read_bytes()), *header_bytes(folder)]:
        digest.update(f"{name}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


class _Fields:
    """Typed access to config.json; a missing key takes the family's default."""

    def __init__(self, content: dict[str, Any], architecture: str) -> None:
        self.content = {**DEFAULTS[architecture], **content}
        self.architecture = architecture

    def size(self, key: str, default: int | None = None) -> int:
        value = self.content.get(key)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"config.json: {key} is missing")
        if type(value) is not int or not 1 <= value < 2**31:
            raise ValueError(f"config.json: {key} is {value!r}, it must be a positive integer")
        return value

    def flag(self, key: str) -> bool:
        value = self.content.get(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"config.json: {key} is {value!r}, it must be true or false")
        return value


def _architecture(content: dict[str, Any]) -> str:
    supported = f"supported are {', '.join(ARCHITECTURES)}"
    model_type = content.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ValueError(f"config.json: model_type {model_type!r} is unknown; {supported}")
    classes = content.get("architectures") or [ARCHITECTURES[model_type]]
    if ARCHITECTURES[model_type] not in classes:
        raise ValueError(
            f"config.json: architectures {classes!r} of {model_type} cannot generate text; {supported} as causal LM"
        )
    if content.get("hidden_act", "silu") != "silu":
        raise ValueError(f"config.json: hidden_act is {content['hidden_act']!r}, supported is silu")
    return model_type


def _override(rope_scaling: str | None, rope_factor: float | None) -> dict[str, Any] | None:
    if rope_scaling is None and rope_factor is None:
        return None
    kind = rope_scaling or "linear"
    factor = 1.0 if rope_factor is None else rope_factor
    if kind not in ("linear", "dynamic"):
        raise ValueError(f"rope scaling is {kind!r}, supported are linear and dynamic")
    if not (math.isfinite(factor) and factor >= 1):
        raise ValueError(f"rope factor is {factor}, it must be at least 1")
    return {"rope_type": kind, "factor": factor}


def _parse(fields: _Fields, folder: Path, rope_override: dict[str, Any] | None) -> ModelConfig:
    architecture = fields.architecture
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads != 0:
        raise ValueError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of num_key_value_heads {num_kv_heads}"
        )
    if fields.content.get("head_dim") is None and hidden_size % num_heads != 0:
        raise ValueError(f"config.json: hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}")
    head_dim = fields.size("head_dim", hidden_size // num_heads)
    if head_dim % 2 != 0:
        raise ValueError(f"config.json: head_dim {head_dim} is odd; rotary embeddings need an even one")
    rope = parse_rope(fields.content, head_dim, fields.size("max_position_embeddings"), rope_override)
    num_layers = fields.size("num_hidden_layers")
    attention_bias = architecture in ("llama", "qwen3") and fields.flag("attention_bias")
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=fields.size("intermediate_size"),
        vocab_size=fields.size("vocab_size"),
        max_model_len=rope.max_model_len,
        rms_norm_eps=_epsilon(fields),
        rope=rope,
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=attention_bias or architecture == "qwen2",
        attention_output_bias=attention_bias,
        mlp_bias=architecture == "llama" and fields.flag("mlp_bias"),
        qk_norm=architecture == "qwen3",
        sliding_windows=_sliding_windows(fields, num_layers),
        eos_token_ids=_eos_token_ids(fields, folder),
        torch_dtype=_torch_dtype(fields),
        fp8=_fp8(fields),
    )


def _fp8(fields: _Fields) -> Fp8Config | None:
    content = fields.content.get("quantization_config") or fields.content.get("compression_config")
    return parse_fp8(content) if content else None


def _epsilon(fields: _Fields) -> float:
    value = fields.content.get("rms_norm_eps", 1e-6)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"config.json: rms_norm_eps is {value!r}, it must be a small number that is not negative")
    return float(value)


def _sliding_windows(fields: _Fields, num_layers: int) -> tuple[int | None, ...]:
    """Mistral slides in all layers; Qwen in those of `layer_types`, or from `max_window_layers` on, if it is switched on."""
    if fields.architecture == "llama" or fields.content.get("sliding_window") is None:
        window = None
    elif fields.architecture == "mistral" or fields.flag("use_sliding_window"):
        window = fields.size("sliding_window")
    else:
        window = None
    layer_types = fields.content.get("layer_types")
    if fields.architecture in ("llama", "mistral"):
        slides = [window is not None] * num_layers
    elif layer_types is not None:
        if not isinstance(layer_types, list) or len(layer_types) != num_layers:
            raise ValueError(f"config.json: layer_types must name the type of each of the {num_layers} layers")
        unknown = [name for name in layer_types if name not in ("full_attention", "sliding_attention")]
        if unknown:
            raise ValueError(f"config.json: layer_types has {unknown[0]!r}, supported are full_attention and sliding_attention")
        slides = [name == "sliding_attention" for name in layer_types]
        if any(slides) and window is None:
            raise ValueError("config.json: layer_types has sliding_attention, but sliding_window is off")
    else:
        first = 0 if fields.content["max_window_layers"] == 0 else fields.size("max_window_layers")
        slides = [window is not None and layer >= first for layer in range(num_layers)]
    return tuple(window if slide else None for slide in slides)


def _eos_token_ids(fields: _Fields, folder: Path) -> tuple[int, ...]:
    found: set[int] = set()
    sources = {"config.json": fields.content}
    if (folder / "generation_config.json").exists():
        sources["generation_config.json"] = read_json_object(folder / "generation_config.json")
    for file, content in sources.items():
        value = content.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise ValueError(f"{file}: eos_token_id is {value!r}, it must be a token id or a list of token ids")
        found.update(ids)
    return tuple(sorted(found))


def _torch_dtype(fields: _Fields) -> str:
    value = fields.content.get("dtype") or fields.content.get("torch_dtype") or "float32"
    if value not in TORCH_DTYPES:
        raise ValueError(f"config.json: dtype is {value!r}, supported are {', '.join(TORCH_DTYPES)}")
    return str(value)
