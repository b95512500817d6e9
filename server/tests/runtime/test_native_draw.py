"""The native kernel draws what PyTorch draws: the same filters, the same order of tokens, the same random numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from text_gen_server import native
from text_gen_server.ops.native_draw import draw
from text_gen_server.plan import SamplingParameters
from text_gen_server.sampling import sampler
from text_gen_server.sampling.filters import filter_logits
from text_gen_server.sampling.processors import SamplingRow
from text_gen_server.sampling.rng import to_signed, uniform
from torch import Tensor

NUM_DRAWS = 200
SAMPLED = SamplingParameters(do_sample=True)
FILTERS = {
    "temperature": {"temperature": 0.7},
    "high temperature": {"temperature": 30.0},
    "tiny temperature": {"temperature": 1e-30},
    "top_k": {"top_k": 50},
    "top_k of one": {"top_k": 1, "temperature": 5.0},
    "top_k of all but one": {"top_k": 4999},
    "top_k above the vocabulary": {"top_k": 2**62},
    "top_p": {"top_p": 0.9},
    "small top_p": {"top_p": 1e-6},
    "large top_p": {"top_p": 0.999999, "temperature": 2.0},
    "min_p": {"min_p": 0.02},
    "min_p of one": {"min_p": 1.0},
    "typical_p": {"typical_p": 0.8},
    "all": {"temperature": 1.4, "top_k": 200, "top_p": 0.8, "min_p": 0.001},
}


@pytest.fixture(params=[name for name in native.INSTRUCTION_SETS if native.choose_instruction_set(name)])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    best = native.instruction_set()
    assert native.choose_instruction_set(request.param)
    yield request.param
    assert native.choose_instruction_set(best)


def logits_of(kind: str, size: int = 5000) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(size, generator=generator)
    if kind == "peaked":
        return logits * 4
    if kind == "ties":
        return (logits * 2).round()
    if kind == "masked":
        return logits.masked_fill(torch.rand(size, generator=generator) < 0.9, -torch.inf)
    return logits


def rows_of(parameters: SamplingParameters, count: int = NUM_DRAWS) -> list[SamplingRow]:
    seeds = [n * 0x123456789ABCDEF % 2**64 for n in range(count)]
    return [SamplingRow(replace(parameters, seed=seed), np.zeros(1 + n % 300, np.int64), 1) for n, seed in enumerate(seeds)]


def distance_to_boundary(logits: Tensor, rows: Sequence[SamplingRow], token_ids: Tensor) -> Tensor:
    """How far each random number is from the part of the probability, in exact sums, that belongs to the token drawn."""
    parameters = [row.parameters for row in rows]
    cumulative = filter_logits(logits, parameters).double().softmax(-1).cumsum(-1)
    seeds = torch.tensor([to_signed(row.parameters.seed) for row in rows])
    number = uniform(seeds, torch.tensor([row.position for row in rows]))
    end = cumulative.gather(1, token_ids.unsqueeze(1)).squeeze(1)
    start = torch.where(token_ids > 0, cumulative.gather(1, (token_ids - 1).clamp(min=0).unsqueeze(1)).squeeze(1), 0.0)
    return torch.maximum(start - number, number - end).clamp(min=0)


@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "masked"])
@pytest.mark.parametrize("name", FILTERS)
def test_draws_are_those_of_pytorch_but_where_rounding_decides(name: str, kind: str) -> None:
    logits = logits_of(kind).expand(NUM_DRAWS, -1)
    rows = rows_of(replace(SAMPLED, **FILTERS[name]))
    found, expected = draw(logits, rows), sampler.draw(logits, rows)
    assert (found != expected).sum() <= 2
    assert distance_to_boundary(logits, rows, found).max() < 1e-5


@pytest.mark.usefixtures("instruction_set")
@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "all"])
def test_every_instruction_set_draws_the_same(name: str) -> None:
    logits = logits_of("peaked", 1003).expand(NUM_DRAWS, -1)
    rows = rows_of(replace(SAMPLED, **FILTERS[name]))
    assert (draw(logits, rows) != sampler.draw(logits, rows)).sum() <= 2


@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "masked"])
@pytest.mark.parametrize(
    "filters",
    [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.3}, {"top_k": 20, "top_p": 0.7, "min_p": 0.1}, {}],
    ids=["top_k", "top_p", "min_p", "all", "none"],
)
def test_exactly_the_tokens_that_the_filters_keep_are_drawn(filters: dict[str, float], kind: str) -> None:
    logits = logits_of(kind, 40)
    parameters = replace(SAMPLED, temperature=5.0, **filters)
    kept = filter_logits(logits.unsqueeze(0), [parameters])[0].isfinite().nonzero().flatten()
    drawn = draw(logits.expand(3000, -1), rows_of(parameters, 3000))
    assert torch.equal(drawn.unique(), kept)


def test_a_row_is_drawn_the_same_alone_and_among_others() -> None:
    logits = torch.stack([logits_of(kind) for kind in ("flat", "peaked", "ties", "masked")])
    rows = [
        replace_parameters(row, name) for row, name in zip(rows_of(SAMPLED, 4), ("all", "top_p", "top_k", "min_p"), strict=True)
    ]
    alone = [draw(logits[n : n + 1], rows[n : n + 1]) for n in range(4)]
    assert torch.equal(draw(logits, rows), torch.cat(alone))
    padded = torch.cat([logits, torch.full((4, 7), 99.0)], dim=1)[:, :-7]  # rows that are further apart than they are long
    assert torch.equal(draw(padded, rows), torch.cat(alone))


def replace_parameters(row: SamplingRow, name: str) -> SamplingRow:
    return SamplingRow(replace(row.parameters, **FILTERS[name]), row.token_ids, row.prompt_len)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 255, 256, 257])
def test_vocabularies_of_any_size_are_drawn_from(size: int) -> None:
    logits = logits_of("peaked", size).expand(NUM_DRAWS, -1)
    for name in ("temperature", "top_p", "all"):
        rows = rows_of(replace(SAMPLED, **FILTERS[name]))
        assert (draw(logits, rows) != sampler.draw(logits, rows)).sum() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", sorted(FILTERS.keys() - {"typical_p"}))
def test_rows_that_are_not_finite_give_some_token(name: str, value: float) -> None:
    logits = logits_of("flat", 300).repeat(3, 1)
    logits[0, 5] = value
    logits[2] = value
    rows = [replace_parameters(row, name) for row in rows_of(SAMPLED, 3)]
    found = draw(logits, rows)
    assert int(found.min()) >= 0
    assert int(found.max()) < 300
    assert found[1] == sampler.draw(logits[1:2], rows[1:2])[0]
