"""Both implementations find the same in a row of logits."""

import math

import pytest
import torch
from text_gen_server.ops.native import NativeOps
from text_gen_server.ops.pytorch import PyTorchOps
from torch import Tensor

SIZES = (1, 5, 16, 49, 2048, 49_157)


@pytest.fixture(scope="module")
def ops() -> NativeOps:
    return NativeOps(num_threads=2)


@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_finds_what_pytorch_finds(size: int, ops: NativeOps) -> None:
    logits = torch.randn(7, size, generator=torch.Generator().manual_seed(size)) * 20
    found, expected = ops.summarize(logits), PyTorchOps(torch.float32).summarize(logits)
    assert torch.equal(found.largest, expected.largest)
    assert found.is_finite.all()
    torch.testing.assert_close(found.log_normalizer, logits.double().logsumexp(-1).float(), atol=2e-5, rtol=1e-6)


def test_the_first_of_equals_is_the_largest(ops: NativeOps) -> None:
    logits = torch.zeros(2, 100)
    logits[1, [40, 41, 99]] = 3.0
    assert ops.summarize(logits).largest.tolist() == [0, 40]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 17, 96, 99])
def test_one_bad_number_makes_a_row_not_finite(value: float, position: int, ops: NativeOps) -> None:
    logits = torch.randn(3, 100)
    logits[1, position] = value
    assert ops.summarize(logits).is_finite.tolist() == [True, False, True]


def test_what_a_mask_forbids_is_left_out(ops: NativeOps) -> None:
    logits = torch.randn(1, 100)
    masked = logits.masked_fill(torch.arange(100) % 3 != 0, -math.inf)
    found = ops.summarize(masked)
    torch.testing.assert_close(found.log_normalizer, logits[:, ::3].logsumexp(-1))
    assert found.largest.item() == 3 * int(logits[0, ::3].argmax())


def test_rows_may_be_a_part_of_longer_ones(ops: NativeOps) -> None:
    padded: Tensor = torch.randn(4, 60)
    assert torch.equal(ops.summarize(padded[:, :50]).largest, padded[:, :50].argmax(-1))
