"""Steps replayed from a recording have the bits of the same steps computed call by call."""

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from text_gen_server import native
from text_gen_server.config import ModelConfig
from text_gen_server.layers.rotary import RotaryEmbedding
from text_gen_server.memory import activation_bound_bytes
from text_gen_server.models.causal_lm import CausalLM
from text_gen_server.native.kernels import kernels
from text_gen_server.native.recording import Arena, Recording
from text_gen_server.recorded import RecordedModel
from torch import Tensor

from models.driver import CPU, Driver, Sequence, load
from models.test_equals_transformers import PROMPT, VARIANTS

BF16 = torch.bfloat16
MAX_STEP_TOKENS = 50


def loaded(folder: Path, **options: Any) -> tuple[CausalLM, ModelConfig]:
    return load(folder, dtype=BF16, **options)


def direct(model: CausalLM, config: ModelConfig) -> Driver:
    return Driver(model, config, dtype=BF16)


def recorded(model: CausalLM, config: ModelConfig, max_step_tokens: int = MAX_STEP_TOKENS) -> Driver:
    driver = direct(model, config)
    bound = activation_bound_bytes(config, num_tokens=max_step_tokens, num_rows=0, dtype=torch.float32)
    driver.model = RecordedModel(model, kv_cache=driver.cache, max_step_tokens=max_step_tokens, activation_bytes=bound)
    return driver


def run_mixed_steps(driver: Driver) -> list[Tensor]:
    """Steps of prefill, decode and both, from one token to the most there may be. -> logits of each sequence"""
    chance = random.Random(3)
    sequences = [Sequence([chance.randrange(300) for _ in range(length)]) for length in (57, 20, 33, 60)]
    driver.step([(sequences[0], MAX_STEP_TOKENS)])
    driver.step([(sequences[0], 1)])
    driver.step([(sequences[0], 1), (sequences[1], 19)])
    driver.step([(sequences[1], 1), (sequences[0], 1), (sequences[2], 30), (sequences[3], 18)])
    driver.step([(sequences[0], 1), (sequences[3], 39)])
    for _ in range(3):
        driver.step([(sequences[0], 1), (sequences[2], 1), (sequences[3], 1)])
    return [torch.cat(sequence.logits) for sequence in sequences]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_computes_the_same_from_a_recording(variant: str, model_folder: Callable[..., Path]) -> None:
    family, config = VARIANTS[variant]
    model = loaded(model_folder(family, dtype="bfloat16", **config))
    assert_equal(run_mixed_steps(recorded(*model)), run_mixed_steps(direct(*model)))


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_quantized_weights_compute_the_same_from_a_recording(
    family: str, quantize: str, model_folder: Callable[..., Path]
) -> None:
    model = loaded(model_folder(family, dtype="bfloat16"), quantize=quantize)
    assert_equal(run_mixed_steps(recorded(*model)), run_mixed_steps(direct(*model)))


def test_dynamic_positions_compute_the_same_from_a_recording(model_folder: Callable[..., Path]) -> None:
    folder = model_folder("llama", dtype="bfloat16", max_position_embeddings=32)
    model = loaded(folder, rope_scaling="dynamic", rope_factor=4.0)
    assert_equal(run_mixed_steps(recorded(*model)), run_mixed_steps(direct(*model)))


def test_each_kv_cache_has_a_recording_of_its_own(model_folder: Callable[..., Path]) -> None:
    model = loaded(model_folder("llama", dtype="bfloat16"))
    expected = direct(*model).run(PROMPT)
    first, second = recorded(*model), recorded(*model, 7)
    sequence = first.compute(PROMPT[:20])
    assert torch.equal(second.run(PROMPT, 7), expected)
    assert torch.equal(torch.cat(sequence.logits), expected[:20])
    assert torch.equal(first.run(PROMPT), expected)


def test_a_model_with_a_recording_can_be_called_directly_as_well(model_folder: Callable[..., Path]) -> None:
    model = loaded(model_folder("qwen3", dtype="bfloat16"))
    expected = direct(*model).run(PROMPT)
    replaying = recorded(*model)
    assert torch.equal(replaying.run(PROMPT), expected)
    assert torch.equal(direct(*model).run(PROMPT, 9), expected)
    assert torch.equal(replaying.run(PROMPT, 3), expected)


def test_recording_computes_nothing(model_folder: Callable[..., Path]) -> None:
    driver = recorded(*loaded(model_folder("llama", dtype="bfloat16")))
    assert isinstance(driver.model, RecordedModel)
    with torch.inference_mode():
        driver.model._record()
    assert all(layer.isnan().all() for layer in driver.cache.keys)


