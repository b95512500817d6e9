"""The CPU kernels compute what PyTorch computes in float32, on every instruction set that this processor has."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from text_gen_server import native
from text_gen_server.attention.choose import choose_attention
from text_gen_server.config import ModelConfig
from torch import Tensor

from models.driver import CPU, Driver, Sequence, load
from models.test_equals_transformers import PROMPT, VARIANTS

BF16 = torch.bfloat16


@pytest.fixture(params=native.INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    best = native.instruction_set()
    if not native.choose_instruction_set(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    assert native.choose_instruction_set(best)


def kernel_driver(folder: Path) -> Driver:
    return Driver(*load(folder, dtype=BF16), dtype=BF16)


def divergence(logits: Tensor, expected: Tensor) -> float:
    """Mean Kullback-Leibler divergence from the expected distributions, in nats."""
    found, wanted = logits.log_softmax(-1), expected.log_softmax(-1)
    return float(torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_distributions_of_float32(variant: str, model_folder: Callable[..., Path]) -> None:
    family, config = VARIANTS[variant]
    folder = model_folder(family, dtype="bfloat16", **config)
    expected = Driver(*load(folder)).run(PROMPT)
    # Logits have a deviation of 4; PyTorch's own bf16 is about ten times further away.
    assert divergence(kernel_driver(folder).run(PROMPT, 9), expected) < 1e-3


def test_every_instruction_set_gives_the_distributions_of_float32(
    instruction_set: str, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder("llama", dtype="bfloat16")
    expected = Driver(*load(folder)).run(PROMPT)
    found = divergence(kernel_driver(folder).run(PROMPT), expected)
    # Activations are rounded where bf16 is multiplied in hardware; keys and values are everywhere.
    assert found < (1e-3 if instruction_set == "avx512_bf16" else 1e-4)


def test_bf16_of_pytorch_is_further_from_float32(model_folder: Callable[..., Path]) -> None:
    folder = model_folder("llama", dtype="bfloat16")
    expected = Driver(*load(folder)).run(PROMPT)
    model = torch_bf16(folder)
    assert divergence(model, expected) > divergence(kernel_driver(folder).run(PROMPT), expected)


def torch_bf16(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits[0].float()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_logits_have_the_same_bits_however_the_prompt_is_cut(chunk: int, model_folder: Callable[..., Path]) -> None:
    driver = kernel_driver(model_folder("qwen3", dtype="bfloat16"))
    assert torch.equal(driver.run(PROMPT, chunk), driver.run(PROMPT))


@pytest.mark.usefixtures("instruction_set")
def test_logits_have_the_same_bits_alone_and_among_others(model_folder: Callable[..., Path]) -> None:
    driver = kernel_driver(model_folder("llama", dtype="bfloat16"))
    alone = driver.run(PROMPT)
    sequences = [Sequence(PROMPT), Sequence(PROMPT[5:30]), Sequence(PROMPT[::-1])]
    driver.step([(sequence, 1) for sequence in sequences])
    driver.step([(sequences[1], 1), (sequences[0], 20), (sequences[2], 33)])
    driver.step([(sequences[2], 1), (sequences[0], 20)])
    assert torch.equal(torch.cat(sequences[0].logits), alone)


def test_kernels_are_for_bf16_on_a_cpu(llama_config: ModelConfig) -> None:
    assert choose_attention("auto", device=CPU, dtype=BF16, config=llama_config).name == "kernels"
    with pytest.raises(ValueError, match="runs on a CPU in bfloat16 only"):
        choose_attention("kernels", device=CPU, dtype=torch.float32, config=llama_config)
    with pytest.raises(ValueError, match="does not fit the CPU kernels"):
        choose_attention("cpu", device=CPU, dtype=BF16, config=llama_config)
