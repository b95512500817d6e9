"""Random numbers, processors, filters and the sampler: known answers, references, and the distribution that comes out."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from text_gen_server.plan import SamplingParameters
from text_gen_server.sampling.filters import filter_logits
from text_gen_server.sampling.processors import SamplingRow, process
from text_gen_server.sampling.rng import GOLDEN, MIX_1, MIX_2, to_signed, uniform
from text_gen_server.sampling.sampler import most_likely, sample, token_logprobs
from text_gen_server.sampling.summary import log_normalizer
from transformers.generation import logits_process as reference

GREEDY = SamplingParameters()
SAMPLED = SamplingParameters(do_sample=True)
EVERYTHING = SamplingParameters(
    do_sample=True,
    temperature=0.7,
    top_k=30,
    top_p=0.9,
    typical_p=0.95,
    min_p=0.01,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.1,
    logit_bias=((3, 2.0),),
    watermark_gamma=0.25,
    watermark_delta=1.5,
    min_new_tokens=9,
    end_token_ids=(1, 2),
)


def row(parameters: SamplingParameters = GREEDY, tokens: tuple[int, ...] = (0,), prompt_len: int = 1) -> SamplingRow:
    return SamplingRow(parameters, np.array(tokens, dtype=np.int64), prompt_len)


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def splitmix(bits: int) -> int:
    bits = (bits ^ (bits >> 30)) * MIX_1 % 2**64
    bits = (bits ^ (bits >> 27)) * MIX_2 % 2**64
    return bits ^ (bits >> 31)


def test_the_finalizer_is_that_of_splitmix64() -> None:
    # First outputs of the published generator for the seed 1234567.
    outputs = [splitmix((1234567 + n * GOLDEN) % 2**64) for n in (1, 2, 3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_numbers_are_those_of_unsigned_64_bit_arithmetic() -> None:
    chance = random.Random(3)
    pairs = [(chance.getrandbits(64), chance.getrandbits(31)) for _ in range(500)]
    pairs += [(0, 0), (2**64 - 1, 0), (2**63, 1), (2**63 - 1, 2**31 - 1)]
    seeds = torch.tensor([to_signed(seed) for seed, _ in pairs])
    positions = torch.tensor([position for _, position in pairs])
    keys = [splitmix((seed + GOLDEN) % 2**64) for seed, _ in pairs]
    bits = [splitmix((key + (position + 1) * GOLDEN) % 2**64) for key, (_, position) in zip(keys, pairs, strict=True)]
    assert uniform(seeds, positions).tolist() == [(value >> 11) * 2.0**-53 for value in bits]


@pytest.mark.parametrize("along", ["seeds", "positions"])
def test_uniform_numbers_are_uniform_and_their_neighbours_independent(along: str) -> None:
    count = torch.arange(200_000)
    fixed = torch.zeros_like(count)
    numbers = uniform(count, fixed) if along == "seeds" else uniform(fixed, count)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    cells = (numbers[:-1] * 20).long() * 20 + (numbers[1:] * 20).long()
    assert chi_square(torch.bincount(cells, minlength=400), torch.full((400,), 1 / 400)) < 400 + 5 * 28


def test_a_greedy_batch_is_an_argmax_and_touches_nothing() -> None:
    logits = random_logits(4, 100)
    before = logits.clone()
    rows = [row()] * 4
    assert process(logits, rows) is logits
    assert sample(logits, rows).token_ids.tolist() == before.argmax(-1).tolist()
    assert torch.equal(logits, before)


def test_processors_leave_the_raw_logits_alone() -> None:
    logits = random_logits(2, 100)
    before = logits.clone()
    sample(logits, [row(EVERYTHING, (1, 2, 3, 3), 2)] * 2)
    assert torch.equal(logits, before)


def test_the_repetition_penalty_is_that_of_transformers_over_prompt_and_generated_tokens() -> None:
    logits = random_logits(3, 50)
    tokens = [(1, 2, 3, 3, 7), (9, 9), (4,)]
    ours = process(
        logits, [row(replace(GREEDY, repetition_penalty=p), t) for p, t in zip((1.3, 0.7, 1.0), tokens, strict=True)]
    )
    for n, penalty in enumerate((1.3, 0.7)):
        theirs = reference.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens[n]]), logits[n : n + 1].clone())
        torch.testing.assert_close(ours[n : n + 1], theirs)
    assert torch.equal(ours[2], logits[2])


def test_frequency_and_presence_penalties_count_generated_tokens_only() -> None:
    logits = random_logits(2, 10)
    parameters = replace(GREEDY, frequency_penalty=0.5, presence_penalty=0.25)
    ours = process(logits, [row(parameters, (1, 1, 4, 2, 2, 2, 5), 3), row(parameters, (6,), 1)])
    expected = logits.clone()
    expected[0, 2] -= 3 * 0.5 + 0.25
    expected[0, 5] -= 0.5 + 0.25
    torch.testing.assert_close(ours, expected)


def test_logit_bias_is_added_once_per_entry() -> None:
    logits = random_logits(2, 10)
    ours = process(logits, [row(replace(GREEDY, logit_bias=((3, 5.0), (3, 1.0), (4, -2.0)))), row()])
    expected = logits.clone()
    expected[0, 3] += 6
    expected[0, 4] -= 2
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("num_generated", "is_banned"), [(0, True), (1, True), (2, False)])
@pytest.mark.parametrize("kind", [GREEDY, SAMPLED])
def test_end_tokens_cannot_be_sampled_before_min_new_tokens(
    num_generated: int, is_banned: bool, kind: SamplingParameters
) -> None:
    logits = torch.zeros(1, 10)
    logits[0, 7] = 100.0
    parameters = replace(kind, min_new_tokens=2, end_token_ids=(7,))
    sampled = sample(logits, [row(parameters, (1,) * (3 + num_generated), 3)]).token_ids.item()
    assert (sampled != 7) == is_banned


def test_banning_every_token_still_gives_a_token() -> None:
    parameters = replace(SAMPLED, min_new_tokens=2, end_token_ids=tuple(range(10)))
    samples = sample(random_logits(1, 10), [row(parameters)])
    assert 0 <= samples.token_ids.item() < 10
    assert samples.is_finite.all()


FILTERS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "temperature": ({"temperature": 0.6}, [reference.TemperatureLogitsWarper(0.6)]),
    "top_k": ({"top_k": 7}, [reference.TopKLogitsWarper(7)]),
    "top_p": ({"top_p": 0.8}, [reference.TopPLogitsWarper(0.8)]),
    "small top_p": ({"top_p": 0.01}, [reference.TopPLogitsWarper(0.01)]),
    "typical_p": ({"typical_p": 0.6}, [reference.TypicalLogitsWarper(0.6)]),
    "min_p": ({"min_p": 0.1}, [reference.MinPLogitsWarper(0.1)]),
    "all": (
        {"temperature": 1.4, "top_k": 60, "top_p": 0.9, "typical_p": 0.8, "min_p": 0.05},
        [
            reference.TemperatureLogitsWarper(1.4),
            reference.TopKLogitsWarper(60),
            reference.TopPLogitsWarper(0.9),
            reference.TypicalLogitsWarper(0.8),
            reference.MinPLogitsWarper(0.05),
        ],
    ),
}


@pytest.mark.parametrize(("changes", "references"), FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("vocabulary", [100, 5000])
def test_filters_leave_the_distribution_of_transformers(
    changes: dict[str, Any], references: list[Any], vocabulary: int
) -> None:
    logits = random_logits(6, vocabulary) * (0.2 if vocabulary > 1000 else 1.0)  # flat: more than the candidates are needed
    ours = filter_logits(logits, [replace(SAMPLED, **changes)] * 6).softmax(-1)
    theirs = logits.clone()
    for warper in references:
        theirs = warper(torch.zeros(6, 1, dtype=torch.int64), theirs)
    torch.testing.assert_close(ours, theirs.softmax(-1))


def test_filters_of_one_row_do_not_reach_another() -> None:
    logits = random_logits(4, 100)
    kinds = [replace(SAMPLED, top_k=1), SAMPLED, replace(SAMPLED, top_p=0.1), replace(SAMPLED, typical_p=0.2)]
    together = filter_logits(logits, kinds)
    for n, kind in enumerate(kinds):
        assert torch.equal(together[n], filter_logits(logits[n : n + 1], [kind])[0])


def test_a_top_k_above_the_vocabulary_is_off() -> None:
    logits = random_logits(2, 10)
    off = filter_logits(logits, [SAMPLED] * 2)
    assert torch.equal(filter_logits(logits, [replace(SAMPLED, top_k=2**32 - 1)] * 2), off)
    assert torch.equal(filter_logits(logits, [replace(SAMPLED, top_k=10)] * 2), off)


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = random_logits(3, 100) * 1e30
    assert sample(logits, [row(replace(SAMPLED, temperature=1e-37))] * 3).token_ids.tolist() == logits.argmax(-1).tolist()


DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 2.0},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7},
    "typical_p": {"typical_p": 0.7},
    "min_p": {"min_p": 0.1},
    "all": {"temperature": 1.5, "top_k": 12, "top_p": 0.95, "typical_p": 0.9, "min_p": 0.02},
}


@pytest.mark.parametrize("changes", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_draws_follow_the_filtered_distribution(changes: dict[str, Any]) -> None:
    count, vocabulary = 20_000, 20
    parameters = replace(SAMPLED, **changes)
    logits = random_logits(1, vocabulary, seed=4) * 0.5
    expected = filter_logits(logits, [parameters]).softmax(-1)[0]
    found = torch.zeros(vocabulary, dtype=torch.int64)
    for start in range(0, count, 1000):
        rows = [row(replace(parameters, seed=start + n), (0,) * (n % 3 + 1)) for n in range(1000)]
        found += torch.bincount(sample(logits.expand(1000, -1), rows).token_ids, minlength=vocabulary)
    assert found[expected == 0].sum() == 0
    freedom = int((expected > 0).sum()) - 1
    assert chi_square(found[expected > 0], expected[expected > 0]) < freedom + 4 * (2 * freedom) ** 0.5 + 4


def chi_square(found: torch.Tensor, probabilities: torch.Tensor) -> float:
    expected = probabilities.double() * found.sum()
    return float(((found - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocabulary", [1000, 49152])
def test_eight_rows_together_are_bit_equal_to_each_alone(vocabulary: int, threads: int) -> None:
    torch.set_num_threads(threads)
    logits = random_logits(8, vocabulary)
    kinds = [GREEDY, SAMPLED, EVERYTHING, replace(SAMPLED, top_p=0.999), replace(SAMPLED, top_k=3), replace(SAMPLED, min_p=0.1)]
    kinds = [replace(kind, num_top_tokens=5, seed=n) for n, kind in enumerate([*kinds, SAMPLED, EVERYTHING])]
    rows = [row(kind, tuple(range(1, n + 3)), 2) for n, kind in enumerate(kinds)]
    together = sample(logits, rows)
    for n in range(8):
        alone = sample(logits[n : n + 1].clone(), rows[n : n + 1])
        for name in ("token_ids", "logprobs", "is_finite", "top_token_ids", "top_logprobs"):
            assert torch.equal(getattr(together, name)[n], getattr(alone, name)[0]), name
    torch.set_num_threads(1)


@pytest.mark.parametrize(("number", "expected"), [(0.0, 2), (0.4999, 2), (0.5, 5), (1 - 2**-53, 5)])
def test_the_ends_of_the_unit_interval_draw_tokens_that_are_possible(
    monkeypatch: pytest.MonkeyPatch, number: float, expected: int
) -> None:
    monkeypatch.setattr(
        "text_gen_server.sampling.sampler.uniform", lambda seeds, _: torch.full(seeds.shape, number, dtype=torch.float64)
    )
    logits = torch.zeros(1, 9)
    logits[0, [2, 5]] = 50.0
    assert sample(logits, [row(replace(SAMPLED, top_k=2))]).token_ids.item() == expected


def test_the_position_of_a_draw_is_the_index_of_its_token_in_the_sequence() -> None:
    assert row(tokens=(7, 8, 9, 7, 8), prompt_len=3).position == 5


def test_the_draw_depends_on_the_seed_and_on_the_position() -> None:
    logits = torch.zeros(1, 1000)
    seen = {sample(logits, [row(replace(SAMPLED, seed=seed), (0,) * position)]).token_ids.item()
            for seed in range(5) for position in range(1, 6)}  # fmt: skip
    assert len(seen) > 20
    again = [sample(logits, [row(replace(SAMPLED, seed=3), (0, 0))]).token_ids.item() for _ in range(3)]
    assert len(set(again)) == 1


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [GREEDY, SAMPLED, EVERYTHING])
def test_a_row_with_a_number_that_is_not_finite_is_marked_and_the_others_are_as_without_it(
    poison: float, kind: SamplingParameters
) -> None:
    logits = random_logits(3, 500)
    rows = [row(kind, (5, 6), 1)] * 3
    expected = sample(logits, rows)
    logits[1, 77] = poison
    samples = sample(logits, rows)
    assert samples.is_finite.tolist() == [True, False, True]
    assert samples.token_ids[1] == 0
    for n in (0, 2):
        assert samples.token_ids[n] == expected.token_ids[n]
        assert torch.equal(samples.logprobs[n], expected.logprobs[n])


def test_logprobs_are_the_log_softmax_of_the_raw_logits() -> None:
    logits = random_logits(5, 1000)
    ids = torch.tensor([0, 1, 2, 3, 999])
    expected = logits.double().log_softmax(-1)
    torch.testing.assert_close(
        token_logprobs(logits, ids).double(), expected.gather(-1, ids.unsqueeze(1))[:, 0], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(log_normalizer(logits * 100), (logits * 100).logsumexp(-1))


def test_the_most_likely_tokens_come_in_order_and_of_equals_the_lower_id_first() -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 3.0, 3.0, 0.0, -0.0, -5.0]])
    assert most_likely(logits, 8).tolist() == [[1, 3, 4, 0, 5, 6, 2, 7]]
    assert most_likely(torch.zeros(1, 5000), 4).tolist() == [[0, 1, 2, 3]]
    values = random_logits(3, 2000)
    assert most_likely(values, 20).tolist() == values.topk(20).indices.tolist()
    assert most_likely(values, 0).shape == (3, 0)


def mask(*token_ids: int, vocabulary: int = 100) -> bytes:
    """One bit each, in whole words of 32."""
    return sum(1 << token_id for token_id in token_ids).to_bytes(-(-vocabulary // 32) * 4, "little")


def test_a_masked_row_takes_the_most_likely_token_that_its_mask_allows() -> None:
    logits = random_logits(3, 100)
    before = logits.clone()
    allowed = (0, 31, 32, 99)
    samples = sample(logits, [row()] * 3, {1: mask(*allowed)})
    free = sample(logits, [row()] * 3)
    assert samples.token_ids[1] == max(allowed, key=lambda token_id: logits[1, token_id].item())
    assert samples.token_ids[[0, 2]].equal(free.token_ids[[0, 2]])
    among = logits[1, list(allowed)].log_softmax(-1)
    assert samples.logprobs[1].item() == pytest.approx(among.max().item(), abs=1e-5), "of the model's distribution among them"
    assert samples.logprobs[0] == free.logprobs[0]
    assert logits.equal(before)


@pytest.mark.parametrize("parameters", [SAMPLED, EVERYTHING, replace(SAMPLED, top_p=0.1), replace(SAMPLED, typical_p=0.2)])
def test_a_masked_row_draws_only_what_its_mask_allows_and_all_of_it(parameters: SamplingParameters) -> None:
    logits = random_logits(1, 100).expand(300, -1)
    rows = [row(replace(parameters, seed=n, min_new_tokens=0)) for n in range(300)]
    samples = sample(logits, rows, dict.fromkeys(range(300), mask(7, 50, 64)))
    assert set(samples.token_ids.tolist()) <= {7, 50, 64}
    assert samples.is_finite.all()
    if parameters is SAMPLED:
        share = torch.bincount(samples.token_ids, minlength=100)[[7, 50, 64]] / 300
        assert share.allclose(logits[0, [7, 50, 64]].softmax(-1), atol=0.1)


def test_a_masked_row_that_allows_one_token_gives_it_whatever_else_is_asked() -> None:
    logits = random_logits(1, 100)
    parameters = replace(EVERYTHING, logit_bias=((5, -100.0),), end_token_ids=(5,))
    assert sample(logits, [row(parameters)], {0: mask(5)}).token_ids.tolist() == [5]


def test_a_mask_of_every_token_changes_nothing() -> None:
    logits = random_logits(4, 100)
    rows = [row(replace(EVERYTHING, seed=n)) for n in range(4)]
    everything = dict.fromkeys(range(4), mask(*range(100)))
    assert sample(logits, rows, everything).token_ids.equal(sample(logits, rows).token_ids)
