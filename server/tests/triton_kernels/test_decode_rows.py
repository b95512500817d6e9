"""The inputs of decode steps made by one kernel are those made by PyTorch and by the host, padding rows included."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from runtime.fakes import CPU, FakeRouter, fake_runner
from runtime.test_cuda_graphs import FakeCapture, FakeModel, Seen
from runtime.test_overlap import OneAhead, generate, kind, late_runner
from runtime.test_step_inputs import BothInputs
from text_gen_server import step_inputs
from text_gen_server.batch import BatchInputs, Mirror
from text_gen_server.cuda_graphs import GraphedModel, GraphLimits
from text_gen_server.decode_rows import DecodeDeltas, DecodeRows, pack_deltas
from text_gen_server.kv_cache import KVCache
from text_gen_server.plan import NewSequence, PlanLimits, Row, SamplingParameters
from text_gen_server.step_inputs import DeviceInputs, FillDecodeRows, HostInputs, choose_fill
from text_gen_server.transfers import HostTransfers
from text_gen_server.triton_kernels import plain
from text_gen_server.triton_kernels.decode_rows import COLUMNS, fill_decode_rows
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Rows at random places, whose tables lack some of their blocks."""

    deltas: DecodeDeltas
    tables: Tensor
    sampled_before: Tensor

    def filled_by(self, fill: FillDecodeRows, num_rows: int, width: int, block_size: int) -> list[Tensor]:
        """Everything that it writes, into memory that holds something else."""
        rows, tables = DecodeRows.allocate(num_rows, width, CPU), self.tables.clone()
        for tensor in (*rows.vectors(), rows.block_tables):
            tensor.fill_(77)
        fill(self.deltas, tables, self.sampled_before, rows, block_size=block_size)
        return [*rows.vectors(), rows.block_tables, tables]


def make_case(positions: Sequence[int], *, block_size: int, num_columns: int, seed: int = 0) -> Case:
    chance = random.Random(seed)
    num_rows = len(positions)
    tables = torch.randint(
        1, 2**30, (num_rows + 3, num_columns), dtype=torch.int32, generator=torch.Generator().manual_seed(seed)
    )
    table_rows = chance.sample(range(num_rows + 3), num_rows)
    codes, num_known, first_new, new_blocks = [], [], [], []
    for position in positions:
        num_used = position // block_size + 1
        known = chance.choice([0, num_used - 1, num_used, min(num_used + 2, num_columns), chance.randint(0, num_used)])
        codes.append(chance.choice([chance.randrange(2**17), -1 - chance.randrange(9)]))
        num_known.append(known)
        first_new.append(len(new_blocks))
        new_blocks += [chance.randrange(2**30) for _ in range(known, num_used)]
    numbers = pack_deltas((codes, positions, table_rows, num_known, first_new), new_blocks)
    return Case(DecodeDeltas(torch.from_numpy(numbers), num_rows), tables, torch.arange(9) * 1000 + 7)


@pytest.mark.parametrize("block_size", [1, 16, 256])
@pytest.mark.parametrize(
    "num_blocks",  # of each row, in eights of the position at their end
    [[1], [1, 2, 1, 3], [9, 1, 40], [COLUMNS + 1, 3], [COLUMNS], [2 * COLUMNS + 5, COLUMNS, 1]],
    ids=lambda counts: "-".join(map(str, counts)),
)
@pytest.mark.parametrize("num_empty", [0, 3])
def test_the_kernel_equals_pytorch(block_size: int, num_blocks: list[int], num_empty: int) -> None:
    for seed in range(3):
        chance = random.Random(seed)
        # The first and the last token of a block, and one between.
        offsets = [chance.choice([0, block_size - 1, chance.randrange(block_size)]) for _ in num_blocks]
        positions = [(count - 1) * block_size + offset for count, offset in zip(num_blocks, offsets, strict=True)]
        width = max(num_blocks) + seed
        case = make_case(positions, block_size=block_size, num_columns=width + 4, seed=seed)
        results = [
            case.filled_by(fill, len(positions) + num_empty, width, block_size)
            for fill in (fill_decode_rows, plain.fill_decode_rows)
        ]
        for found, expected in zip(*results, strict=True):
            assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())


