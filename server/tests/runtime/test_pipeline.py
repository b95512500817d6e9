"""The pipeline launches a plan while the one before computes, answers in order, and never waits for what needs its answer."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
from text_gen_server.pipeline import Answer, StepPipeline, Stream
from torch import Tensor

from runtime.fakes import VOCABULARY, FakeModel, FakeRouter, fake_runner, generate, token_of
from runtime.late_device import LateDownload, LateTransfers, on_device

PROMPT = [3, 14, 15, 92]
PATIENCE = 20  # seconds until a test that waits in vain fails


class Gates(LateTransfers):
    """A device whose n-th step is done when `gates[n]` is set; says how many steps it was given."""

    def __init__(self) -> None:
        super().__init__([threading.Event() for _ in range(8)])
        self.launched = threading.Semaphore(0)

    def download(self, tensors: Sequence[Tensor]) -> LateDownload:
        download = super().download(tensors)
        self.launched.release()
        return download

    def wait_for_launch(self) -> None:
        assert self.launched.acquire(timeout=PATIENCE)


class Setup:
    def __init__(self, folder: Path) -> None:
        self.device = Gates()
        self.runner = fake_runner(folder, transfers=self.device)
        self.runner.model = on_device(FakeModel())
        self.router = FakeRouter(self.runner)
        self.claims: list[str] = []
        self.pipeline = StepPipeline(lambda: self.claims.append(threading.current_thread().name))
        self.stream = Stream(self.runner)
        self.expected = generate(fake_runner(folder), PROMPT, 4)

    def finish(self, *steps: int) -> None:
        for step in steps:
            self.device.gates[step].set()


@pytest.fixture
def setup(babbling_folder: Path) -> Iterator[Setup]:
    setup = Setup(babbling_folder)
    setup.router.add(1, PROMPT)
    yield setup
    setup.finish(*range(8))
    setup.stream.masks.close()
    setup.pipeline.close()


def token(answer: Answer) -> int:
    return token_of(answer.result.rows[0])


def test_a_plan_that_comes_while_a_step_computes_is_launched_at_once(setup: Setup) -> None:
    first = setup.pipeline.submit(setup.router.plan(s1=4), setup.stream)
    setup.device.wait_for_launch()
    second = setup.pipeline.submit(setup.router.plan(s1=1), setup.stream)
    setup.device.wait_for_launch()
    assert not first.done()
    setup.finish(0)
    assert token(first.result(PATIENCE)) == setup.expected[0]
    assert not second.done()
    third = setup.pipeline.submit(setup.router.plan(s1=1), setup.stream)
    setup.device.wait_for_launch()
    setup.finish(1, 2)
    assert [token(answer.result(PATIENCE)) for answer in (second, third)] == setup.expected[1:3]
    assert setup.pipeline.last_step_id == 3
    assert [name.split("_")[0] for name in setup.claims] == ["model"]


def test_a_step_that_waits_for_its_mask_lets_the_answer_go_that_the_mask_depends_on(setup: Setup) -> None:
    first = setup.pipeline.submit(setup.router.plan(s1=4), setup.stream)
    plan = setup.router.plan(s1=1)
    second = setup.pipeline.submit(replace(plan, rows=(replace(plan.rows[0], masked=True),)), setup.stream)
    setup.finish(0, 1)
    assert token(first.result(PATIENCE)) == setup.expected[0]
    setup.stream.masks.put(plan.step_id, {1: (1 << 77).to_bytes(-(-VOCABULARY // 32) * 4, "little")})
    assert token(second.result(PATIENCE)) == 77


def test_a_step_that_waits_for_its_mask_ends_with_its_stream(setup: Setup) -> None:
    plan = setup.router.plan(s1=4)
    answer = setup.pipeline.submit(replace(plan, rows=(replace(plan.rows[0], masked=True),)), setup.stream)
    behind = setup.pipeline.submit(setup.router.plan(s1=1), setup.stream)
    setup.stream.masks.close()
    for cancelled in (answer, behind):
        with pytest.raises(CancelledError):
            cancelled.result(PATIENCE)


def test_a_bad_plan_ends_the_stream_behind_the_answers_before_it(setup: Setup) -> None:
    first = setup.pipeline.submit(setup.router.plan(s1=4), setup.stream)
    bad = setup.pipeline.submit(setup.router.plan(s1=2), setup.stream)
    behind = setup.pipeline.submit(setup.router.plan(), setup.stream)
    with pytest.raises(ValueError, match="2 tokens scheduled"):
        bad.result(PATIENCE)
    with pytest.raises(CancelledError):
        behind.result(PATIENCE)
    setup.finish(0)
    assert token(first.result(PATIENCE)) == setup.expected[0]


def test_what_fails_on_the_device_is_the_answer_to_its_step(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: LateDownload) -> None:
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(LateDownload, "wait", fail)
    first = setup.pipeline.submit(setup.router.plan(s1=4), setup.stream)
    with pytest.raises(RuntimeError, match="device-side assert"):
        first.result(PATIENCE)
    with pytest.raises(CancelledError):
        setup.pipeline.submit(setup.router.plan(), setup.stream).result(PATIENCE)


def test_a_stream_that_ends_with_a_step_on_its_way_leaves_nothing_to_the_next(setup: Setup) -> None:
    late = setup.pipeline.submit(setup.router.plan(s1=4), setup.stream)
    setup.device.wait_for_launch()
    setup.pipeline.forget_all(setup.stream).result(PATIENCE)
    assert late.cancelled()
    assert setup.runner.mirrors == {}
    setup.router = FakeRouter(setup.runner)
    setup.router.add(1, PROMPT)
    setup.stream = Stream(setup.runner)
    answers = [setup.pipeline.submit(setup.router.plan(s1=count), setup.stream) for count in (4, 1, 1)]
    setup.finish(*range(8))
    assert [token(answer.result(PATIENCE)) for answer in answers] == setup.expected[:3]


def test_closing_waits_for_the_launched_step_and_drops_the_plans_behind_it(setup: Setup) -> None:
    plan = setup.router.plan(s1=4)
    masked = replace(plan, rows=(replace(plan.rows[0], masked=True),))
    waiting = setup.pipeline.submit(masked, setup.stream)
    behind = setup.pipeline.submit(setup.router.plan(s1=1), setup.stream)
    closing = threading.Thread(target=setup.pipeline.close)
    closing.start()
    with pytest.raises(CancelledError):
        behind.result(PATIENCE)
    setup.stream.masks.close()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE)
    with pytest.raises(RuntimeError):
        setup.pipeline.submit(plan, setup.stream)


def test_the_time_of_a_step_begins_when_the_step_before_is_done(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = [0]
    monkeypatch.setattr("text_gen_server.pipeline.time.perf_counter_ns", lambda: now_ms[0] * 10**6)
    first = setup.pipeline.submit(setup.router.plan(s1=4), setup.stream)
    second = setup.pipeline.submit(setup.router.plan(s1=1), setup.stream)
    for _ in range(2):
        setup.device.wait_for_launch()
    now_ms[0] = 10
    setup.finish(0)
    assert first.result(PATIENCE).compute_us == 10_000
    now_ms[0] = 13
    setup.finish(1)
    assert second.result(PATIENCE).compute_us == 3_000
