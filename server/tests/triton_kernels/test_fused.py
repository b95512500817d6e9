"""The fused kernels give what plain PyTorch and the layers give, and touch nothing else."""

import pytest
import torch
import torch.nn.functional as F
from text_gen_server.layers.rotary import RotaryEmbedding
from text_gen_server.ops.pytorch import rotate
from text_gen_server.rope_config import RopeConfig
from text_gen_server.triton_kernels import plain
from text_gen_server.triton_kernels.activation import silu_mul
from text_gen_server.triton_kernels.norm import add_rms_norm, rms_norm
from text_gen_server.triton_kernels.paged_attention import PagedKV
from text_gen_server.triton_kernels.rotary import HeadNorm, TokenPlaces, rotate_and_write_kv
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The plain forms round after every operation, the kernels once.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def assert_close(output: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE.get(output.dtype, 0.13)  # float8_e4m3fn has 3 bits
    output, expected = output.float(), expected.float()
    if tolerance == 0.13:
        # The interpreter loses the carry where rounding leads up to the next power of two: some numbers are half of themselves.
        is_far = (output - expected).abs() > tolerance + tolerance * expected.abs()
        assert is_far.float().mean() < 0.02
        assert (output - expected).abs().max() <= expected.abs().max() / 2
        return
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 64, 96, 1000, 4096])
@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_add_rms_norm_equals_the_plain_form(dtype: torch.dtype, size: int, num_tokens: int) -> None:
    torch.manual_seed(0)
    hidden, residual = (torch.randn(num_tokens, size).to(dtype) for _ in range(2))
    weight = torch.randn(size).to(dtype)
    before, expected_residual = hidden.clone(), residual.clone()
    expected = plain.add_rms_norm(hidden, expected_residual, weight, 1e-5)
    assert_close(add_rms_norm(hidden, residual, weight, 1e-5), expected)
    if dtype == torch.bfloat16:
        assert_close(residual, expected_residual)  # the interpreter cuts bfloat16 instead of rounding it
    else:
        assert torch.equal(residual, expected_residual)
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_leaves_its_input_alone(dtype: torch.dtype) -> None:
    hidden, weight = torch.randn(3, 80).to(dtype), torch.randn(80).to(dtype)
    before = hidden.clone()
    assert_close(rms_norm(hidden, weight, 1e-6), F.rms_norm(hidden, (80,), weight, 1e-6))
    assert torch.equal(hidden, before)


def test_norms_read_rows_of_a_wider_tensor() -> None:
    wide = torch.full((4, 100), float("nan"))
    wide[:, 10:74] = torch.randn(4, 64)
    weight = torch.randn(64)
    assert_close(rms_norm(wide[:, 10:74], weight, 1e-5), F.rms_norm(wide[:, 10:74], (64,), weight, 1e-5))
    residual = torch.randn(4, 64)
    expected = wide[:, 10:74] + residual
    add_rms_norm(wide[:, 10:74], residual, weight, 1e-5)
    assert torch.equal(residual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 112, 1024, 1500])
@pytest.mark.parametrize("num_tokens", [0, 1, 3])
def test_silu_mul_equals_the_plain_form(dtype: torch.dtype, size: int, num_tokens: int) -> None:
    gate_up = (torch.randn(num_tokens, 2 * size) * 4).to(dtype)
    assert_close(silu_mul(gate_up), plain.silu_mul(gate_up))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_silu_mul_of_large_numbers_is_finite() -> None:
    gate_up = torch.tensor([[-1e4, 1e4, 100.0, 2.0, 2.0, 0.5]])
    assert silu_mul(gate_up).tolist() == [[0.0, 20000.0, 50.0]]


