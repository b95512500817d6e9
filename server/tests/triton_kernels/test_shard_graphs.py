"""A shard drives its model through graphs where its device has them, gives the same answers, and has counted their memory."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime.fakes import FakeRouter, token_of
from runtime.test_cuda_graphs import FakeCapture
from text_gen_server import shard as shard_module
from text_gen_server.attention.interface import Attention
from text_gen_server.config import load_model_config
from text_gen_server.cuda_graphs import LEAST_GRAPH_BYTES, GraphedModel
from text_gen_server.memory import MIB
from text_gen_server.plan import PlanLimits, SamplingParameters
from text_gen_server.sampling import fused
from text_gen_server.sampling.processors import SamplingRow
from text_gen_server.sampling.sampler import Samples
from text_gen_server.shard import PrepareParameters, Shard, ShardOptions
from text_gen_server.step_inputs import DeviceInputs, FillDecodeRows
from text_gen_server.transfers import Transfers
from text_gen_server.triton_kernels import decode_rows, plain
from text_gen_server.warm_up import EVERYTHING, PROMPT_LOGPROBS, run_step
from tiny_models import write_model

LIMITS = PrepareParameters(max_batch_prefill_tokens=32, max_batch_size=4, max_total_tokens=64)
SAMPLED = SamplingParameters(do_sample=True, temperature=1.5, seed=3, num_top_tokens=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=1, vocab_size=300)


def make_shard(folder: Path, cuda_graphs: tuple[int, ...] | None) -> Shard:
    options = ShardOptions(model_dir=folder, device="cpu", dtype="float32", attention="triton", cuda_graphs=cuda_graphs)
    return Shard(options, load_model_config(folder))


def answers(shard: Shard) -> list[tuple[int, int, list[int]]]:
    """(sequence, token, most likely tokens) of a prefill and some decode steps of a shrinking batch."""
    assert shard.runner is not None
    router = FakeRouter(shard.runner)
    for n in range(3):
        router.add(n, list(range(5, 9 + n)), sampling=SAMPLED if n else None)
    found = [router.step(s0=4, s1=5, s2=6)]
    found += [router.step(s0=1, s1=1, s2=1) for _ in range(2)]
    router.forget(1)
    found += [router.step(s2=1, s0=1) for _ in range(2)]
    rows = [row for step in found for row in step.values()]
    return [(row.sequence_id, token_of(row), [token for token, _ in row.outcome.top_tokens]) for row in rows]  # type: ignore[union-attr]


def test_a_shard_with_graphs_answers_as_one_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = make_shard(folder, None)
    without.prepare(LIMITS)
    assert not isinstance(without.runner.model, GraphedModel)
    capture = FakeCapture()
    monkeypatch.setattr(shard_module, "choose_capture", lambda *_: lambda: capture)
    graphed = make_shard(folder, (2, 9))
    graphed.prepare(LIMITS)
    assert isinstance(graphed.runner.model, GraphedModel)
    assert capture.sizes == [4, 2], "all are captured before the first plan; none is larger than a batch"
    assert answers(graphed) == answers(without)
    assert capture.sizes == [4, 2]


@pytest.mark.parametrize("fill", [decode_rows.fill_decode_rows, plain.fill_decode_rows])
def test_a_shard_whose_steps_are_made_where_graphs_read_them_answers_as_one_without(
    fill: FillDecodeRows, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = make_shard(folder, None)
    without.prepare(LIMITS)
    expected = answers(without)
    made_for: list[GraphedModel | None] = []

    def on_device(_: torch.device, limits: PlanLimits, transfers: Transfers, graphed: GraphedModel | None) -> DeviceInputs:
        made_for.append(graphed)
        return DeviceInputs(limits, transfers, torch.device("cpu"), graphed=graphed, fill=fill)

    monkeypatch.setattr(shard_module, "choose_inputs", on_device)
    for capture in (FakeCapture(), None):
        make_capture = None if capture is None else lambda capture=capture: capture
        monkeypatch.setattr(shard_module, "choose_capture", lambda *_, made=make_capture: made)
        shard = make_shard(folder, (2, 3))
        shard.prepare(LIMITS)
        assert answers(shard) == expected
    assert [graphed is not None for graphed in made_for] == [True, False]


def test_zero_means_no_graphs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capture = FakeCapture()
    monkeypatch.setattr(shard_module, "choose_capture", lambda *_: lambda: capture)
    make_shard(folder, (0,)).prepare(LIMITS)
    assert capture.sizes == []


def test_the_kv_cache_is_sized_from_what_the_worst_step_and_the_graphs_leave(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "choose_capture", lambda *_: FakeCapture)
    used = iter([0, 0, 10 * MIB, 11 * MIB])  # before the step, before the graphs, after the first, after the second
    monkeypatch.setattr(shard_module, "cuda_used_bytes", lambda _: next(used))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 * MIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 25 * MIB)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    shard = make_shard(folder, (1, 2, 4))
    activation_bytes, graph_bytes = shard._measure_steps(shard._plan_limits(LIMITS))
    assert activation_bytes == 20 * MIB
    assert 0 <= graph_bytes - (10 * MIB + 2 * LEAST_GRAPH_BYTES) < MIB


def test_the_worst_step_has_all_tokens_and_asks_everything_of_every_row(folder: Path) -> None:
    shard = make_shard(folder, None)
    shard.prepare(LIMITS)
    assert shard.runner is not None
    asked: list[tuple[torch.Size, int, int]] = []
    tokens: list[int] = []

    def remember(logits: torch.Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes] | None = None) -> Samples:
        asked.append((logits.shape, sum(row.is_penalized and row.is_processed for row in rows), len(masks or ())))
        tokens.append(sum(row.num_tokens for row in rows))
        return fused.sample(logits, rows, masks)

    shard.runner.sample = remember
    run_step(shard.runner, num_tokens=36, sampling=EVERYTHING, masked=True)
    assert (asked, tokens) == ([(torch.Size([4, 300]), 4, 4)], [36])
    assert not shard.runner.mirrors
    defaults = SamplingParameters()
    left_out = {field.name for field in fields(defaults) if getattr(EVERYTHING, field.name) == getattr(defaults, field.name)}
    assert left_out == {"seed", "prompt_logprobs"}, "what a step may be asked for is asked for"


def test_blocks_that_the_first_choice_cannot_read_get_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choose = shard_module.choose_attention

    def choose_by_size(name: str, *, block_size: int | None = None, **options: Any) -> Attention:
        return choose("cpu" if block_size is None else name, **options)

    monkeypatch.setattr(shard_module, "choose_attention", choose_by_size)
    shard = make_shard(folder, None)
    shard.prepare(replace(LIMITS, block_size=8))
    assert shard.attention.name == "triton"
    assert "attention triton for blocks of 8 tokens, not cpu" in caplog.text
    monkeypatch.undo()
    usual = make_shard(folder, None)
    usual.prepare(LIMITS)
    assert answers(shard) == answers(usual)


def test_one_prompt_as_long_as_a_step_gives_all_its_log_probabilities(folder: Path) -> None:
    shard = make_shard(folder, None)
    shard.prepare(LIMITS)
    assert shard.runner is not None
    seen: list[int] = []
    logits = shard.runner.model.logits

    def remember(hidden: torch.Tensor) -> torch.Tensor | None:
        seen.append(len(hidden))
        return logits(hidden)

    shard.runner.model.logits = remember  # type: ignore[method-assign]
    run_step(shard.runner, num_tokens=36, sampling=PROMPT_LOGPROBS, most_sequences=1)
    assert seen == [35, 1], "those of the prompt, and those of the token that is sampled"


def test_the_thread_of_the_model_takes_the_device_of_its_rank(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    shard = make_shard(folder, None)
    shard.claim_thread()
    assert taken == []
    shard.device = torch.device("cuda", 3)
    shard.claim_thread()
    assert taken == [torch.device("cuda", 3)]


def test_on_a_cpu_sizes_of_graphs_are_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_shard(folder, (0,))
    assert caplog.text == ""
    make_shard(folder, (1, 2))
    assert "no CUDA graphs on cpu with attention triton: --cuda-graphs has no effect" in caplog.text
