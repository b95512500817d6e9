"""The inputs that a device makes from what is new are those that the host makes from everything."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_gen_server.batch import BatchInputs, Mirror
from text_gen_server.plan import PlanLimits, Row
from text_gen_server.step_inputs import DeviceInputs, FillDecodeRows, HostInputs, choose_inputs
from text_gen_server.transfers import HostTransfers, Transfers
from text_gen_server.triton_kernels import plain
from torch import Tensor

from runtime.fakes import CPU, FakeRouter, fake_runner, token_of

PROMPT = [3, 14, 15, 92, 65]


class BothInputs:
    """Makes the inputs in both ways and compares them; gives those of the device."""

    def __init__(self, limits: PlanLimits, transfers: Transfers, fill: FillDecodeRows = plain.fill_decode_rows) -> None:
        # Few rows, so that the tables must grow.
        self.device = DeviceInputs(replace(limits, max_batch_size=2), transfers, CPU, graphed=None, fill=fill)
        self.device.counting = torch.arange(limits.max_batch_size + 1)
        self.device.query_start = self.device.counting.to(torch.int32)
        self.host = HostInputs(limits, transfers)
        self.num_by_device = 0
        self.num_bytes = 0

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror], sampled_before: Tensor | None) -> BatchInputs:
        expected = self.host.build(rows, mirrors, sampled_before)
        found = self.device.build(rows, mirrors, sampled_before)
        self.num_by_device += found.sample_idx.data_ptr() == self.device.counting.data_ptr()
        with torch._C.DisableTorchFunction():
            assert_equal(found, expected)
        return found

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        self.device.forget(mirrors)


def assert_equal(found: Any, expected: Any) -> None:
    for field in fields(expected):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        if field.name in ("attention_metadata",):
            assert_equal(left, right)
        elif isinstance(right, torch.Tensor):
            assert (left.dtype, left.tolist()) == (right.dtype, right.tolist()), field.name
        elif field.name == "sampling_rows":
            assert list(left) == list(right), field.name
        elif field.name == "prompt_spans":
            assert len(left) == len(right)
        else:
            assert left == right, field.name


class Counting(HostTransfers):
    """Remembers how many numbers each step sends."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def upload(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:  # type: ignore[type-arg]
        self.sent.append(sum(array.size for array in arrays))
        return super().upload(arrays)


def on_device(limits: PlanLimits, transfers: Transfers) -> DeviceInputs:
    return DeviceInputs(limits, transfers, CPU, graphed=None, fill=plain.fill_decode_rows)


def test_a_decode_step_sends_five_numbers_for_each_row_and_one_for_each_new_block(babbling_folder: Path) -> None:
    transfers = Counting()
    runner = fake_runner(babbling_folder, transfers=transfers, make_inputs=on_device)
    router = FakeRouter(runner)
    router.add(1, PROMPT)
    router.add(2, PROMPT[:3])
    router.step(s1=5, s2=3)
    transfers.sent.clear()
    for _ in range(5):
        router.step(s2=1, s1=1)
    # Blocks of 4 tokens: a new block when a row comes to 5 or 9 tokens.
    assert transfers.sent == [10, 10 + 1, 10, 10 + 1, 10]


def test_a_row_that_had_another_sequence_shows_nothing_of_it(babbling_folder: Path) -> None:
    runner = fake_runner(babbling_folder, make_inputs=BothInputs)
    router = FakeRouter(runner)
    for n in range(6):
        router.add(n, PROMPT * (3 if n % 2 == 0 else 1))
        prompt_len = len(router.to_add[-1].token_ids)
        tokens = [token_of(router.step(**{f"s{n}": count})[n]) for count in (prompt_len, 1, 1)]
        assert len(tokens) == 3
        router.forget(n)
    assert runner.inputs.num_by_device == 12  # type: ignore[attr-defined]
    assert len(runner.inputs.device.tables) == 2  # type: ignore[attr-defined]
    runner.forget_all()


def test_a_short_row_beside_a_long_one_is_padded_with_block_0_whoever_had_its_table(babbling_folder: Path) -> None:
    runner = fake_runner(babbling_folder, make_inputs=BothInputs)
    router = FakeRouter(runner)
    for first in (1, 3):
        for n, tokens in ((first, PROMPT * 4), (first + 1, PROMPT * 4 if first == 1 else PROMPT)):
            router.add(n, tokens)
            router.step(**{f"s{n}": len(tokens)})
        router.step(**{f"s{n}": 1 for n in (first, first + 1)})
        router.step(**{f"s{n}": 1 for n in (first + 1, first)})
        for n in (first, first + 1):
            router.forget(n)
    assert runner.inputs.num_by_device == 4  # type: ignore[attr-defined]


def test_more_sequences_may_be_held_than_a_step_has_rows(babbling_folder: Path) -> None:
    runner = fake_runner(babbling_folder, make_inputs=BothInputs)
    router = FakeRouter(runner)
    for n in range(5):
        router.add(n, PROMPT)
    router.step(**{f"s{n}": 5 for n in range(5)})
    for n in (0, 1, 2, 3, 4, 0, 3):
        router.step(**{f"s{n}": 1})
    assert len(runner.inputs.device.tables) == 8  # type: ignore[attr-defined]
    runner.forget_all()
    assert len(runner.inputs.device.free_rows) == 8  # type: ignore[attr-defined]


@pytest.mark.parametrize("counts", [{"s1": 1, "s2": 3}, {"s2": 1}, {"s2": 7, "s1": 1, "s3": 2}])
def test_other_steps_are_those_of_the_host(babbling_folder: Path, counts: dict[str, int]) -> None:
    runner = fake_runner(babbling_folder, make_inputs=BothInputs)
    router = FakeRouter(runner)
    for n in (1, 2, 3):
        router.add(n, PROMPT * n)
    router.step(s1=5)
    router.step(**counts)
    assert runner.inputs.num_by_device == 0  # type: ignore[attr-defined]
    router.step(**dict.fromkeys(counts, 1))


def test_no_step_sends_a_block_twice(babbling_folder: Path) -> None:
    transfers = Counting()
    runner = fake_runner(babbling_folder, transfers=transfers, make_inputs=on_device)
    router = FakeRouter(runner)
    router.add(1, PROMPT * 8)
    router.add(2, PROMPT * 4)
    router.step(s1=17, s2=3)
    router.step(s1=23, s2=1)
    # Of each token three numbers, of each row that samples one, of each row six, one more; 5 and 1 new blocks, then 5 and 0.
    assert transfers.sent == [20 * 3 + 0 + 2 * 6 + 1 + 6, 24 * 3 + 1 + 2 * 6 + 1 + 5]


def test_a_host_makes_its_inputs_itself(babbling_folder: Path) -> None:
    limits = fake_runner(babbling_folder).limits
    assert isinstance(choose_inputs(CPU, limits, HostTransfers(), None), HostInputs)