def test_a_step_above_the_largest_is_refused_and_the_next_is_right(model_folder: Callable[..., Path]) -> None:
    model = loaded(model_folder("llama", dtype="bfloat16"))
    driver = recorded(*model)
    expected = direct(*model).run(PROMPT)
    with pytest.raises(AssertionError, match="fits the activations"):
        driver.step([(Sequence([1] * (MAX_STEP_TOKENS + 1)), MAX_STEP_TOKENS + 1)])
    assert torch.equal(driver.run(PROMPT), expected)


@pytest.mark.parametrize(
    "broken",
    [lambda hidden: hidden + 1, lambda hidden: hidden.mul_(2), lambda hidden: hidden.transpose(0, 1).reshape(-1)],
    ids=["new tensor", "in place", "copy"],
)
def test_what_cannot_be_recorded_is_refused(
    broken: Callable[[Tensor], Tensor], model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = loaded(model_folder("llama", dtype="bfloat16"))
    expected = direct(model, config).run(PROMPT)
    driver = recorded(model, config)
    embed = model.embed  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(model, "embed", lambda token_ids: broken(embed(token_ids)))
        with pytest.raises(AssertionError, match="cannot be recorded"):
            driver.run(PROMPT)
    assert kernels().recording is None
    assert torch.equal(driver.run(PROMPT), expected)


def test_activations_stay_below_their_bound(model_folder: Callable[..., Path]) -> None:
    """Below it by far: what is no longer needed is written over."""
    model, config = loaded(model_folder("llama", dtype="bfloat16", num_hidden_layers=12))
    driver = recorded(model, config, 512)
    driver.run(PROMPT)
    assert isinstance(driver.model, RecordedModel)
    assert driver.model.recorded is not None
    recording, _ = driver.model.recorded
    per_token = 4 * config.hidden_size + (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    per_token += max(config.num_heads * config.head_dim, config.intermediate_size) + 2 * config.head_dim
    assert recording.arena.used_bytes <= 4 * 512 * per_token


def test_the_bound_of_the_activations_is_kept_to() -> None:
    recording = Recording(4, arena_bytes=4 * 4 * 16)
    with kernels().record(recording):
        held = kernels().empty(4, 16)
        with pytest.raises(AssertionError, match="do not fit"):
            kernels().empty(4, 1)
        del held
        kernels().empty(4, 16)


def test_only_calls_over_all_tokens_are_recorded() -> None:
    recording = Recording(4, arena_bytes=1024)
    with kernels().record(recording), pytest.raises(AssertionError, match="all tokens"):
        kernels().normalize(native.Normalize(num_rows=3))


def test_memory_of_a_tensor_is_used_again_when_its_last_view_is_gone() -> None:
    arena = Arena(1024)
    tensor = arena.empty((2, 16))
    address = tensor.data_ptr()
    view = tensor.view(4, 8)[1:, 2:]
    del tensor
    assert arena.empty((1, 1)).data_ptr() != address
    del view
    assert arena.empty((2, 16)).data_ptr() == address


def test_tensors_of_an_arena_never_overlap() -> None:
    arena = Arena(64 * 100)
    chance = random.Random(0)
    held: list[Tensor] = []
    for _ in range(2000):
        if len(held) == 8 or (held and chance.random() < 0.5):
            del held[chance.randrange(len(held))]
        held.append(arena.empty((chance.randint(1, 90),)))
        assert held[-1].data_ptr() % 64 == 0
        spans = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in held)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    held.clear()
    assert arena.free == [(0, 64 * 100)]


def test_cos_and_sin_of_a_table_have_the_bits_of_those_computed_alone(model_folder: Callable[..., Path]) -> None:
    model, config = loaded(model_folder("llama", dtype="bfloat16", max_position_embeddings=5000))
    alone = RotaryEmbedding(config.rope, config.head_dim, CPU)
    for positions in ([3], [4999, 0, 1024], [2047, 2048, 70], list(range(1000, 1100))):
        tensor = torch.tensor(positions)
        found = model.rotation(tensor)  # type: ignore[attr-defined]
        assert_equal(list(found), list(alone.cos_sin(tensor, torch.float32)))


def test_a_recording_rotates_positions_that_no_step_had_before(
    model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder("llama", dtype="bfloat16")
    held = loaded(folder)  # or its tables, which are right, could be the memory of the next ones
    expected = run_mixed_steps(direct(*held))
    monkeypatch.setattr("text_gen_server.ops.native.POSITIONS_AT_ONCE", 1)
    assert_equal(run_mixed_steps(recorded(*loaded(folder))), expected)