def places_of(num_tokens: int, head_dim: int, slots: list[int], dtype: torch.dtype) -> TokenPlaces:
    config = RopeConfig(kind="default", theta=10000.0, max_position_embeddings=512, max_model_len=512)
    cos, sin = RotaryEmbedding(config, head_dim, torch.device("cpu")).cos_sin(torch.arange(num_tokens) * 7, dtype)
    return TokenPlaces(cos, sin, torch.tensor(slots))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 2, 64), (7, 1, 96), (16, 1, 128), (12, 6, 256)])
def test_rotation_and_write_equal_the_plain_form(
    dtype: torch.dtype, fp8: bool, has_norm: bool, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    torch.manual_seed(0)
    slots = [5, -1, 33, 0]
    places = places_of(len(slots), head_dim, slots, dtype)
    heads = torch.randn(len(slots), num_heads + 2 * num_kv_heads, head_dim).to(dtype)
    norm = HeadNorm(torch.rand(num_heads + num_kv_heads, head_dim).to(dtype) + 0.5, 1e-6) if has_norm else None
    kv_dtype = torch.float8_e4m3fn if fp8 else dtype
    shape = (3, 16, num_kv_heads, head_dim)
    scales = (0.01, 2.0) if fp8 else (1.0, 1.0)  # the first one makes keys too large for 8 bits
    results = []
    for function in (rotate_and_write_kv, plain.rotate_and_write_kv):
        kv = PagedKV(torch.full(shape, 3.0).to(kv_dtype), torch.full(shape, 5.0).to(kv_dtype), *scales)
        results.append((function(heads.clone(), places, kv, norm), kv))
    (query, kv), (expected_query, expected_kv) = results
    assert_close(query, expected_query)
    assert_close(kv.key, expected_kv.key)
    assert_close(kv.value, expected_kv.value)
    untouched = [slot for slot in range(48) if slot not in slots]
    assert (kv.key.flatten(0, 1)[untouched].float() == 3.0).all()
    assert (kv.value.flatten(0, 1)[untouched].float() == 5.0).all()
    assert kv.key.float().isfinite().all()


def test_rotation_is_that_of_the_layer() -> None:
    torch.manual_seed(0)
    places = places_of(3, 64, [4, 2, 9], torch.float32)
    heads = torch.randn(3, 8, 64)
    rotated = rotate(heads[:, :6], places.cos, places.sin)
    values = heads[:, 6:].clone()
    kv = PagedKV(*(torch.zeros(1, 16, 2, 64) for _ in range(2)))
    query = rotate_and_write_kv(heads, places, kv)
    assert query.data_ptr() == heads.data_ptr(), "queries stay where they are"
    assert_close(query, rotated[:, :4])
    assert_close(kv.key[0, [4, 2, 9]], rotated[:, 4:])
    assert torch.equal(kv.value[0, [4, 2, 9]], values)


def test_heads_may_be_part_of_a_wider_tensor() -> None:
    torch.manual_seed(0)
    wide = torch.randn(2, 600)
    heads = wide[:, 8 : 8 + 4 * 64].unflatten(1, (4, 64))
    places = places_of(2, 64, [1, 0], torch.float32)
    expected = rotate(heads[:, :3], places.cos, places.sin)
    before = wide.clone()
    kv = PagedKV(*(torch.zeros(1, 16, 1, 64) for _ in range(2)))
    query = rotate_and_write_kv(heads, places, kv)
    assert_close(query, expected[:, :2])
    assert torch.equal(wide[:, :8], before[:, :8])
    assert torch.equal(wide[:, 8 + 2 * 64 :], before[:, 8 + 2 * 64 :])


def test_a_step_without_tokens_writes_nothing() -> None:
    kv = PagedKV(*(torch.ones(1, 16, 1, 64) for _ in range(2)))
    places = TokenPlaces(torch.empty(0, 1, 64), torch.empty(0, 1, 64), torch.empty(0, dtype=torch.int64))
    assert rotate_and_write_kv(torch.empty(0, 4, 64), places, kv).shape == (0, 2, 64)
    assert (kv.key == 1).all()
