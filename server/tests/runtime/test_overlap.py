"""Steps that are launched before the one before is collected give the tokens of steps one by one."""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from text_gen_server.launched import LaunchedStep
from text_gen_server.plan import RowError, SamplingParameters, StepPlan, StepResult
from text_gen_server.runner import Runner
from text_gen_server.step_inputs import HostInputs

from runtime.fakes import POISON, FakeModel, FakeRouter, fake_runner, generate, token_of
from runtime.late_device import LateTransfers, no_reads, on_device
from runtime.test_step_inputs import BothInputs

GREEDY = SamplingParameters()
SAMPLED = SamplingParameters(do_sample=True, temperature=1.5)
KINDS = (
    GREEDY,
    SAMPLED,
    replace(SAMPLED, repetition_penalty=1.4),
    replace(GREEDY, frequency_penalty=0.9, presence_penalty=0.4),
    replace(SAMPLED, watermark_gamma=0.5, watermark_delta=4.0),
    replace(SAMPLED, min_new_tokens=4, end_token_ids=(3, 5), num_top_tokens=2, prompt_logprobs=True),
)
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32]


@pytest.fixture
def runner(babbling_folder: Path) -> Runner:
    return late_runner(babbling_folder)


def late_runner(babbling_folder: Path, make_inputs: Any = HostInputs) -> Runner:
    runner = fake_runner(babbling_folder, num_blocks=100, transfers=LateTransfers(), make_inputs=make_inputs)
    runner.model = on_device(FakeModel())
    return runner


def launch(runner: Runner, plan: StepPlan) -> LaunchedStep:
    """Launches on a host that must not look at the device, unless a row needs its history."""
    if any(row.sequence_id in HISTORY_IDS for row in plan.rows):
        return runner.launch(plan)
    with no_reads():
        return runner.launch(plan)


HISTORY_IDS = {n for n in range(12) if 2 <= n % len(KINDS) <= 4}


@dataclass
class OneAhead:
    """A router that plans a step before it has seen the answer to the one before."""

    runner: Runner
    router: FakeRouter
    tokens: dict[int, list[int]]
    chance: random.Random
    prompts: dict[int, list[int]]
    outstanding: list[tuple[StepPlan, LaunchedStep]] = field(default_factory=list)
    lives: dict[int, int] = field(default_factory=dict)  # how often a sequence was added, to tell late answers apart
    lives_at: dict[int, dict[int, int]] = field(default_factory=dict)  # step id -> lives when it was planned
    num_tokens: dict[int, int] = field(default_factory=dict)  # prompt, sampled and to be sampled by what is planned

    def add(self, n: int) -> None:
        known = self.prompts[n] + self.tokens[n]
        self.router.add(n, known, prompt_len=len(self.prompts[n]), sampling=kind(n))
        self.lives[n] = self.lives.get(n, 0) + 1
        self.num_tokens[n] = len(known)

    def plan(self) -> StepPlan:
        rows = {}
        for n in self.chance.sample(sorted(self.tokens), self.chance.randint(0, 6)):
            if n not in self.lives:
                self.add(n)
            elif len(self.tokens[n]) < 12 and self.chance.random() < 0.15:
                # Preempted with a token on its way, which is sampled again later.
                self.router.forget(n)
                self.add(n)
            left = self.num_tokens[n] - self.router.computed[n]
            count = left if self.chance.random() < 0.7 else self.chance.randint(1, left)
            if self.num_tokens[n] > 60:
                continue
            rows[f"s{n}"] = count
            self.num_tokens[n] += count == left
        plan = self.router.plan(**rows)
        self.lives_at[plan.step_id] = dict(self.lives)
        return plan

    def apply(self, plan: StepPlan, result: StepResult) -> None:
        assert result.step_id == plan.step_id
        for row in result.rows:
            n = row.sequence_id
            if row.outcome is not None and self.lives_at[plan.step_id][n] == self.lives[n]:
                self.tokens[n].append(token_of(row))

    def step(self) -> None:
        plan = self.plan()
        launched = launch(self.runner, plan)
        if self.outstanding:
            before, launched_before = self.outstanding.pop(0)
            self.apply(before, self.runner.collect(launched_before))
        self.outstanding.append((plan, launched))


def kind(n: int) -> SamplingParameters:
    return replace(KINDS[n % len(KINDS)], seed=n)


@pytest.mark.parametrize("make_inputs", [HostInputs, BothInputs])
@pytest.mark.parametrize("seed", range(8))
def test_random_schedules_one_step_ahead_give_the_tokens_of_each_sequence_alone(
    babbling_folder: Path, seed: int, make_inputs: Any
) -> None:
    chance = random.Random(seed)
    prompts = {n: [chance.randrange(90) for _ in range(chance.randint(1, 12))] for n in range(12)}
    runner = late_runner(babbling_folder, make_inputs)
    ahead = OneAhead(runner, FakeRouter(runner), {n: [] for n in prompts}, chance, prompts)
    for _ in range(60):
        ahead.step()
    alone = fake_runner(babbling_folder)
    for n, prompt in prompts.items():
        found = ahead.tokens[n]
        assert found == (generate(alone, prompt, len(found), kind(n)) if found else [])
    assert sum(map(len, ahead.tokens.values())) > 60
    assert make_inputs is HostInputs or runner.inputs.num_by_device > 5  # type: ignore[attr-defined]


