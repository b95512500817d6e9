"""A runner that samples with the kernels answers as one that samples with PyTorch: tokens, log-probabilities, top tokens."""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from runtime.fakes import FakeRouter, token_of
from text_gen_server import shard as shard_module
from text_gen_server.config import load_model_config
from text_gen_server.ops.pytorch import PyTorchOps
from text_gen_server.plan import RowResult, SampledToken, SamplingParameters, StepPlan
from text_gen_server.sampling import fused
from text_gen_server.sampling.choose import choose_sampler
from text_gen_server.sampling.sampler import Sample, sample
from text_gen_server.shard import PrepareParameters, Shard, ShardOptions
from tiny_models import write_model

V = 300
CPU = torch.device("cpu")
SAMPLED = SamplingParameters(do_sample=True, temperature=1.3)
KINDS = (
    SamplingParameters(num_top_tokens=3),
    SAMPLED,
    replace(SAMPLED, top_k=20, top_p=0.9, num_top_tokens=2),
    replace(SAMPLED, typical_p=0.8, min_p=0.02, repetition_penalty=1.3),
    SamplingParameters(frequency_penalty=0.8, presence_penalty=0.4, prompt_logprobs=True),
    replace(SAMPLED, logit_bias=((7, 3.0),), min_new_tokens=3, end_token_ids=(5, 7)),
    replace(SAMPLED, watermark_gamma=0.5, watermark_delta=2.0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("llama"), "llama", num_hidden_layers=1, vocab_size=V)


def masked(plan: StepPlan, sequence_id: int, allowed: range) -> StepPlan:
    bits = sum(1 << token_id for token_id in allowed).to_bytes(-(-V // 32) * 4, "little")
    rows = tuple(replace(row, masked=row.sequence_id == sequence_id) for row in plan.rows)
    return replace(plan, rows=rows, masks=((sequence_id, bits),))


def run(folder: Path, chosen: Sample, monkeypatch: pytest.MonkeyPatch) -> list[RowResult]:
    """Every answer of a schedule with prefills, decodes, a mask and a sequence that leaves."""
    monkeypatch.setattr(shard_module, "choose_sampler", lambda *_: chosen)
    shard = Shard(ShardOptions(model_dir=folder, device="cpu", dtype="float32"), load_model_config(folder))
    shard.prepare(PrepareParameters(max_batch_prefill_tokens=64, max_batch_size=8, max_total_tokens=64))
    assert shard.runner is not None
    router, chance = FakeRouter(shard.runner), random.Random(3)
    for n, kind in enumerate(KINDS):
        router.add(n, [chance.randrange(V) for _ in range(n + 1)], sampling=replace(kind, seed=n))
    found = list(router.step(**{f"s{n}": n + 1 for n in range(len(KINDS))}).values())
    for step in range(6):
        if step == 3:
            router.forget(1)
        plan = router.plan(**{f"s{n}": 1 for n in range(len(KINDS)) if step < 3 or n != 1})
        found += shard.runner.step(masked(plan, step, range(40, 60)) if step != 1 else plan).rows
    return found


def test_all_kinds_of_rows_are_answered_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, found = (run(folder, chosen, monkeypatch) for chosen in (sample, fused.sample))
    assert [(row.sequence_id, token_of(row)) for row in found] == [(row.sequence_id, token_of(row)) for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours.outcome, SampledToken)
        assert isinstance(theirs.outcome, SampledToken)
        assert ours.outcome.logprob == pytest.approx(theirs.outcome.logprob, abs=1e-5)
        assert [token for token, _ in ours.outcome.top_tokens] == [token for token, _ in theirs.outcome.top_tokens]
        assert [p for _, p in ours.outcome.top_tokens] == pytest.approx([p for _, p in theirs.outcome.top_tokens], abs=1e-5)
        assert ours.prompt_logprobs == theirs.prompt_logprobs


def test_kernels_sample_on_a_gpu_and_pytorch_elsewhere() -> None:
    ops = PyTorchOps(torch.float32)
    assert choose_sampler(torch.device("cuda", 0), ops.summarize, ops.draw) is fused.sample
    chosen = choose_sampler(CPU, ops.summarize, ops.draw)
    assert isinstance(chosen, partial)
    assert (chosen.func, chosen.keywords) == (sample, {"summarize": ops.summarize, "draw": ops.draw})
