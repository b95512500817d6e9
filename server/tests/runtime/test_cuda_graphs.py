"""Graphs are captured for the sizes asked for, padded with rows that touch nothing, and never replayed on what was."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from models.driver import CPU, metadata_of
from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.cuda_graphs import LEAST_GRAPH_BYTES, CudaCapture, GraphedModel, GraphLimits, choose_capture, graph_sizes
from text_gen_server.kv_cache import KVCache
from torch import Tensor

BLOCK_SIZE = 4
MAX_TOTAL_TOKENS = 32


@dataclass
class Seen:
    """The inputs of one forward, copied."""

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    kv_lens: list[int]
    block_tables: list[list[int]]
    metadata: AttentionMetadata


@dataclass
class FakeModel:
    """Answers each row with a function of all its inputs, and remembers what it saw."""

    seen: list[Seen] = field(default_factory=list)

    def wanted(self) -> Any:
        return iter(["weight"])

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden * 2

    def forward(
        self,
        *,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        attention_metadata: AttentionMetadata,
        kv_cache: KVCache,
    ) -> Tensor:
        del kv_cache
        metadata = attention_metadata
        columns = (token_ids, positions, slot_mapping, metadata.kv_lens)
        self.seen.append(Seen(*(column.tolist() for column in columns), metadata.block_tables.tolist(), metadata))
        blocks = metadata.block_tables.sum(1) if len(token_ids) == len(metadata.kv_lens) else torch.zeros(len(token_ids))
        used = (token_ids, positions, slot_mapping, blocks)
        return torch.stack([column.double() for column in used], dim=1)


@dataclass
class FakeGraph:
    compute: Callable[[], Tensor]
    output: Tensor

    def replay(self) -> None:
        self.output.copy_(self.compute())


@dataclass
class FakeCapture:
    """Computes again at each replay, from the memory that was captured."""

    sizes: list[int] = field(default_factory=list)
    fails_above: int = 10**9

    def __call__(self, compute: Callable[[], Tensor]) -> FakeGraph:
        output = compute().clone()
        self.sizes.append(len(output))
        if len(output) > self.fails_above:
            raise torch.OutOfMemoryError("no memory")
        return FakeGraph(compute, output)


def make_cache() -> KVCache:
    return KVCache(8, BLOCK_SIZE, (), (), (), ())


def make(sizes: tuple[int, ...], capture: FakeCapture | None = None) -> tuple[GraphedModel, FakeModel, FakeCapture]:
    model, capture = FakeModel(), capture or FakeCapture()
    limits = GraphLimits(sizes=sizes, max_total_tokens=MAX_TOTAL_TOKENS)
    return GraphedModel(model, kv_cache=make_cache(), limits=limits, capture=capture, device=CPU), model, capture


def decode(kv_lens: list[int], first_block: int = 1) -> dict[str, Any]:
    """A step of one token per row; every number in it differs from those of other rows and other steps."""
    blocks = [[first_block + row + 100 * n for n in range(-(-kv_len // BLOCK_SIZE))] for row, kv_len in enumerate(kv_lens)]
    rows = torch.arange(len(kv_lens))
    return {
        "token_ids": rows + 10 * first_block,
        "positions": torch.tensor(kv_lens) - 1,
        "slot_mapping": rows + 1000 * first_block,
        "attention_metadata": metadata_of(blocks, [1] * len(kv_lens), kv_lens, len(kv_lens)),
    }


def run(graphed: GraphedModel, step: dict[str, Any]) -> Tensor:
    return graphed.forward(**step, kv_cache=graphed.kv_cache).clone()


def eager(step: dict[str, Any]) -> Tensor:
    return FakeModel().forward(**step, kv_cache=make_cache())


def test_a_decode_batch_gives_what_it_gives_without_graphs() -> None:
    graphed, _, _ = make((1, 2, 4, 8))
    for step, kv_lens in enumerate([[5], [5, 9, 1], [32] * 8, [1, 2], [7, 7, 7, 7, 7], [3]]):
        inputs = decode(kv_lens, first_block=step + 1)
        assert torch.equal(run(graphed, inputs), eager(inputs))


def test_padding_rows_read_no_block_and_write_to_no_slot() -> None:
    graphed, model, _ = make((4,))
    run(graphed, decode([9, 10, 11, 12], first_block=1))
    run(graphed, decode([5, 30], first_block=2))
    seen = model.seen[-1]
    assert seen.slots == [2000, 2001, -1, -1]
    assert seen.kv_lens == [5, 30, 0, 0]
    assert seen.token_ids == [20, 21, 0, 0]
    assert seen.positions == [4, 29, 0, 0]
    assert seen.block_tables[0] == [2, 102, 0, 0, 0, 0, 0, 0]
    assert seen.block_tables[2:] == [[0] * 8] * 2


def test_nothing_of_an_earlier_step_is_left() -> None:
    graphed, model, _ = make((2, 4))
    run(graphed, decode([32, 32, 32, 32], first_block=1))
    run(graphed, decode([1], first_block=2))
    assert model.seen[-1].block_tables == [[2] + [0] * 7, [0] * 8]
    run(graphed, decode([4, 4, 4], first_block=3))
    assert model.seen[-1].block_tables == [[3] + [0] * 7, [4] + [0] * 7, [5] + [0] * 7, [0] * 8]
    assert model.seen[-1].slots == [3000, 3001, 3002, -1]


def test_a_step_that_was_made_where_its_graph_reads_it_is_not_copied() -> None:
    graphed, model, capture = make((2, 4))
    run(graphed, decode([9, 10, 11, 12], first_block=1))
    place = graphed.inputs_for(3)
    assert place is not None
    assert place.metadata.num_decodes == 4, "empty rows are rows of the step"
    inputs = decode([5, 30, 2], first_block=2)
    place.copy_from(*(inputs[name] for name in ("token_ids", "positions", "slot_mapping", "attention_metadata")))
    rows, num_seen = place.rows, len(model.seen)
    output = graphed.forward(
        token_ids=rows.token_ids,
        positions=rows.positions,
        slot_mapping=rows.slot_mapping,
        attention_metadata=place.metadata,
        kv_cache=graphed.kv_cache,
    )
    assert torch.equal(output[:3], eager(inputs))
    assert len(output) == 4
    assert (capture.sizes, len(model.seen)) == ([4], num_seen + 1)
    assert model.seen[-1].slots == [2000, 2001, 2002, -1]
    with pytest.raises(AssertionError, match="the KV cache with which it was captured"):
        graphed.forward(
            token_ids=rows.token_ids,
            positions=rows.positions,
            slot_mapping=rows.slot_mapping,
            attention_metadata=place.metadata,
            kv_cache=make_cache(),
        )


@pytest.mark.parametrize("sizes", [(), (2,)])
def test_where_there_is_no_graph_there_is_no_place_for_its_inputs(sizes: tuple[int, ...]) -> None:
    graphed, _, _ = make(sizes)
    assert graphed.inputs_for(3) is None


def test_a_graph_is_told_the_worst_case_on_the_host() -> None:
    graphed, model, _ = make((4,))
    run(graphed, decode([3, 3]))
    metadata = model.seen[-1].metadata
    assert metadata.kv_lens_host == (MAX_TOTAL_TOKENS,) * 4
    assert metadata.query_lens_host == (1,) * 4
    assert metadata.num_decodes == 4
    assert metadata.query_start.tolist() == [0, 1, 2, 3, 4]


def test_the_largest_size_is_captured_before_any_other_and_the_rest_when_needed() -> None:
    graphed, _, capture = make((1, 2, 4, 8))
    assert capture.sizes == []
    run(graphed, decode([5, 6]))
    assert capture.sizes == [8, 2]
    run(graphed, decode([5, 6], first_block=2))
    run(graphed, decode([5] * 5))
    assert capture.sizes == [8, 2]
    run(graphed, decode([5] * 3))
    assert capture.sizes == [8, 2, 4]


def test_time_to_spare_is_used_from_the_largest_size_down() -> None:
    graphed, _, capture = make((1, 2, 4))
    while graphed.capture_next():
        pass
    assert capture.sizes == [4, 2, 1]
    run(graphed, decode([5]))
    assert capture.sizes == [4, 2, 1]


def test_all_sizes_are_captured_at_once_where_it_is_asked_for() -> None:
    graphed, _, capture = make((1, 2, 4))
    graphed.capture_all()
    assert capture.sizes == [4, 2, 1]


@pytest.mark.parametrize(
    ("sizes", "used", "expected"),
    [
        ((), [], 0),
        ((2,), [7, 107, 107], 100),
        ((1, 2, 4, 8), [7, 1007, 1007 + 8 * 2**20], 1000 + 3 * 8 * 2**20),
        ((1, 2), [7, 1007, 1008], 1000 + LEAST_GRAPH_BYTES),
    ],
)
def test_the_memory_of_graphs_is_judged_by_the_two_largest(sizes: tuple[int, ...], used: list[int], expected: int) -> None:
    graphed, _, capture = make(sizes)
    largest = sizes[-1] if sizes else 0
    inputs = largest * (3 * 8 + 4 + 4 * MAX_TOTAL_TOKENS // BLOCK_SIZE) + (4 * (largest + 1) if sizes else 0)
    assert graphed.measure_bytes(iter(used).__next__) == inputs + expected
    assert capture.sizes == list(sizes[::-1][:2])


def test_only_attention_that_reads_its_lengths_on_the_device_is_captured() -> None:
    cuda = torch.device("cuda", 0)
    assert choose_capture(cuda, "flash-attn") is CudaCapture
    assert choose_capture(cuda, "triton") is CudaCapture
    assert choose_capture(cuda, "reference") is None
    assert choose_capture(CPU, "triton") is None


def test_a_capture_sees_only_empty_rows() -> None:
    graphed, model, _ = make((2, 4))
    run(graphed, decode([5, 6, 7]))
    graphed.capture_next()
    assert model.seen[-1].slots == [-1, -1]
    assert model.seen[-1].kv_lens == [0, 0]
    assert model.seen[-1].block_tables == [[0] * 8] * 2
    inputs = decode([5, 6, 7], first_block=5)
    assert torch.equal(run(graphed, inputs), eager(inputs))


@pytest.mark.parametrize("sizes", [(), (2,)])
def test_a_batch_above_the_largest_size_runs_as_it_is(sizes: tuple[int, ...]) -> None:
    graphed, model, _ = make(sizes)
    inputs = decode([5, 6, 7])
    assert torch.equal(run(graphed, inputs), eager(inputs))
    assert model.seen[-1].metadata is inputs["attention_metadata"]


def prefill() -> dict[str, Any]:
    return {
        "token_ids": torch.arange(4),
        "positions": torch.arange(4),
        "slot_mapping": torch.arange(4),
        "attention_metadata": metadata_of([[1], [2]], [1, 3], [4, 3], 1),
    }


def test_a_step_with_a_prefill_runs_as_it_is() -> None:
    graphed, model, capture = make((4,))
    run(graphed, prefill())
    assert capture.sizes == []
    assert model.seen[-1].metadata.query_lens_host == (1, 3)


def test_another_kv_cache_is_never_reached_through_a_graph() -> None:
    graphed, model, capture = make((4,))
    inputs = decode([5, 6])
    graphed.forward(**inputs, kv_cache=make_cache())
    assert capture.sizes == []
    assert model.seen[-1].metadata is inputs["attention_metadata"]


def test_a_size_without_memory_is_given_up_and_the_others_stay(caplog: pytest.LogCaptureFixture) -> None:
    graphed, _, capture = make((1, 2, 8), FakeCapture(fails_above=4))
    for kv_lens in ([5] * 8, [5, 6], [5] * 8, [3]):
        inputs = decode(kv_lens)
        assert torch.equal(run(graphed, inputs), eager(inputs))
    assert capture.sizes == [8, 2, 1]
    assert "no memory for a CUDA graph of 8 rows" in caplog.text


def test_a_size_without_memory_is_an_error_where_other_ranks_have_it() -> None:
    limits = GraphLimits(sizes=(1, 8), max_total_tokens=MAX_TOTAL_TOKENS, is_alone=False)
    capture = FakeCapture(fails_above=4)
    graphed = GraphedModel(FakeModel(), kv_cache=make_cache(), limits=limits, capture=capture, device=CPU)
    with pytest.raises(torch.OutOfMemoryError):
        graphed.capture_all()


def test_the_rest_of_the_model_is_the_model() -> None:
    graphed, _, _ = make((4,))
    assert list(graphed.wanted()) == ["weight"]
    assert graphed.logits(torch.ones(1)).tolist() == [2.0]


def test_sizes_come_from_the_list_or_from_the_default() -> None:
    assert graph_sizes([32, 1, 4, 4], 16) == (1, 4, 16)
    assert graph_sizes([0], 16) == ()
    assert graph_sizes([], 16) == ()
    assert graph_sizes(None, 3) == (1, 2, 3)
    assert graph_sizes(None, 20) == (1, 2, 4, 8, 16, 20)
    assert graph_sizes(None, 1) == (1,)
    assert graph_sizes(None, 1000)[-1] == 256
    with pytest.raises(ValueError, match="cuda graphs are asked for -2 rows"):
        graph_sizes([1, -2], 16)
