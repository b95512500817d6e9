"""A KV cache in fp8 holds what was written, in half the memory, and is refused where nothing can read it."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.driver import CPU, Driver, load
from safetensors.torch import load_file, save_file
from text_gen_server.attention import choose
from text_gen_server.attention.choose import choose_attention
from text_gen_server.config import load_model_config
from text_gen_server.distributed import TensorParallel
from text_gen_server.fp8_config import KVScales
from text_gen_server.kv_cache import KVCache
from text_gen_server.ops.interface import StepPositions
from text_gen_server.ops.pytorch import PyTorchOps
from text_gen_server.ops.triton import TritonOps
from text_gen_server.shard import Shard, ShardOptions
from text_gen_server.weights import read_kv_scales
from tiny_models import write_model
from torch import Tensor

F32 = torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PROMPT = [(7 * i * i + 3 * i + 11) % 500 for i in range(19)]
SMALL = {"vocab_size": 500, "num_hidden_layers": 2}
UNSCALED = KVScales(1.0, 1.0)


def logits_of(folder: Path, kv_dtype: torch.dtype, scales: KVScales = UNSCALED) -> Tensor:
    is_fp8 = kv_dtype.itemsize == 1
    model, config = load(
        folder, attention="triton" if is_fp8 else "reference", ops=TritonOps(F32) if is_fp8 else PyTorchOps(F32)
    )
    driver = Driver(model, config, dtype=kv_dtype)
    if is_fp8:
        driver.cache = replace(driver.cache, scales=(scales,) * config.num_layers)
    return driver.run(PROMPT, 11)


def divergence(logits: Tensor, expected: Tensor) -> float:
    """Mean Kullback-Leibler divergence from the expected distributions, in nats."""
    found, wanted = logits.log_softmax(-1), expected.log_softmax(-1)
    return float(torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean"))


# The interpreter rounds some numbers to half of themselves, so that the bounds are wider than on a GPU.
@pytest.mark.parametrize(("kv_dtype", "bound"), [(E4M3, 0.2), (E5M2, 0.5)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_stays_near_float32(family: str, kv_dtype: torch.dtype, bound: float, tmp_path: Path) -> None:
    folder = write_model(tmp_path, family, **SMALL)
    expected = logits_of(folder, F32)
    assert 1e-5 < divergence(logits_of(folder, kv_dtype), expected) < bound


def test_what_is_divided_by_a_scale_is_multiplied_by_it(tmp_path: Path) -> None:
    """A power of four changes no digit, nor what the interpreter loses; in one layer nothing adds up."""
    folder = write_model(tmp_path, "qwen2", vocab_size=500, num_hidden_layers=1)
    scaled = logits_of(folder, E5M2, KVScales(0.25, 4.0))
    torch.testing.assert_close(scaled, logits_of(folder, E5M2), atol=1e-4, rtol=0)


def written_values(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What three value slots of one head hold after the second has been written. values: [D]"""
    slots = (torch.zeros(3, 1, len(values)).to(dtype), torch.zeros(3, 1, len(values)).to(dtype))
    step = StepPositions(torch.ones(1, 1, len(values)), torch.zeros(1, 1, len(values)), torch.tensor([1]))
    TritonOps(F32).rotate_and_write_fp8(values.expand(1, 3, -1).clone(), step, slots, UNSCALED, None)
    if values.isfinite().all():
        assert torch.equal(slots[0].view(torch.uint8), slots[1].view(torch.uint8)), "without an angle keys are like values"
    return slots[1].float().squeeze(1)


@pytest.mark.parametrize(("dtype", "largest"), [(E4M3, 448.0), (E5M2, 57344.0)])
def test_large_numbers_are_cut(dtype: torch.dtype, largest: float) -> None:
    written = written_values(torch.tensor([1e6, -1e6, 2.0, 0.0]), dtype)
    assert written.tolist() == [[0.0] * 4, [largest, -largest, 2.0, 0.0], [0.0] * 4]


