"""A model folder is understood in all its spellings, or refused with one line that says why."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from text_gen_server.config import load_model_config, model_fingerprint
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.layers.rotary import RotaryEmbedding
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from models.driver import CPU

BASE = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}


def write_config(folder: Path, **changes: Any) -> Path:
    content = {key: value for key, value in {**BASE, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is unknown; supported are llama, mistral, qwen2, qwen3"),
    ({"model_type": "absent"}, "model_type None is unknown"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "cannot generate text"),
    ({"hidden_size": "absent"}, "hidden_size is missing"),
    ({"hidden_size": "64"}, "hidden_size is '64', it must be a positive integer"),
    ({"hidden_size": True}, "hidden_size is True"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4"),
    ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ({"head_dim": 15}, "head_dim 15 is odd"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', supported is silu"),
    ({"quantization_config": {"quant_method": "gptq"}}, r"quantized \(gptq\); supported are float32, bfloat16, float16"),
    ({"torch_dtype": "float8"}, "dtype is 'float8', supported are float32, bfloat16, float16"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, it must be true or false"),
    ({"eos_token_id": -1}, "eos_token_id is -1"),
    ({"rope_scaling": {"type": "magic"}}, "rope type 'magic' is unknown; supported are default, linear, dynamic, yarn"),
    ({"rope_scaling": {"type": "linear"}}, "the rope parameters need factor"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5, it must be at least 1"),
    ({"rope_scaling": "linear"}, "must be objects"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type are not supported"),
    ({"rope_theta": float("nan")}, "rope_theta is nan"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, supported is 1"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor must be a list of 8"),
    (
        {"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4}},
        "high_freq_factor 4.0 must be above low_freq_factor 4.0",
    ),
    ({"model_type": "qwen2", "architectures": "absent", "layer_types": ["full_attention"]}, "each of the 2 layers"),
    (
        {"model_type": "qwen3", "architectures": "absent", "layer_types": ["full_attention", "linear_attention"]},
        "layer_types has 'linear_attention'",
    ),
    (
        {"model_type": "qwen3", "architectures": "absent", "layer_types": ["full_attention", "sliding_attention"]},
        "sliding_window is off",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_served_is_refused_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_model_config(write_config(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "config.json: the file is missing"), ("{", "is not valid JSON"), ("[1]", "not a JSON object")],
)
def test_a_missing_or_corrupt_config_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_model_config(tmp_path)


@pytest.mark.parametrize(
    ("scaling", "factor", "message"),
    [
        ("yarn", 2.0, "'yarn', supported are linear and dynamic"),
        ("linear", 0.5, "at least 1"),
        (None, float("nan"), "at least 1"),
    ],
)
def test_rope_flags_out_of_range_are_refused(scaling: str | None, factor: float, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_model_config(write_config(tmp_path), rope_scaling=scaling, rope_factor=factor)


def test_a_rope_factor_alone_scales_linearly_and_extends_the_model(tmp_path: Path) -> None:
    config = load_model_config(write_config(tmp_path, rope_theta=500.0), rope_factor=2.5)
    assert (config.rope.kind, config.rope.factor, config.rope.theta) == ("linear", 2.5, 500.0)
    assert config.max_model_len == 320


def test_qwen_slides_from_max_window_layers_on(tmp_path: Path) -> None:
    changes = {"model_type": "qwen2", "architectures": "absent", "num_hidden_layers": 3, "sliding_window": 9}
    for first, windows in ((0, (9, 9, 9)), (1, (None, 9, 9)), (3, (None, None, None))):
        folder = write_config(tmp_path, **changes, use_sliding_window=True, max_window_layers=first)
        assert load_model_config(folder).sliding_windows == windows
    folder = write_config(tmp_path, **changes, use_sliding_window=False, max_window_layers=0)
    assert load_model_config(folder).sliding_windows == (None, None, None)


def test_rope_scaling_comes_before_rope_parameters(tmp_path: Path) -> None:
    rope = {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    folder = write_config(tmp_path, **rope)
    assert load_model_config(folder).rope.kind == AutoConfig.from_pretrained(folder).rope_parameters["rope_type"] == "linear"


def test_end_tokens_come_from_both_files(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert load_model_config(write_config(tmp_path, eos_token_id=5)).eos_token_ids == (2, 5, 7)


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 64,
            },
            128,
        ),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 8,
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": 64,
            },
            128,
        ),
    ],
)
@pytest.mark.parametrize("spelling", ["rope_scaling", "type", "rope_parameters"])
def test_both_spellings_of_rope_give_the_frequencies_of_transformers(
    spelling: str, rope: dict[str, Any], length: int, tmp_path: Path
) -> None:
    if spelling == "rope_parameters":
        folder = write_config(tmp_path, rope_parameters={**rope, "rope_theta": 800.0})
    else:
        named = {("type" if spelling == "type" and key == "rope_type" else key): value for key, value in rope.items()}
        folder = write_config(tmp_path, rope_scaling=named, rope_theta=800.0)
    config = load_model_config(folder)
    assert config.max_model_len == length
    theirs = AutoConfig.from_pretrained(folder)
    frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, CPU, seq_len=100)
    angle = 90 * frequencies
    cos, sin = RotaryEmbedding(config.rope, config.head_dim, CPU).cos_sin(torch.tensor([90]), torch.float32)
    torch.testing.assert_close(cos[0, 0, :8], angle.cos() * scale, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(sin[0, 0, 8:], angle.sin() * scale, atol=1e-5, rtol=1e-5)


def test_a_missing_key_means_what_it_means_in_transformers(tmp_path: Path) -> None:
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        optional = dict.fromkeys(("num_key_value_heads", "max_position_embeddings", "architectures", "eos_token_id"), "absent")
        folder = write_config(tmp_path, **optional, model_type=family, num_attention_heads=32)
        ours, theirs = load_model_config(folder), AutoConfig.from_pretrained(folder)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.head_dim == getattr(theirs, "head_dim", 2)
        assert ours.max_model_len == theirs.max_position_embeddings
        assert ours.rms_norm_eps == theirs.rms_norm_eps
        assert ours.tie_word_embeddings == theirs.tie_word_embeddings
        assert ours.sliding_windows == (getattr(theirs, "sliding_window", None),) * 2


def test_the_check_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from text_gen_server.config import load_model_config, model_fingerprint;"
        f"load_model_config(pathlib.Path({str(write_config(tmp_path))!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})


def test_the_fingerprint_changes_with_config_and_headers_only(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    source = model_folder("llama")
    config, weights = ((source / name).read_bytes() for name in ("config.json", "model.safetensors"))
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(weights)
    fingerprint = model_fingerprint(source)
    assert model_fingerprint(tmp_path) == fingerprint
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert model_fingerprint(tmp_path) == fingerprint
    (tmp_path / "config.json").write_bytes(config + b"\n")
    assert model_fingerprint(tmp_path) != fingerprint
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "model.safetensors").write_bytes(weights.replace(b"F32", b"I32", 1))
    assert model_fingerprint(tmp_path) != fingerprint


def test_bytes_per_token_are_what_the_cache_takes(llama_config: Any) -> None:
    parallel = TensorParallel.single()
    cache = KVCache.allocate(
        config=llama_config, tensor_parallel=parallel, num_blocks=3, block_size=4, dtype=torch.bfloat16, device=CPU
    )
    taken = sum(layer.numel() * layer.element_size() for layer in (*cache.keys, *cache.values))
    assert KVCache.bytes_per_token(llama_config, parallel, torch.bfloat16) * 12 == taken