def test_nothing_is_read_before_the_answer_where_no_row_needs_its_history(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(0, PROMPT)
    router.add(1, PROMPT, sampling=SAMPLED)
    first = launch(runner, router.plan(s0=9, s1=9))
    second = launch(runner, router.plan(s0=1, s1=1))
    assert not first.download.is_ready()
    for launched in (first, second):
        assert len(runner.collect(launched).rows) == 2


def test_a_row_that_needs_its_history_waits_for_the_step_before_and_other_rows_do_not(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(0, PROMPT, sampling=replace(GREEDY, repetition_penalty=1.5))
    router.add(1, PROMPT)
    first = runner.launch(router.plan(s0=9, s1=9))
    second = runner.launch(router.plan(s1=1))
    assert not first.download.is_ready()
    third = runner.launch(router.plan(s0=1))
    assert first.download.is_ready(), "only one step may be outstanding"
    fourth = runner.launch(router.plan(s0=1))
    assert third.download.is_ready(), "the token of the third step is part of the history"
    for launched in (first, second, third, fourth):
        runner.collect(launched)
    assert runner.mirrors[0].token_ids.min() >= 0


def test_a_token_of_a_step_before_the_last_is_known_even_if_nobody_has_collected_it(runner: Runner) -> None:
    expected = generate(runner, PROMPT, 2)
    router = FakeRouter(runner)
    router.add(0, PROMPT)
    router.add(1, PROMPT[:3])
    router.add(2, PROMPT[:5])
    steps = [launch(runner, router.plan(s0=9)), launch(runner, router.plan(s1=3, s2=5))]
    steps.append(runner.launch(router.plan(s0=1)))
    results = [runner.collect(step) for step in steps]
    assert [token_of(results[0].rows[0]), token_of(results[2].rows[0])] == expected


def test_a_token_of_a_row_that_failed_is_token_0_on_the_device_too(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(1, [POISON])
    router.add(2, PROMPT)
    first = runner.launch(router.plan(s1=1, s2=9))
    second = runner.launch(router.plan(s2=1, s1=1))
    third_plan = router.plan(s1=1, s2=1)
    assert runner.collect(first).rows[0].outcome is RowError.NUMERICAL
    third = runner.launch(third_plan)
    tokens = [token_of(runner.collect(launched).rows[-launched.plan.step_id % 2]) for launched in (second, third)]
    assert runner.mirrors[1].token_ids.tolist() == [POISON, 0, 0, 0]
    assert tokens == generate(fake_runner_like(runner), PROMPT, 3)[1:]


def fake_runner_like(runner: Runner) -> Runner:
    runner.forget_all()
    return runner


def test_a_bad_plan_changes_nothing_while_a_step_is_on_its_way(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(1, PROMPT)
    first = runner.launch(router.plan(s1=9))
    good = router.plan(s1=1)
    with pytest.raises(ValueError, match="is not held"):
        runner.launch(replace(good, forget=(7,)))
    with pytest.raises(ValueError, match="2 tokens scheduled, 1 left"):
        runner.launch(replace(good, rows=(replace(good.rows[0], num_scheduled_tokens=2),)))
    second = runner.launch(good)
    tokens = [token_of(runner.collect(launched).rows[0]) for launched in (first, second)]
    assert tokens == generate(fake_runner_like(runner), PROMPT, 2)


def test_everything_can_be_forgotten_while_a_step_is_on_its_way(runner: Runner) -> None:
    expected = generate(runner, PROMPT, 3)
    router = FakeRouter(runner)
    router.add(1, PROMPT[:4])
    late = runner.launch(router.plan(s1=4))
    runner.forget_all()
    assert runner.mirrors == {}
    assert generate(runner, PROMPT, 3) == expected
    assert len(runner.collect(late).rows) == 1, "its answer can still be read"
    assert runner.mirrors == {}


def test_a_rank_without_logits_does_not_wait_for_histories(babbling_folder: Path) -> None:
    class SecondRank:
        rank, world_size = 1, 2

        def broadcast_from_rank0(self, tensor: torch.Tensor) -> None:
            tensor.fill_(42)

    class NoLogits(FakeModel):
        def logits(self, hidden: torch.Tensor) -> None:  # type: ignore[override]  # noqa: ARG002
            return None

    runner = fake_runner(babbling_folder, tensor_parallel=SecondRank(), transfers=LateTransfers())  # type: ignore[arg-type]
    runner.model = on_device(NoLogits())
    router = FakeRouter(runner)
    router.add(1, PROMPT, sampling=replace(GREEDY, repetition_penalty=1.5, prompt_logprobs=True))
    with no_reads():
        first = runner.launch(router.plan(s1=9))
        second = runner.launch(router.plan(s1=1))
    assert not first.download.is_ready()
    assert [runner.collect(launched).rows for launched in (first, second)] == [(), ()]
    assert runner.mirrors[1].token_ids.tolist() == [*PROMPT, 42, 42]
