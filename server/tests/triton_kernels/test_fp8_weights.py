"""Weights in fp8, rounded when they are loaded or by whoever wrote the checkpoint, mean what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from models.driver import CPU, Driver, load
from models.test_file_copies import Direct
from text_gen_server import file_copies
from text_gen_server.config import load_model_config
from text_gen_server.distributed import TensorParallel
from text_gen_server.file_copies import RoundedRows, copy_in_threads
from text_gen_server.layers.placement import Placement
from text_gen_server.layers.weight import FullWeight, make_weight
from text_gen_server.models import loader
from text_gen_server.ops import choose
from text_gen_server.ops.choose import choose_ops
from text_gen_server.ops.fp8 import Fp8Linear, Fp8Rows, PlainFp8Math, ScaledMatrixMath, fits
from text_gen_server.ops.interface import Fp8Weight
from text_gen_server.ops.pytorch import PyTorchOps
from text_gen_server.ops.triton import TritonOps
from text_gen_server.triton_kernels import norm, plain
from text_gen_server.triton_kernels.activation import silu_mul, silu_mul_fp8
from text_gen_server.triton_kernels.quantize import quantize_rows
from tiny_models import write_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from triton_kernels.fp8_models import INPUT_SCALE, compressed_tensors, write_fp8_model, write_meant_model

F32 = torch.float32
PROMPT = [(7 * i * i + 3 * i + 11) % 500 for i in range(19)]
FORMATS: dict[str, dict[str, Any]] = {
    "tensors, dynamic": {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]},
    "tensors, static": {"quant_method": "fp8", "activation_scheme": "static", "modules_to_not_convert": ["lm_head"]},
    "channels, dynamic": compressed_tensors("channel", is_dynamic=True),
    "tensors, static, compressed": compressed_tensors("tensor", is_dynamic=False),
}
SMALL = {"vocab_size": 500, "num_hidden_layers": 2}


class ExactMath(PlainFp8Math):
    """Multiplies by the weights as they are and rounds no activation: what is left is what the weights stand for."""

    def __init__(self) -> None:
        super().__init__(F32)
        self.input_scales: list[float | None] = []

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        self.input_scales.append(None if scale is None else scale.item())
        return rows, torch.ones(len(rows), 1)


def rounded(weight: Tensor) -> Fp8Weight:
    return Fp8Weight(*fp8_ops(rounds=True).round_rows(weight), None)


def fp8_ops(*, rounds: bool = False) -> TritonOps:
    return TritonOps(F32, fp8_math=PlainFp8Math(F32), rounds_to_fp8=rounds)


def logits_of(folder: Path, ops: TritonOps | PyTorchOps, parallel: TensorParallel | None = None) -> Tensor | None:
    model, config = load(folder, attention="reference", ops=ops, tensor_parallel=parallel)
    logits = Driver(model, config, tensor_parallel=parallel).compute(PROMPT, 11).logits
    return torch.cat(logits) if logits else None


def divergence(logits: Tensor | None, expected: Tensor | None) -> float:
    """Mean Kullback-Leibler divergence from the expected distributions, in nats."""
    assert logits is not None
    assert expected is not None
    found, wanted = logits.log_softmax(-1), expected.log_softmax(-1)
    return float(torch.nn.functional.kl_div(found, wanted, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("given", [None, 0.02])
@pytest.mark.parametrize("size", [16, 100, 4096])
def test_rounding_equals_the_plain_form(size: int, given: float | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, size).to(dtype) * torch.tensor([[1.0], [100.0], [1e-3], [0.0]], dtype=dtype)
    scale = None if given is None else torch.tensor(given)
    (values, scales), (expected, expected_scales) = quantize_rows(rows, scale), plain.quantize_rows(rows, scale)
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=0)
    found, wanted = values.float() * scales, expected.float() * scales
    # The interpreter loses the carry where rounding leads up to the next power of two: such numbers are half of themselves.
    is_far = (found - wanted).abs() > 0.13 * wanted.abs() + scales / 512
    assert is_far.float().mean() < 0.03
    assert values.float().isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("given", [None, 0.02])
@pytest.mark.parametrize("function", [quantize_rows, plain.quantize_rows])
def test_a_row_that_is_not_finite_stays_so_and_leaves_the_others(function: Any, given: float | None) -> None:
    rows = torch.ones(4, 32)
    rows[1, 3], rows[2, 30] = float("nan"), -float("inf")
    values, scales = function(rows, None if given is None else torch.tensor(given))
    product = PlainFp8Math(F32).multiply(
        Fp8Rows(values, scales), Fp8Weight(torch.ones(16, 32).to(values.dtype), torch.ones(16), None), None
    )
    assert product.isfinite().all(1).tolist() == [True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [None, 0.02])
@pytest.mark.parametrize(("num_tokens", "size"), [(0, 64), (1, 16), (5, 100), (3, 4096)])
def test_a_kernel_that_rounds_what_it_writes_gives_what_two_give(
    num_tokens: int, size: int, given: float | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    scale = None if given is None else torch.tensor(given)
    wide = (torch.randn(num_tokens, 2 * size + 8) * 3).to(dtype)
    hidden, gate_up = wide[:, :size], wide[:, : 2 * size]
    residual, weight = (torch.randn(num_tokens, size)).to(dtype), torch.randn(size).to(dtype)
    own = residual.clone()
    found = norm.add_rms_norm_fp8(hidden, own, weight, 1e-5, scale)
    assert_same_rows(found, quantize_rows(norm.add_rms_norm(hidden, residual, weight, 1e-5), scale))
    assert torch.equal(own, residual), "the sum is the residual of the next layer"
    before = wide.clone()
    found = norm.add_rms_norm_fp8(hidden, None, weight, 1e-5, scale)
    assert_same_rows(found, quantize_rows(norm.rms_norm(hidden, weight, 1e-5), scale))
    assert_same_rows(silu_mul_fp8(gate_up, scale), quantize_rows(silu_mul(gate_up), scale))
    assert torch.equal(wide, before)


def assert_same_rows(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(found[0].view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(found[1], expected[1])


@pytest.mark.filterwarnings("ignore:invalid value encountered", "ignore:All-NaN slice")
def test_a_row_that_is_not_finite_is_told_by_the_kernels_that_round_what_they_write() -> None:
    hidden = torch.ones(4, 32)
    hidden[1, 3], hidden[2, 7] = float("nan"), float("inf")
    for _, scales in (norm.add_rms_norm_fp8(hidden, None, torch.ones(32), 1e-5, None), silu_mul_fp8(hidden, None)):
        assert scales.isfinite().flatten().tolist() == [True, False, False, True]


class CountingMath(PlainFp8Math):
    """Notes who rounds."""

    def __init__(self) -> None:
        super().__init__(F32)
        self.calls: list[str] = []

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        self.calls.append("alone")
        return plain.quantize_rows(rows, scale)

    def add_rms_norm(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        self.calls.append("norm")
        return plain.quantize_rows(plain.add_rms_norm(*arguments[:-1]), arguments[-1])

    def silu_mul(self, gate_up: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        self.calls.append("silu")
        return plain.quantize_rows(plain.silu_mul(gate_up), scale)


def test_only_what_attention_writes_is_rounded_by_a_launch_of_its_own(tmp_path: Path) -> None:
    write_fp8_model(tmp_path, "qwen3", FORMATS["channels, dynamic"], **SMALL)
    math = CountingMath()
    model, config = load(tmp_path, attention="reference", ops=TritonOps(F32, fp8_math=math))
    Driver(model, config).compute(PROMPT)
    assert math.calls == ["norm", "alone", "norm", "silu"] * 2


class OneLaunch(PlainFp8Math):
    """As a GPU rounds: the kernels that write activations do it."""

    def quantize(self, rows: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        return quantize_rows(rows, scale)

    def add_rms_norm(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return norm.add_rms_norm_fp8(*arguments)

    def silu_mul(self, gate_up: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        return silu_mul_fp8(gate_up, scale)


class TwoLaunches(OneLaunch):
    def add_rms_norm(
        self, hidden: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, scale: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        written = norm.rms_norm(hidden, weight, epsilon)
        if residual is not None:
            written = norm.add_rms_norm(hidden, residual, weight, epsilon)
        return quantize_rows(written, scale)

    def silu_mul(self, gate_up: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        return quantize_rows(silu_mul(gate_up), scale)


@pytest.mark.parametrize("name", ["channels, dynamic", "tensors, static"])
def test_a_whole_model_does_not_change_with_who_rounds(name: str, tmp_path: Path) -> None:
    write_fp8_model(tmp_path, "llama", FORMATS[name], **SMALL)
    one, two = (logits_of(tmp_path, TritonOps(F32, fp8_math=math)) for math in (OneLaunch(F32), TwoLaunches(F32)))
    assert one is not None
    assert torch.equal(one, two)


def test_rows_may_be_part_of_a_wider_tensor() -> None:
    wide = torch.randn(3, 100)
    (values, scales), (expected, expected_scales) = (quantize_rows(rows) for rows in (wide[:, 4:68], wide[:, 4:68].clone()))
    assert torch.equal(values.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(scales, expected_scales)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": 6}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
    ],
)
def test_weights_rounded_when_loaded_stay_near_float32(family: str, config: dict[str, Any], tmp_path: Path) -> None:
    """Random weights are the worst case: nothing in them is redundant. Logits have a deviation of 4."""
    folder = write_model(tmp_path, family, **SMALL, **config)
    found = divergence(logits_of(folder, fp8_ops(rounds=True)), logits_of(folder, PyTorchOps(F32)))
    assert 1e-6 < found < 0.05


def test_a_product_of_rounded_numbers_is_near_the_exact_one() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(5, 256), torch.randn(64, 256) * torch.logspace(-4, 2, 64).unsqueeze(1), torch.randn(64)
    found = Fp8Linear(PlainFp8Math(F32), rounded(weight), bias)(hidden)
    expected = torch.nn.functional.linear(hidden, weight, bias)
    # Three bits behind the leading one: each number is off by at most a sixteenth, and by a third of that in the mean.
    error = (found - expected).abs().mean(0) / weight.norm(dim=1)
    assert error.max() < 0.1, "each output has a scale of its own"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_checkpoint_means_its_numbers_times_its_scales(name: str, family: str, tmp_path: Path) -> None:
    fp8_folder = tmp_path / "fp8"
    meant = write_fp8_model(fp8_folder, family, FORMATS[name], **SMALL)
    expected = logits_of(write_meant_model(tmp_path / "full", fp8_folder, meant), PyTorchOps(F32))
    math = ExactMath()
    exact = logits_of(fp8_folder, TritonOps(F32, fp8_math=math))
    torch.testing.assert_close(exact, expected, atol=1e-3, rtol=1e-3)
    wanted = {INPUT_SCALE, INPUT_SCALE * 1.5} if "static" in name else {None}
    assert {scale if scale is None else round(scale, 6) for scale in math.input_scales} == wanted
    assert 1e-6 < divergence(logits_of(fp8_folder, fp8_ops()), expected) < 0.05


def test_layers_that_are_merged_read_their_input_with_the_largest_of_their_scales(tmp_path: Path) -> None:
    write_fp8_model(tmp_path, "llama", FORMATS["tensors, static"], **{**SMALL, "num_hidden_layers": 1})
    math = ExactMath()
    logits_of(tmp_path, TritonOps(F32, fp8_math=math))
    qkv, output, gate_up, down = math.input_scales[:4]
    assert qkv == pytest.approx(INPUT_SCALE * 1.5)
    assert output == gate_up == down == pytest.approx(INPUT_SCALE)


def _run_rank(rank: int, folders: list[Path], full: Path, work: Path) -> None:
    torch.set_num_threads(1)
    parallel = TensorParallel.init(rank=rank, world_size=2, rendezvous=work / "rendezvous", device=CPU)
    results = [logits_of(folder, TritonOps(F32, fp8_math=ExactMath()), parallel) for folder in folders]
    torch.save([*results, logits_of(full, fp8_ops(rounds=True), parallel)], work / f"rank{rank}.pt")


def test_two_ranks_read_their_parts_of_weights_and_scales_and_round_theirs(tmp_path: Path) -> None:
    formats = ("tensors, static", "channels, dynamic")
    folders = [tmp_path / str(n) for n in range(len(formats))]
    for folder, name in zip(folders, formats, strict=True):
        write_fp8_model(folder, "llama", FORMATS[name], **SMALL, attention_bias=True)
    full = write_model(tmp_path / "full", "qwen3", **SMALL, num_key_value_heads=1)
    torch.multiprocessing.spawn(_run_rank, (folders, full, tmp_path), nprocs=2)
    *results, rounded_when_read = torch.load(tmp_path / "rank0.pt")
    for folder, found in zip(folders, results, strict=True):
        torch.testing.assert_close(found, logits_of(folder, TritonOps(F32, fp8_math=ExactMath())), atol=1e-3, rtol=1e-3)
    assert 1e-6 < divergence(rounded_when_read, logits_of(full, PyTorchOps(F32))) < 0.05


def test_layers_named_in_full_precision_are_read_so(tmp_path: Path) -> None:
    quantization = {
        **FORMATS["channels, dynamic"],
        "ignore": ["lm_head", "re:.*layers\\.0\\.mlp.*", "model.layers.1.self_attn"],
    }
    config_only = tmp_path / "config"
    write_fp8_model(config_only, "llama", quantization, **SMALL)
    config = load_model_config(config_only).fp8
    assert config is not None
    assert not config.covers("model.layers.0.mlp.gate_proj")
    assert not config.covers("model.layers.1.self_attn.q_proj")
    assert config.covers("model.layers.1.mlp.gate_proj")
    assert config.covers("model.layers.0.self_attn.q_proj")
    with pytest.raises(ValueError, match=r"layers.0.mlp.gate_proj.weight has dtype F8_E4M3, supported are F32, BF16, F16"):
        logits_of(config_only, fp8_ops())


def test_merged_layers_of_two_formats_are_refused(tmp_path: Path) -> None:
    write_fp8_model(tmp_path, "llama", {**FORMATS["channels, dynamic"], "ignore": ["re:.*k_proj"]}, **SMALL)
    with pytest.raises(ValueError, match=r"q_proj is in fp8 and model.layers.0.self_attn.k_proj is not"):
        logits_of(tmp_path, fp8_ops())


def test_a_missing_scale_and_one_of_another_shape_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_fp8_model(tmp_path, "llama", FORMATS["channels, dynamic"], **SMALL)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight_scale"]
    tensors["model.layers.1.mlp.down_proj.weight_scale"] = torch.ones(63, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="2 problems") as refusal:
        logits_of(tmp_path, fp8_ops())
    assert "layers.0.mlp.down_proj.weight_scale is missing" in str(refusal.value)
    assert "layers.1.mlp.down_proj.weight_scale has shape [63, 1], expected [64]" in str(refusal.value)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, r"scale for each block of \[128, 128\] weights"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fp8 e5m2"),
        ({"quant_method": "fp8", "activation_scheme": "none"}, "activation_scheme 'none'"),
        ({"quant_method": "fp8", "ignored_layers": "lm_head"}, "must be a list of names"),
        ({"quant_method": "fp8", "ignored_layers": ["re:["]}, "is no pattern of names"),
        ({"quant_method": "awq"}, "awq"),
        (["fp8"], "fp8"),
        ({**compressed_tensors("block", is_dynamic=True)}, "8-bit float weights and a scale for each block"),
        ({**compressed_tensors("tensor", is_dynamic=True), "config_groups": {}}, "without or with several config_groups"),
        ({**compressed_tensors("tensor", is_dynamic=True), "sparsity_config": {"format": "sparse-24"}}, "sparsity sparse-24"),
    ],
)
def test_other_formats_are_refused_in_one_line(quantization: Any, message: str, tmp_path: Path) -> None:
    write_model(tmp_path, "llama", **SMALL)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "quantization_config": quantization}))
    with pytest.raises(ValueError, match=message) as refusal:
        load_model_config(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", ["weights", "input_activations"])
@pytest.mark.parametrize("change", [{"num_bits": 4}, {"type": "int"}, {"symmetric": False}])
def test_other_numbers_than_eight_bit_floats_are_refused(key: str, change: dict[str, Any], tmp_path: Path) -> None:
    quantization = compressed_tensors("channel", is_dynamic=True)
    quantization["config_groups"]["group_0"][key].update(change)
    test_other_formats_are_refused_in_one_line(quantization, "compressed-tensors with (4|8)-bit", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "fp8"}, "quantize fp8 works on NVIDIA GPUs only, not on cpu; use int8 or int4"),
        ({"is_fp8": True}, "the checkpoint has fp8 weights, which work on NVIDIA GPUs only, not on cpu; give the checkpoint"),
        ({"is_fp8": True, "quantize": "int8"}, "quantize int8 cannot round again"),
        ({"quantize": "fp8", "device": torch.device("cuda"), "dtype": torch.float16}, "in bfloat16 only, not in float16"),
    ],
)
def test_fp8_is_refused_where_nothing_multiplies_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_ops(**{"dtype": torch.bfloat16, "device": CPU, "num_threads": 1, **options})


@pytest.mark.parametrize(("options", "rounds"), [({"quantize": "fp8"}, True), ({"is_fp8": True}, False), ({}, None)])
def test_a_gpu_multiplies_in_fp8_where_it_is_asked_for(
    options: dict[str, Any], rounds: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScaledMatrixMath, "__init__", lambda *_: None)
    ops = choose_ops(dtype=torch.bfloat16, device=torch.device("cuda"), num_threads=1, **options)
    assert isinstance(ops, TritonOps)
    assert (ops.fp8_math is not None, ops.rounds_to_fp8) == (rounds is not None, bool(rounds))
    monkeypatch.setattr(choose, "_has_triton", lambda: False)
    if options:
        with pytest.raises(ValueError, match="which is not installed"):
            choose_ops(dtype=torch.bfloat16, device=torch.device("cuda"), num_threads=1, **options)


def test_the_product_of_a_gpu_gets_what_it_demands() -> None:
    """PyTorch checks layouts, sizes and dtypes of its product on tensors that have no memory as well."""
    with FakeTensorMode():
        math = ScaledMatrixMath(torch.device("cuda"))
        for num_tokens in (1, 7):
            values = torch.empty(num_tokens, 64, dtype=torch.float8_e4m3fn, device="cuda")
            scales = torch.empty(num_tokens, 1, device="cuda")
            weight = Fp8Weight(torch.empty(48, 64, dtype=values.dtype, device="cuda"), torch.empty(48, device="cuda"), None)
            product = math.multiply(Fp8Rows(values, scales), weight, torch.empty(48, dtype=torch.bfloat16, device="cuda"))
            assert (product.shape, product.dtype) == ((num_tokens, 48), torch.bfloat16)


def test_the_product_of_a_gpu_is_the_plain_one() -> None:
    """PyTorch 2.12 and newer have it on a CPU as well, where it sums in float32."""
    torch.manual_seed(0)
    math = PlainFp8Math(torch.bfloat16)
    try:
        on_cpu = ScaledMatrixMath(CPU)
    except ValueError as error:
        if "only supports per-tensor scaling for CPU" not in str(error):
            raise
        pytest.skip(f"PyTorch {torch.__version__} has no such product on a CPU")
    weight = rounded(torch.randn(48, 64))
    rows = Fp8Rows(*math.quantize(torch.randn(7, 64), None))
    bias = torch.randn(48).to(torch.bfloat16)
    found = on_cpu.multiply(rows, weight, bias)
    torch.testing.assert_close(found, math.multiply(rows, weight, bias), atol=0.1, rtol=0.02)


@pytest.mark.parametrize("shape", [(40, 64), (64, 40)])
def test_a_weight_of_odd_size_stays_in_full_precision(shape: tuple[int, int]) -> None:
    weight, hidden = torch.randn(shape), torch.randn(3, shape[1])
    assert not fits(*shape)
    placement = Placement(TensorParallel.single(), F32, CPU, fp8_ops(rounds=True))
    assert isinstance(make_weight(["odd"], *shape, placement), FullWeight)
    in_fp8 = rounded(weight)
    expected = hidden @ (in_fp8.values.float() * in_fp8.scales.unsqueeze(1)).t()
    torch.testing.assert_close(fp8_ops().fp8_linear(in_fp8, None)(hidden), expected)


def test_rows_that_are_rounded_as_they_arrive_are_those_of_the_whole_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, by several threads, from a part of a wider tensor, to a part of a merged one."""
    monkeypatch.setattr(file_copies, "PIECE_BYTES", 64 * 4 * 5)
    sources = [torch.randn(40, 96)[:, 32:], torch.randn(24, 64).to(torch.float16)]
    seen: list[int] = []

    def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(rows.nbytes)
        return fp8_ops(rounds=True).round_rows(rows)

    whole = RoundedRows(torch.empty(64, 64, dtype=torch.float8_e4m3fn), torch.empty(64), round_rows)
    targets = [whole.part(slice(40)), whole.part(slice(40, 64))]
    copy_in_threads(zip(sources, targets, strict=True), lambda: Direct([]), num_threads=3)
    expected = [rounded(source) for source in sources]
    assert torch.equal(whole.values.float(), torch.cat([weight.values for weight in expected]).float())
    assert torch.equal(whole.scales, torch.cat([weight.scales for weight in expected]))
    assert max(seen) <= 64 * 4 * 5, "no more than a piece is on the device in full precision"


def test_no_linear_weight_is_in_full_precision_while_a_model_is_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a layer holds before it is loaded is in fp8 already; the vocabulary stays as it is."""
    folder = write_model(tmp_path, "qwen3", **SMALL)
    held: dict[str, Any] = {}
    load_weights = loader.load_weights

    def look(folder: Path, wanted: Any, **options: Any) -> None:
        tensors = list(wanted)
        held.update({tensor.name: tensor.target for tensor in tensors})
        load_weights(folder, tensors, **options)

    monkeypatch.setattr(loader, "load_weights", look)
    logits_of(folder, fp8_ops(rounds=True))
    linear = {name: target for name, target in held.items() if "_proj" in name}
    assert len(linear) == 2 * 7
    assert all(isinstance(target, RoundedRows) for target in linear.values())
    assert all(isinstance(held[name], Tensor) for name in held.keys() - linear.keys())
