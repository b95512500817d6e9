"""A runner whose model is replayed from a recording answers like one that calls it, whatever a step asks for."""

from dataclasses import replace
from pathlib import Path

import pytest
from text_gen_server.config import load_model_config
from text_gen_server.plan import Row, RowResult, SamplingParameters, StepPlan
from text_gen_server.recorded import RecordedModel
from text_gen_server.runner import Runner
from text_gen_server.shard import PrepareParameters, Shard, ShardOptions
from tiny_models import write_model

from runtime.fakes import FakeRouter

LIMITS = PrepareParameters(max_batch_prefill_tokens=40, max_batch_size=8, max_total_tokens=100, max_batch_total_tokens=2048)
TOKENS = [*range(5, 90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("qwen3"), "qwen3", dtype="bfloat16")


def prepared(folder: Path) -> Runner:
    shard = Shard(ShardOptions(model_dir=folder, device="cpu"), load_model_config(folder))
    shard.prepare(LIMITS)
    assert shard.runner is not None
    assert isinstance(shard.runner.model, RecordedModel)
    return shard.runner


def without_recording(runner: Runner) -> Runner:
    assert isinstance(runner.model, RecordedModel)
    runner.model = runner.model.model
    return runner


def answers(runner: Runner) -> list[dict[int, RowResult]]:
    """Of chunks, mixed steps and decodes, greedy and drawn, with and without log-probabilities of the prompt."""
    router = FakeRouter(runner)
    found = []
    router.add(1, TOKENS[:60], sampling=SamplingParameters(prompt_logprobs=True, num_top_tokens=3))
    found.append(router.step(s1=48))  # the most a step may have, and nothing is sampled
    found.append(router.step(s1=5))
    router.add(2, TOKENS[50:], sampling=SamplingParameters(do_sample=True, temperature=1.2, top_p=0.9, seed=5))
    found.append(router.step(s1=7, s2=30))
    found.append(router.step(s1=1, s2=5))
    router.add(3, TOKENS[7:8])
    found += [router.step(s1=1, s2=1, s3=1) for _ in range(5)]
    router.forget(1)
    found += [router.step(s3=1) for _ in range(2)]
    return found


def test_steps_from_a_recording_give_the_same_answers(folder: Path) -> None:
    assert answers(prepared(folder)) == answers(without_recording(prepared(folder)))


def test_a_step_that_fails_leaves_the_next_one_right(folder: Path) -> None:
    expected, runner = answers(without_recording(prepared(folder))), prepared(folder)
    runner.step(FakeRouter(runner).plan())
    model = runner.model
    with pytest.raises(ValueError, match="not held"):
        runner.step(StepPlan(step_id=9, rows=(Row(sequence_id=77, num_scheduled_tokens=1),)))
    # After the forward: nobody brings the mask of the row.
    router = FakeRouter(runner)
    router.add(9, TOKENS[:9])
    plan = router.plan(s9=9)
    masked = replace(plan, rows=tuple(replace(row, masked=True) for row in plan.rows))
    with pytest.raises(AssertionError, match="brings all its masks"):
        runner.step(masked)
    runner.forget_all()
    assert answers(runner) == expected
    assert runner.model is model


def test_tables_of_any_width_are_read_as_they_are(folder: Path) -> None:
    """Block tables of one step after another, wider and narrower."""
    runner, direct = prepared(folder), without_recording(prepared(folder))
    for length in (48, 1, 33, 16, 17):
        found = []
        for each in (runner, direct):
            router = FakeRouter(each)
            router.add(1, TOKENS[:length])
            found.append([router.step(s1=length), router.step(s1=1)])
            router.forget(1)
            router.step()
        assert found[0] == found[1]
