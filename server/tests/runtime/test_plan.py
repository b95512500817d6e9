"""A plan that is out of range is refused by name, value and limit, before it changes anything."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from text_gen_server.plan import NewSequence, Row, SamplingParameters, StepPlan

from runtime.fakes import VOCABULARY, FakeRouter, fake_runner

PROMPT = (5, 6, 7)


def new(sequence_id: int = 9, token_ids: tuple[int, ...] = PROMPT, prompt_len: int = 3, **more: Any) -> NewSequence:
    return NewSequence(sequence_id=sequence_id, token_ids=token_ids, prompt_len=prompt_len, **more)


def row(sequence_id: int, count: int, *block_ids: int) -> Row:
    return Row(sequence_id=sequence_id, num_scheduled_tokens=count, new_block_ids=block_ids)


def plan(*rows: Row, add: tuple[NewSequence, ...] = (), forget: tuple[int, ...] = ()) -> StepPlan:
    return StepPlan(step_id=2, forget=forget, new_sequences=add, rows=rows)


BAD_PLANS = {
    "token id at the vocabulary's end": (plan(add=(new(token_ids=(5, VOCABULARY, 7)),)), "token id 97 is not below"),
    "no tokens": (plan(add=(new(token_ids=(), prompt_len=0),)), "has 0 tokens"),
    "too many tokens": (plan(add=(new(token_ids=(1,) * 101, prompt_len=101),)), "has 101 tokens, it needs 1 to 100"),
    "prompt longer than the tokens": (plan(add=(new(prompt_len=4),)), "prompt_len is 4"),
    "no prompt": (plan(add=(new(prompt_len=0),)), "prompt_len is 0"),
    "everything computed": (plan(add=(new(num_computed_tokens=3),)), "num_computed_tokens is 3"),
    "block id at the cache's end": (plan(row(9, 3, 64), add=(new(),)), "block id 64 is not below 64"),
    "nothing scheduled": (plan(row(1, 0)), "num_scheduled_tokens is 0"),
    "more scheduled than known": (plan(row(1, 2, 3)), "2 tokens scheduled, 1 left"),
    "no block for the tokens": (plan(row(9, 3), add=(new(),)), "3 tokens do not fit in its blocks of 0 tokens"),
    "a block too few": (plan(row(9, 5, 3), add=(new(token_ids=(1,) * 5),)), "5 tokens do not fit in its blocks of 4 tokens"),
    "cached tokens without their blocks": (
        plan(row(9, 1, 3), add=(new(token_ids=(1,) * 9, num_computed_tokens=8),)),
        "9 tokens do not fit in its blocks of 4 tokens",
    ),
    "unknown sequence in a row": (plan(row(2, 1, 3)), "schedules sequence 2, which is not held"),
    "row of a forgotten sequence": (plan(row(1, 1, 3), forget=(1,)), "schedules sequence 1, which is not held"),
    "two rows of a sequence": (plan(row(1, 1, 3), row(1, 1, 4)), "schedules sequence 1 twice"),
    "unknown sequence to forget": (plan(forget=(2,)), "forgets sequence 2, which is not held"),
    "forgotten twice": (plan(forget=(1, 1)), "forgets sequence 1 twice"),
    "added though held": (plan(add=(new(1),)), "adds sequence 1, which is held already"),
    "added twice": (plan(add=(new(), new())), "adds sequence 9 twice"),
    "too many rows": (plan(*(row(n, 1) for n in range(17))), "has 17 rows, the limit is 16"),
    "too many tokens in the step": (plan(row(1, 201)), "schedules 201 tokens, the limit is 200"),
}

BAD_SAMPLING: dict[str, Any] = {
    "temperature": (0.0, -1.0, float("nan"), float("inf")),
    "top_k": (-1,),
    "top_p": (0.0, 1.5, float("nan")),
    "typical_p": (0.0, 1.5, float("nan")),
    "min_p": (-0.1, 1.5, float("nan")),
    "seed": (-1, 2**64),
    "repetition_penalty": (0.0, float("nan"), float("inf")),
    "frequency_penalty": (float("nan"), float("-inf"), 1e7),
    "presence_penalty": (float("nan"), float("inf"), -1e7),
    "min_new_tokens": (-1,),
    "num_top_tokens": (-1, VOCABULARY + 1),
    "logit_bias": (((5, float("nan")),), ((5, float("inf")),), ((VOCABULARY, 1.0),)),
    "end_token_ids": ((VOCABULARY,), (-1,)),
    "watermark_gamma": (-0.1, 1.0, float("nan")),
    "watermark_delta": (float("nan"), float("inf"), 1e7, 1.0),  # the last without a gamma
}


def holding_sequence_1(babbling_folder: Path) -> FakeRouter:
    """With a token sampled and not yet computed."""
    router = FakeRouter(fake_runner(babbling_folder))
    router.add(1, list(PROMPT))
    router.step(s1=3)
    return router


@pytest.fixture
def router(babbling_folder: Path) -> FakeRouter:
    return holding_sequence_1(babbling_folder)


@pytest.mark.parametrize(("bad", "message"), BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_plan_out_of_range_is_refused_and_changes_nothing(babbling_folder: Path, bad: StepPlan, message: str) -> None:
    router, undisturbed = holding_sequence_1(babbling_folder), holding_sequence_1(babbling_folder)
    with pytest.raises(ValueError, match=message):
        router.runner.step(bad)
    assert list(router.runner.mirrors) == [1]
    assert router.step(s1=1) == undisturbed.step(s1=1)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_SAMPLING.items() for value in values])
def test_a_sampling_parameter_out_of_range_is_refused_by_name(router: FakeRouter, name: str, value: Any) -> None:
    bad = new(sampling=replace(SamplingParameters(), **{name: value}))
    wanted = "token id" if name == "end_token_ids" or value == ((VOCABULARY, 1.0),) else name
    with pytest.raises(ValueError, match=wanted):
        router.runner.step(plan(add=(bad,)))


def test_sampling_parameters_at_their_limits_are_accepted(router: FakeRouter) -> None:
    extreme = SamplingParameters(
        do_sample=True,
        temperature=1e-30,
        top_k=2**32 - 1,
        min_p=1.0,
        seed=2**64 - 1,
        repetition_penalty=1e30,
        frequency_penalty=1e6,
        presence_penalty=-1e6,
        logit_bias=((0, 1e6), (0, -1e6)),
        min_new_tokens=2**32 - 1,
        end_token_ids=tuple(range(VOCABULARY)),
        num_top_tokens=VOCABULARY,
        watermark_gamma=1e-30,
        watermark_delta=1e6,
    )
    router.add(2, list(PROMPT), sampling=extreme)
    outcome = router.step(s2=3)[2].outcome
    assert outcome is not None
    assert len(outcome.top_tokens) == VOCABULARY  # type: ignore[union-attr]