def test_nan_stays() -> None:
    """In the interpreter only where the format is like that of larger numbers."""
    assert written_values(torch.tensor([1.0, float("nan"), 2.0, 4.0]), E5M2)[1].isnan().tolist() == [False, True, False, False]


def test_it_takes_half_the_memory_and_can_be_cleared(tmp_path: Path) -> None:
    config = load_model_config(write_model(tmp_path, "llama", **SMALL))
    single = TensorParallel.single()
    assert 2 * KVCache.bytes_per_token(config, single, E4M3) == KVCache.bytes_per_token(config, single, torch.bfloat16)
    cache = KVCache.allocate(config=config, tensor_parallel=single, num_blocks=3, block_size=4, dtype=E4M3, device=CPU)
    for layer in (*cache.keys, *cache.values):
        layer.fill_(3.0)
    cache.clear_blocks(torch.tensor([1]))
    for layer in (*cache.keys, *cache.values):
        assert layer.float().mean((1, 2, 3)).tolist() == [3.0, 0.0, 3.0]


def with_tensors(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = write_model(folder, "llama", **SMALL) / "model.safetensors"
    save_file({**load_file(path), **tensors}, path)
    return folder


def test_scales_come_from_the_checkpoint_and_are_one_elsewhere(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.self_attn.k_scale": torch.tensor([0.25]),
        "model.layers.0.self_attn.v_scale": torch.tensor(0.5, dtype=torch.bfloat16),
        "model.layers.1.self_attn.k_proj.output_scale": torch.tensor([3.0]),
    }
    folder = with_tensors(tmp_path, tensors)
    assert read_kv_scales(folder, 2) == (KVScales(0.25, 0.5), KVScales(3.0, 1.0))
    assert logits_of(folder, F32).isfinite().all(), "who does not want them is not disturbed"


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.tensor([0.0]), "k_scale is 0.0, a scale is above 0"),
        (torch.tensor([float("nan")]), "k_scale is nan"),
        (torch.ones(2), r"k_scale has dtype F32 and shape \[2\], a scale is one number"),
        (torch.ones(1, dtype=torch.int32), "k_scale has dtype I32"),
    ],
)
def test_what_is_no_scale_is_refused(scale: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_kv_scales(with_tensors(tmp_path, {"model.layers.1.self_attn.k_scale": scale}), 2)


@pytest.mark.parametrize("name", ["reference", "cpu", "native", "flash-attn", "torch-varlen", "auto"])
def test_attention_that_cannot_read_it_is_refused(name: str, tmp_path: Path) -> None:
    config = load_model_config(write_model(tmp_path, "llama", **SMALL))
    with pytest.raises(ValueError, match="cannot read a KV cache in float8_e5m2; on a GPU auto and triton can"):
        choose_attention(name, device=CPU, dtype=E5M2, config=config)


@pytest.mark.parametrize(
    ("capability", "dtype", "is_served"),
    [((8, 0), E4M3, False), ((8, 0), E5M2, True), ((8, 9), E4M3, True), ((9, 0), E4M3, True), ((7, 5), E5M2, False)],
)
def test_a_gpu_reads_it_with_triton_where_it_can(
    capability: tuple[int, int], dtype: torch.dtype, is_served: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_model_config(write_model(tmp_path, "llama", **SMALL))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(choose, "_num_processors", lambda _: 132)
    refusal = pytest.raises(ValueError, match=r"needs a GPU of compute capability 8\.[09] or newer")
    with nullcontext() if is_served else refusal:
        assert choose_attention("auto", device=torch.device("cuda"), dtype=dtype, config=config).name == "triton"


def test_a_cpu_refuses_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "llama", **SMALL)
    with pytest.raises(ValueError, match="kv-cache-dtype fp8_e4m3fn works on GPUs only; remove it"):
        Shard(ShardOptions(model_dir=folder, device="cpu", kv_cache_dtype="fp8_e4m3fn"), load_model_config(folder))