def test_the_kernel_equals_pytorch_with_256_rows() -> None:
    positions = [(37 * n) % 500 for n in range(250)]
    case = make_case(positions, block_size=16, num_columns=40)
    found, expected = (case.filled_by(fill, 256, 40, 16) for fill in (fill_decode_rows, plain.fill_decode_rows))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("fill", [fill_decode_rows, plain.fill_decode_rows])
def test_what_each_row_gets(fill: FillDecodeRows) -> None:
    """By hand: a row at the end of its second block, a row whose third block is new, and an empty one. Blocks of 4 tokens."""
    tables = torch.tensor([[9, 9, 9, 9], [5, 6, 7, 8], [1, 2, 3, 4]], dtype=torch.int32)
    fields = ((-2, 30), (7, 8), (2, 1), (2, 2), (0, 0))
    deltas = DecodeDeltas(torch.from_numpy(pack_deltas(fields, [60])), 2)
    rows = DecodeRows.allocate(3, 4, CPU)
    fill(deltas, tables, torch.tensor([100, 101, 102]), rows, block_size=4)
    assert rows.token_ids.tolist() == [101, 30, 0]
    assert rows.positions.tolist() == [7, 8, 0]
    assert rows.slot_mapping.tolist() == [2 * 4 + 3, 60 * 4, -1]
    assert rows.kv_lens.tolist() == [8, 9, 0]
    assert rows.block_tables.tolist() == [[1, 2, 0, 0], [5, 6, 60, 0], [0, 0, 0, 0]]
    assert tables.tolist() == [[9, 9, 9, 9], [5, 6, 60, 8], [1, 2, 3, 4]]


