"""How a sequence was computed never shows in its tokens: alone or in a batch, whole or in chunks, preempted or not."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from text_gen_server.plan import RowError, SampledToken, SamplingParameters, StepPlan
from text_gen_server.runner import Runner

from runtime.fakes import POISON, FakeModel, FakeRouter, fake_runner, generate, hash_of, token_of

GREEDY = SamplingParameters()
SAMPLED = SamplingParameters(do_sample=True, temperature=1.5, seed=7)
PENALIZED = replace(SAMPLED, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.2, top_p=0.9, top_k=40)
KINDS = {"greedy": GREEDY, "sampled": SAMPLED, "penalized": PENALIZED}
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32]


@pytest.fixture
def runner(babbling_folder: Path) -> Runner:
    return fake_runner(babbling_folder)


@pytest.mark.parametrize("sampling", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 8])
def test_a_prompt_in_chunks_gives_the_tokens_of_a_prompt_as_a_whole(
    runner: Runner, sampling: SamplingParameters, chunk: int
) -> None:
    expected = generate(runner, PROMPT, 6, sampling)
    router = FakeRouter(runner)
    router.add(1, PROMPT, sampling=sampling)
    left = len(PROMPT)
    while left > chunk:
        assert router.step(s1=chunk) == {}
        left -= chunk
    tokens = [token_of(router.step(s1=left)[1])]
    tokens += [token_of(router.step(s1=1)[1]) for _ in range(5)]
    assert tokens == expected


def test_eight_sequences_together_give_the_tokens_of_each_alone(runner: Runner) -> None:
    kinds = [replace(kind, seed=n) for n, kind in enumerate([*KINDS.values()] * 3)][:8]
    prompts = [PROMPT[: n + 1] for n in range(8)]
    expected = [generate(runner, prompt, 6, kind) for prompt, kind in zip(prompts, kinds, strict=True)]
    router = FakeRouter(runner)
    for n, (prompt, kind) in enumerate(zip(prompts, kinds, strict=True)):
        router.add(n, prompt, sampling=kind)
    tokens = [[token_of(row)] for row in router.step(**{f"s{n}": n + 1 for n in range(8)}).values()]
    for _ in range(5):
        for n, row in router.step(**{f"s{n}": 1 for n in range(8)}).items():
            tokens[n].append(token_of(row))
    assert tokens == expected


@pytest.mark.parametrize("sampling", KINDS.values(), ids=KINDS)
def test_a_preempted_sequence_continues_as_if_nothing_had_happened(runner: Runner, sampling: SamplingParameters) -> None:
    expected = generate(runner, PROMPT, 8, sampling)
    router = FakeRouter(runner)
    router.add(1, PROMPT, sampling=sampling)
    tokens = [token_of(router.step(s1=len(PROMPT))[1])]
    tokens += [token_of(router.step(s1=1)[1]) for _ in range(3)]
    router.forget(1)
    router.add(1, PROMPT + tokens, prompt_len=len(PROMPT), sampling=sampling)
    tokens.append(token_of(router.step(s1=len(PROMPT) + 4)[1]))
    tokens += [token_of(router.step(s1=1)[1]) for _ in range(3)]
    assert tokens == expected


def test_random_schedules_of_many_sequences_give_the_tokens_of_each_alone(babbling_folder: Path) -> None:
    runner = fake_runner(babbling_folder, num_blocks=100)
    chance = random.Random(5)
    kinds = list(KINDS.values())
    prompts = {n: [chance.randrange(90) for _ in range(chance.randint(1, 20))] for n in range(10)}
    expected = {n: generate(runner, prompt, 10, replace(kinds[n % 3], seed=n)) for n, prompt in prompts.items()}
    router = FakeRouter(runner)
    tokens: dict[int, list[int]] = {n: [] for n in prompts}
    for n, prompt in prompts.items():
        router.add(n, prompt, sampling=replace(kinds[n % 3], seed=n))
    router.step()
    while sum(len(found) < 10 for found in tokens.values()) > 2:
        rows = {}
        for n in chance.sample([n for n in prompts if len(tokens[n]) < 15], chance.randint(1, 3)):
            if len(tokens[n]) < 10 and chance.random() < 0.1:
                router.forget(n)
                router.add(n, prompts[n] + tokens[n], prompt_len=len(prompts[n]), sampling=replace(kinds[n % 3], seed=n))
            left = len(prompts[n]) + len(tokens[n]) - router.computed[n]
            rows[f"s{n}"] = chance.randint(1, left)
        for n, row in router.step(**rows).items():
            tokens[n].append(token_of(row))
    assert {n: found[:10] for n, found in tokens.items()} == {n: found[: len(tokens[n])] for n, found in expected.items()}


def test_tokens_of_the_prefix_cache_need_not_be_computed_again(runner: Runner) -> None:
    expected = generate(runner, PROMPT, 3)
    router = FakeRouter(runner)
    router.add(1, PROMPT)
    router.step(s1=len(PROMPT))
    shared = router.tables[1][:2]
    router.add(2, PROMPT)
    router.to_add[0] = replace(router.to_add[0], num_computed_tokens=8)
    router.tables[2], router.computed[2] = list(shared), 8
    plan = router.plan(s2=1)
    plan = replace(plan, rows=(replace(plan.rows[0], new_block_ids=(*shared, *plan.rows[0].new_block_ids)),))
    tokens = [token_of(runner.step(plan).rows[0])]
    tokens += [token_of(router.step(s2=1)[2]) for _ in range(2)]
    assert tokens == expected


@pytest.mark.parametrize("chunk", [1, 3, 4, 9])
def test_prompt_logprobs_over_chunks_are_those_of_the_whole_prompt(runner: Runner, chunk: int) -> None:
    logits = FakeModel().logits(torch.tensor([hash_of(PROMPT[:end]) for end in range(1, len(PROMPT))]).unsqueeze(1))
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(PROMPT[1:]).unsqueeze(1)).flatten()
    router = FakeRouter(runner)
    router.add(1, PROMPT, sampling=SamplingParameters(prompt_logprobs=True))
    found: list[float] = []
    left = len(PROMPT)
    while left:
        count = min(chunk, left)
        left -= count
        rows = router.step(s1=count)
        found += rows[1].prompt_logprobs if 1 in rows else ()
        assert left == 0 or len(found) == len(PROMPT) - left
    torch.testing.assert_close(torch.tensor(found), expected)
    assert router.step(s1=1)[1].prompt_logprobs == ()


def test_prompt_logprobs_in_slices_are_those_of_one_piece(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    def logprobs() -> tuple[float, ...]:
        router = FakeRouter(runner)
        router.add(1, PROMPT, sampling=SamplingParameters(prompt_logprobs=True))
        found = router.step(s1=len(PROMPT))[1].prompt_logprobs
        router.forget(1)
        router.step()
        return found

    whole = logprobs()
    monkeypatch.setattr("text_gen_server.runner.PROMPT_LOGITS_BYTES", 4 * 97 * 3)
    assert logprobs() == whole


def test_prompt_logprobs_of_a_sequence_that_comes_back_end_with_its_prompt(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(1, [*PROMPT, 50, 51, 52], prompt_len=len(PROMPT), sampling=SamplingParameters(prompt_logprobs=True))
    assert len(router.step(s1=11)[1].prompt_logprobs) == len(PROMPT) - 1
    assert router.step(s1=1)[1].prompt_logprobs == ()


def test_a_row_that_is_not_finite_fails_alone_and_its_neighbours_are_untouched(runner: Runner) -> None:
    expected = generate(runner, PROMPT, 2)
    router = FakeRouter(runner)
    router.add(1, [POISON], sampling=SAMPLED)
    router.add(2, PROMPT)
    router.add(3, [POISON])
    rows = router.step(s1=1, s2=len(PROMPT), s3=1)
    assert rows[1].outcome is RowError.NUMERICAL
    assert rows[3].outcome is RowError.NUMERICAL
    # The router may have planned the next step before it saw the error.
    following = router.step(s1=1, s2=1, s3=1)
    assert [token_of(rows[2]), token_of(following[2])] == expected


def test_prompt_logprobs_that_are_not_finite_are_an_error_of_the_row(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(1, [1, POISON, 2, 3, 4], sampling=SamplingParameters(prompt_logprobs=True))
    row = router.step(s1=3)[1]
    assert row.outcome is RowError.NUMERICAL
    assert row.prompt_logprobs == ()


def test_the_logprob_of_a_token_is_of_the_raw_logits(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(1, PROMPT, sampling=replace(PENALIZED, num_top_tokens=3, logit_bias=((50, 1000.0),)))
    outcome = router.step(s1=len(PROMPT))[1].outcome
    assert isinstance(outcome, SampledToken)
    assert outcome.token_id == 50
    raw = FakeModel().logits(torch.tensor([[hash_of(PROMPT)]])).log_softmax(-1)[0]
    assert outcome.logprob == pytest.approx(raw[50].item(), abs=1e-5)
    values, ids = raw.topk(3)
    assert [token_id for token_id, _ in outcome.top_tokens] == ids.tolist()
    assert [logprob for _, logprob in outcome.top_tokens] == pytest.approx(values.tolist(), abs=1e-5)


def test_each_row_gets_as_many_top_tokens_as_it_asked_for(runner: Runner) -> None:
    router = FakeRouter(runner)
    for n, count in enumerate((0, 4, 2)):
        router.add(n, PROMPT, sampling=SamplingParameters(num_top_tokens=count))
    rows = router.step(s0=9, s1=9, s2=9)
    assert [len(rows[n].outcome.top_tokens) for n in range(3)] == [0, 4, 2]  # type: ignore[union-attr]


def test_a_plan_without_rows_is_answered_and_forgets(runner: Runner) -> None:
    router = FakeRouter(runner)
    router.add(1, PROMPT)
    router.step(s1=9)
    router.forget(1)
    assert router.step() == {}
    assert runner.mirrors == {}


def test_the_cache_is_told_of_every_block_before_it_is_written(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[int] = []
    monkeypatch.setattr(type(runner.kv_cache), "expect", lambda _, block_ids: expected.extend(block_ids))
    router = FakeRouter(runner)
    router.add(1, PROMPT)
    router.add(2, PROMPT[:3])
    router.step(s1=5, s2=3)
    assert expected == router.tables[1] + router.tables[2]
    router.step(s1=4, s2=1)
    router.step(s1=1, s2=1)
    assert sorted(expected) == sorted(router.tables[1] + router.tables[2])


def test_a_rank_other_than_0_takes_the_broadcast_tokens_and_answers_without_rows(babbling_folder: Path) -> None:
    class SecondRank:
        rank, world_size = 1, 2

        def broadcast_from_rank0(self, tensor: torch.Tensor) -> None:
            tensor.fill_(42)

    class NoLogits(FakeModel):
        def logits(self, hidden: torch.Tensor) -> None:  # type: ignore[override]  # noqa: ARG002
            return None

    runner = fake_runner(babbling_folder, tensor_parallel=SecondRank())  # type: ignore[arg-type]
    runner.model = NoLogits()
    router = FakeRouter(runner)
    router.add(1, PROMPT, sampling=SamplingParameters(prompt_logprobs=True))
    assert router.step(s1=9) == {}
    assert runner.mirrors[1].token_ids.tolist() == [*PROMPT, 42]
    assert runner.step(StepPlan(step_id=2)).rows == ()
