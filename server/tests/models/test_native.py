"""The native kernels compute what PyTorch computes in float32, on every instruction set that this processor has."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from text_gen_server import demo, native
from text_gen_server.attention.choose import choose_attention
from text_gen_server.config import ModelConfig
from text_gen_server.ops.choose import choose_ops
from tokenizers import Tokenizer
from torch import Tensor

from models.driver import CPU, Driver, Sequence, load
from models.test_equals_transformers import PROMPT, VARIANTS

BF16 = torch.bfloat16


def available_instruction_sets() -> list[str]:
    """Those of this processor, the best last. Leaves the best one chosen."""
    return [name for name in native.INSTRUCTION_SETS if native.choose_instruction_set(name)]


@pytest.fixture(params=available_instruction_sets())
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    best = native.instruction_set()
    assert native.choose_instruction_set(request.param)
    yield request.param
    assert native.choose_instruction_set(best)


def native_driver(folder: Path, quantize: str | None = None) -> Driver:
    return Driver(*load(folder, dtype=BF16, quantize=quantize), dtype=BF16)


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
    assert divergence(native_driver(folder).run(PROMPT, 9), expected) < 1e-3


def test_every_instruction_set_gives_the_distributions_of_float32(
    instruction_set: str, model_folder: Callable[..., Path]
) -> None:
    folder = model_folder("llama", dtype="bfloat16")
    expected = Driver(*load(folder)).run(PROMPT)
    found = divergence(native_driver(folder).run(PROMPT), expected)
    # Activations are rounded where bf16 is multiplied in hardware; keys and values are everywhere.
    assert found < (1e-3 if instruction_set == "avx512_bf16" else 1e-4)


def test_bf16_of_pytorch_is_further_from_float32(model_folder: Callable[..., Path]) -> None:
    folder = model_folder("llama", dtype="bfloat16")
    expected = Driver(*load(folder)).run(PROMPT)
    model = torch_bf16(folder)
    assert divergence(model, expected) > divergence(native_driver(folder).run(PROMPT), expected)


def torch_bf16(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits[0].float()


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_logits_have_the_same_bits_however_the_prompt_is_cut(chunk: int, model_folder: Callable[..., Path]) -> None:
    driver = native_driver(model_folder("qwen3", dtype="bfloat16"))
    assert torch.equal(driver.run(PROMPT, chunk), driver.run(PROMPT))


@pytest.mark.usefixtures("instruction_set")
def test_logits_have_the_same_bits_alone_and_among_others(model_folder: Callable[..., Path]) -> None:
    driver = native_driver(model_folder("llama", dtype="bfloat16"))
    alone = driver.run(PROMPT)
    sequences = [Sequence(PROMPT), Sequence(PROMPT[5:30]), Sequence(PROMPT[::-1])]
    driver.step([(sequence, 1) for sequence in sequences])
    driver.step([(sequences[1], 1), (sequences[0], 20), (sequences[2], 33)])
    driver.step([(sequences[2], 1), (sequences[0], 20)])
    assert torch.equal(torch.cat(sequences[0].logits), alone)


def test_native_attention_is_for_bf16_on_a_cpu(llama_config: ModelConfig) -> None:
    assert choose_attention("auto", device=CPU, dtype=BF16, config=llama_config).name == "native"
    with pytest.raises(ValueError, match="runs on a CPU in bfloat16 only"):
        choose_attention("native", device=CPU, dtype=torch.float32, config=llama_config)


def test_blocks_that_the_kernels_cannot_divide_are_refused(model_folder: Callable[..., Path]) -> None:
    driver = Driver(*load(model_folder("llama", dtype="bfloat16"), dtype=BF16), dtype=BF16, block_size=24)
    with pytest.raises(ValueError, match="needs a block size that 16 divides, not 24"):
        driver.run(PROMPT)


@pytest.mark.parametrize(("quantize", "bound"), [("int8", 0.01), ("int4", 1.0)])
@pytest.mark.parametrize("variant", ["llama", "llama tied", "llama attention and mlp bias", "qwen3"])
def test_quantized_weights_stay_near_float32(
    variant: str, quantize: str, bound: float, model_folder: Callable[..., Path]
) -> None:
    """Random weights are the worst case: nothing in them is redundant. Trained models are in docs/performance.md."""
    family, config = VARIANTS[variant]
    folder = model_folder(family, dtype="bfloat16", **config)
    expected = Driver(*load(folder)).run(PROMPT)
    assert divergence(native_driver(folder, quantize).run(PROMPT), expected) < bound


def test_fewer_bits_are_further_from_float32(model_folder: Callable[..., Path]) -> None:
    folder = model_folder("llama", dtype="bfloat16")
    expected = Driver(*load(folder)).run(PROMPT)
    distances = [divergence(native_driver(folder, quantize).run(PROMPT), expected) for quantize in (None, "int8", "int4")]
    assert distances == sorted(distances)


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantized_logits_have_the_same_bits_however_the_prompt_is_cut(
    quantize: str, model_folder: Callable[..., Path]
) -> None:
    driver = native_driver(model_folder("llama", dtype="bfloat16"), quantize)
    assert torch.equal(driver.run(PROMPT, 7), driver.run(PROMPT))


def test_quantized_weights_need_the_native_kernels() -> None:
    with pytest.raises(ValueError, match="quantize int8 works on CPUs in bfloat16 only"):
        choose_ops(dtype=torch.float32, device=CPU, num_threads=1, quantize="int8")


DEMO = Path(demo.__file__).parent / "demo_model"


@pytest.mark.parametrize(("quantize", "bound"), [(None, 1e-4), ("int8", 1e-2), ("int4", 0.2)])
def test_a_trained_model_keeps_its_distributions(quantize: str | None, bound: float) -> None:
    """On its own card: English, JSON and calls."""
    text = (DEMO / "README.md").read_text().split("## Greedy answers")[1]
    tokens = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids[:500]
    expected = Driver(*load(DEMO)).run(tokens)
    assert divergence(native_driver(DEMO, quantize).run(tokens), expected) < bound