@pytest.mark.parametrize("seed", range(2))
def test_random_schedules_one_step_ahead_get_the_inputs_of_the_host(babbling_folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    prompts = {n: [chance.randrange(90) for _ in range(chance.randint(1, 12))] for n in range(6)}
    runner = late_runner(babbling_folder, partial(BothInputs, fill=on_device_itself))
    ahead = OneAhead(runner, FakeRouter(runner), {n: [] for n in prompts}, chance, prompts)
    for _ in range(40):
        ahead.step()
    alone = fake_runner(babbling_folder)
    for n, prompt in prompts.items():
        found = ahead.tokens[n]
        assert found == (generate(alone, prompt, len(found), kind(n)) if found else [])
    assert runner.inputs.num_by_device > 5  # type: ignore[attr-defined]


def on_device_itself(*arguments: object, block_size: int) -> None:
    """The interpreter may look at what the device holds."""
    with torch._C.DisableTorchFunction():
        fill_decode_rows(*arguments, block_size=block_size)  # type: ignore[arg-type]


class Graphed:
    """A graphed model that remembers what it saw, and the inputs that it is given."""

    def __init__(self, limits: PlanLimits, sizes: tuple[int, ...], fill: FillDecodeRows | None) -> None:
        cache = KVCache(limits.num_blocks, limits.block_size, (), (), (), ())
        graph_limits = GraphLimits(sizes=sizes, max_total_tokens=limits.max_total_tokens)
        self.model = FakeModel()
        self.graphed = GraphedModel(self.model, kv_cache=cache, limits=graph_limits, capture=FakeCapture(), device=CPU)
        self.graphed.capture_all()
        self.inputs: DeviceInputs | HostInputs = HostInputs(limits, HostTransfers())
        if fill is not None:
            self.inputs = DeviceInputs(limits, HostTransfers(), CPU, graphed=self.graphed, fill=fill)

    def run(
        self, rows: Sequence[Row], mirrors: Sequence[Mirror], sampled_before: Tensor | None
    ) -> tuple[Tensor, Seen, BatchInputs]:
        batch = self.inputs.build(rows, mirrors, sampled_before)
        hidden = self.graphed.forward(
            token_ids=batch.token_ids,
            positions=batch.positions,
            slot_mapping=batch.slot_mapping,
            attention_metadata=batch.attention_metadata,
            kv_cache=self.graphed.kv_cache,
        )
        return hidden[batch.sample_idx].clone(), self.model.seen[-1], batch


def decodes(mirrors: Iterable[Mirror], chance: random.Random) -> None:
    """What a step of decodes does to its mirrors: blocks as they are needed, sometimes ahead."""
    for mirror in mirrors:
        while mirror.num_blocks * 4 <= mirror.num_computed_tokens:
            mirror.append_blocks([chance.randrange(1, 1000) for _ in range(chance.choice([1, 1, 2]))])


@pytest.mark.parametrize("fill", [fill_decode_rows, plain.fill_decode_rows])
def test_a_graph_sees_what_it_sees_of_steps_made_on_the_host(fill: FillDecodeRows) -> None:
    """Rows come and leave, so that sizes change, rows become empty, and tables are taken over by other sequences."""
    chance = random.Random(5)
    limits = PlanLimits(
        vocab_size=97, num_blocks=1000, block_size=4, max_total_tokens=40, max_batch_size=8, max_step_tokens=200
    )
    in_place, copied = (Graphed(limits, (1, 2, 4, 7), each) for each in (fill, None))
    mirrors: list[Mirror] = []
    num_in_place = 0
    for step in range(60):
        if len(mirrors) < 8 and (chance.random() < 0.4 or not mirrors):
            tokens = tuple(chance.randrange(97) for _ in range(chance.randint(1, 12)))
            mirrors.append(Mirror(NewSequence(sequence_id=step, token_ids=tokens, prompt_len=1, sampling=SamplingParameters())))
            mirrors[-1].num_computed_tokens = len(tokens) - 1
        elif chance.random() < 0.3:
            in_place.inputs.forget([mirrors.pop(chance.randrange(len(mirrors)))])
        batch = chance.sample(mirrors, chance.randint(min(1, len(mirrors)), len(mirrors)))
        if not batch:
            continue
        decodes(batch, chance)
        rows = [Row(sequence_id=mirror.sequence_id, num_scheduled_tokens=1) for mirror in batch]
        sampled_before = torch.randint(97, (8,)) if chance.random() < 0.7 else None
        for mirror in batch:
            if sampled_before is not None and chance.random() < 0.7:
                mirror.set_token(mirror.num_tokens - 1, -1 - chance.randrange(8))
            elif mirror.last_token_id < 0:
                mirror.set_token(mirror.num_tokens - 1, chance.randrange(97))
        found, expected = (each.run(rows, batch, sampled_before) for each in (in_place, copied))
        assert torch.equal(found[0], expected[0])
        if len(batch) <= 7:
            assert vars(found[1]) | {"metadata": None} == vars(expected[1]) | {"metadata": None}
            num_in_place += found[2].token_ids.data_ptr() == in_place.graphed.buffers.rows.token_ids.data_ptr()  # type: ignore[union-attr]
        for mirror in batch:
            mirror.num_computed_tokens += 1
            mirror.append_token(chance.randrange(97))
        for mirror in [mirror for mirror in mirrors if mirror.num_tokens > 39]:
            mirrors.remove(mirror)
            in_place.inputs.forget([mirror])
    assert num_in_place > 40


def test_one_kernel_fills_where_triton_is_installed_and_pytorch_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_fill() is fill_decode_rows
    monkeypatch.setattr(step_inputs.importlib.util, "find_spec", lambda _: None)
    assert choose_fill() is plain.fill_decode_rows
