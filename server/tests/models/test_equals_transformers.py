"""Our models give the logits of `transformers`, for every variant of a configuration, whole and in chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from models.driver import Driver, Sequence, load

PROMPT = [(7 * i * i + 3 * i + 11) % 2048 for i in range(41)]

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [1.5 + i for i in range(8)],
    "original_max_position_embeddings": 24,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama attention and mlp bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("llama", {"head_dim": 40}),
    "llama one KV head": ("llama", {"num_key_value_heads": 1}),
    "llama no grouped heads": ("llama", {"num_key_value_heads": 4, "num_attention_heads": 4}),
    "llama other theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}),
    "yarn": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 10000.0}}),
    "yarn with options": (
        "qwen3",
        {
            "rope_parameters": {
                **YARN,
                "original_max_position_embeddings": 256,
                "rope_theta": 5000.0,
                "beta_fast": 16,
                "beta_slow": 2,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "truncate": False,
            }
        },
    ),
    "yarn with attention factor": ("llama", {"rope_parameters": {**YARN, "rope_theta": 10000.0, "attention_factor": 0.8}}),
    "llama3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 10000.0}}),
    "longrope, long": ("llama", {"rope_parameters": {**LONGROPE, "rope_theta": 10000.0}}),
    "longrope, short": (
        "llama",
        {"rope_parameters": {**LONGROPE, "rope_theta": 10000.0, "original_max_position_embeddings": 512}},
    ),
    "mistral sliding": ("mistral", {"sliding_window": 7}),
    "mistral not sliding": ("mistral", {"sliding_window": None}),
    "mistral tied": ("mistral", {"tie_word_embeddings": True, "sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 sliding from the second layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen2 sliding switched off": ("qwen2", {"use_sliding_window": False, "sliding_window": 9, "max_window_layers": 0}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied, biases": ("qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen3 layer types": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3 wide heads": ("qwen3", {"head_dim": 32, "num_key_value_heads": 4}),
}


@torch.inference_mode()
def expected_logits(folder: Path, tokens: list[int]) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("attention", ["cpu", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_prompt_equal_those_of_transformers(
    variant: str, attention: str, model_folder: Callable[..., Path]
) -> None:
    family, config = VARIANTS[variant]
    folder = model_folder(family, **config)
    logits = Driver(*load(folder, attention=attention)).run(PROMPT)
    torch.testing.assert_close(logits, expected_logits(folder, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("chunk", [1, 5, 16])
@pytest.mark.parametrize("variant", ["llama", "mistral sliding", "qwen2 sliding from the second layer", "qwen3 layer types"])
def test_chunks_give_the_logits_of_the_whole_prompt(
    variant: str, chunk: int, block_size: int, model_folder: Callable[..., Path]
) -> None:
    family, config = VARIANTS[variant]
    folder = model_folder(family, **config)
    logits = Driver(*load(folder), block_size=block_size).run(PROMPT, chunk)
    torch.testing.assert_close(logits, expected_logits(folder, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["llama", "llama tied", "mistral sliding", "qwen2", "qwen3"])
def test_greedy_tokens_equal_those_of_transformers(variant: str, model_folder: Callable[..., Path]) -> None:
    family, config = VARIANTS[variant]
    folder = model_folder(family, **config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = PROMPT[:9]
    generated = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=3)
    assert Driver(*load(folder)).greedy(prompt, 24) == generated[0, len(prompt) :].tolist()


@pytest.mark.parametrize("variant", ["llama", "mistral sliding", "qwen3"])
@pytest.mark.parametrize("attention", ["cpu", "reference"])
def test_rows_of_a_mixed_batch_are_computed_as_if_alone(
    attention: str, variant: str, model_folder: Callable[..., Path]
) -> None:
    family, config = VARIANTS[variant]
    folder = model_folder(family, **config)
    driver = Driver(*load(folder, attention=attention))
    prompts = [PROMPT[start : start + length] for start, length in ((0, 12), (3, 30), (9, 17), (5, 6))]
    first, second, third, fourth = (Sequence(prompt) for prompt in prompts)
    driver.step([(first, 11), (second, 7)])
    driver.step([(first, 1), (third, 16)])
    driver.step([(third, 1), (second, 10), (fourth, 5)])
    driver.step([(fourth, 1), (second, 13)])
    for sequence, prompt in zip((first, second, third, fourth), prompts, strict=True):
        expected = expected_logits(folder, prompt)
        torch.testing.assert_close(torch.cat(sequence.logits), expected, atol=1e-4, rtol=1e-4)


def test_decode_beyond_the_dynamic_length_equals_transformers_with_a_cache(model_folder: Callable[..., Path]) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    folder = model_folder("llama", rope_parameters=rope, max_position_embeddings=16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cache, expected = None, []
    with torch.inference_mode():
        for token in PROMPT:
            output = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            expected.append(output.logits[0])
    for chunk in (None, 7):
        logits = Driver(*load(folder)).run(PROMPT, chunk)
        torch.testing.assert_close(logits, torch.cat(expected), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_rope_flags_replace_the_scaling_of_the_file(kind: str, model_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = model_folder("llama", rope_parameters={**LLAMA3, "rope_theta": 700.0})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.rope_parameters = {"rope_type": kind, "factor": 2.0, "rope_theta": 700.0}
    model.save_pretrained(tmp_path)
    logits = Driver(*load(folder, rope_scaling=kind, rope_factor=2.0)).run(PROMPT)
    torch.testing.assert_close(logits, expected_logits(tmp_path, PROMPT), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_bfloat16_stays_close_to_float32(family: str, model_folder: Callable[..., Path]) -> None:
    folder = model_folder(family, dtype="bfloat16")
    model, config = load(folder, dtype=torch.bfloat16)
    assert config.torch_dtype == "bfloat16"
    logits = Driver(model, config, dtype=torch.bfloat16).run(PROMPT, 16)
    expected = expected_logits(folder, PROMPT)
    assert logits.dtype == torch.float32
    # The logits have a deviation of 4, and bfloat16 has 8 bits.
    assert (logits - expected).abs().mean() < 0.1
    assert (logits - expected).abs().max() < 0.8


def test_a_checkpoint_in_several_files_is_read_as_one(model_folder: Callable[..., Path]) -> None:
    folder = model_folder("llama", max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    torch.testing.assert_close(Driver(*load(folder)).run(PROMPT), expected_logits(folder, PROMPT), atol=1e-4, rtol=1e-4)
