"""The sampler's kernels choose the tokens that `sampling/` chooses, with the same log-probabilities and most likely tokens."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from text_gen_server.plan import SamplingParameters
from text_gen_server.sampling import fused, processors, rng
from text_gen_server.sampling.processors import SamplingRow, process
from text_gen_server.sampling.sampler import Samples, sample
from text_gen_server.sampling.summary import log_normalizer
from text_gen_server.transfers import upload
from text_gen_server.triton_kernels import sampler as kernels
from torch import Tensor

V = 300
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities that are meant

GREEDY = SamplingParameters()
SAMPLED = SamplingParameters(do_sample=True)


@pytest.fixture(autouse=True)
def _several_blocks_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 256)
    monkeypatch.setattr(kernels, "PENALTY_BLOCK", 128)


def row(parameters: SamplingParameters, tokens: tuple[int, ...] = (0,), prompt_len: int = 1) -> SamplingRow:
    return SamplingRow(parameters, np.array(tokens, dtype=np.int64), prompt_len)


def random_logits(num_rows: int, vocab_size: int = V, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def check(logits: Tensor, rows: list[SamplingRow], masks: dict[int, bytes] | None = None) -> Samples:
    before = logits.clone()
    ours, expected = fused.sample(logits, rows, masks), sample(logits, rows, masks)
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32)), "the raw logits are left alone"
    finite = expected.is_finite
    assert torch.equal(ours.is_finite, finite)
    assert ours.token_ids.tolist() == expected.token_ids.tolist()
    torch.testing.assert_close(ours.logprobs[finite], expected.logprobs[finite], atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.top_token_ids[finite], expected.top_token_ids[finite])
    torch.testing.assert_close(ours.top_logprobs[finite], expected.top_logprobs[finite], atol=1e-5, rtol=1e-5)
    return ours


FILTERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "hot": {"temperature": 2.0},
    "cold": {"temperature": 0.3},
    "top_k": {"top_k": 7},
    "top_k of all": {"top_k": V},
    "top_k of more than all": {"top_k": 2**32 - 1},
    "top_p": {"top_p": 0.8},
    "tiny top_p": {"top_p": 1e-6},
    "typical_p": {"typical_p": 0.6},
    "tiny typical_p": {"typical_p": 1e-6},
    "min_p": {"min_p": 0.1},
    "min_p of one": {"min_p": 1.0},
    "all": {"temperature": 1.4, "top_k": 60, "top_p": 0.9, "typical_p": 0.8, "min_p": 0.05},
}


@pytest.mark.parametrize("changes", FILTERS.values(), ids=FILTERS)
def test_draws_are_those_of_the_reference(changes: dict[str, Any]) -> None:
    logits = random_logits(4)
    logits[2:] = logits[2:].round()  # a threshold keeps or removes equals together
    check(logits, [row(replace(SAMPLED, seed=seed, **changes), (1,) * (seed + 1)) for seed in range(4)])


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = random_logits(3)
    logits[0, [290, 17, 130]] = 50.0
    logits[1] = 0.0
    logits[2, 299] = 50.0
    assert check(logits, [row(GREEDY)] * 3).token_ids.tolist() == [17, 0, 299]


@pytest.mark.parametrize("vocab_size", [1, 2, 31, 255, 256, 257])
def test_every_size_of_vocabulary(vocab_size: int) -> None:
    logits = random_logits(2, vocab_size)
    count = min(3, vocab_size)
    check(logits, [row(replace(GREEDY, num_top_tokens=count)), row(replace(SAMPLED, top_p=0.9, num_top_tokens=count))])


def test_the_blocks_that_ship_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    check(random_logits(2, 1500), [row(replace(SAMPLED, top_p=0.9, num_top_tokens=4)), row(GREEDY)])


def test_penalties_are_those_of_the_reference() -> None:
    logits = random_logits(4)
    logits[:, 5] = 2.9e38  # a small repetition penalty lifts it to infinity, which is cut
    kinds = [
        row(replace(GREEDY, repetition_penalty=0.5), (5, 2, 2, 299), 2),
        row(replace(GREEDY, frequency_penalty=0.7, presence_penalty=-0.2), (5, 9, 9, 9, 7), 2),
        row(GREEDY, (1, 2)),
        row(replace(GREEDY, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.25), (3, 4, 4, 4, 3), 3),
    ]
    torch.testing.assert_close(fused._process(logits, kinds), process(logits, kinds), atol=1e-6, rtol=1e-6)
    check(logits, kinds)


def test_long_histories_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 16)
    chance = np.random.default_rng(0)
    lens, prompt_lens = [100, 33, 1], [40, 33, 1]
    tokens = chance.integers(0, 20, (3, 100))
    behind_each_other = torch.from_numpy(np.concatenate([row[:length] for row, length in zip(tokens, lens, strict=True)]))
    starts = torch.tensor([0, 100, 133, 134])
    counts = kernels.count_tokens(behind_each_other, starts, torch.tensor(prompt_lens), longest=100, vocab_size=25)
    for n in range(3):
        for token in range(25):
            is_seen = token in tokens[n, : lens[n]]
            num_generated = int((tokens[n, prompt_lens[n] : lens[n]] == token).sum())
            assert counts[n, token] == 2 * num_generated + is_seen


@pytest.mark.parametrize("module", [fused, processors])
def test_a_long_history_does_not_lengthen_those_beside_it(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    def remember(tensor: Tensor, device: torch.device) -> Tensor:
        sent.append(tensor.numel())
        return upload(tensor, device)

    monkeypatch.setattr(module, "upload", remember)
    penalized = replace(GREEDY, repetition_penalty=1.3)
    rows = [row(penalized, tuple(range(200))), *[row(penalized, (n, n + 1)) for n in range(7)]]
    function = fused._process if module is fused else process
    torch.testing.assert_close(function(random_logits(8), rows), process(random_logits(8), rows), atol=1e-6, rtol=1e-6)
    assert max(sent) == 200 + 7 * 2


def test_everything_that_processors_do_is_kept() -> None:
    everything = SamplingParameters(
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
        num_top_tokens=3,
    )
    rows = [row(replace(everything, seed=seed), (1, 2, 3, 3), 2) for seed in range(2)]
    check(random_logits(3), [*rows, row(SAMPLED)])


def mask_of(allowed: list[int], vocab_size: int = V) -> bytes:
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[allowed] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def test_masks_hide_tokens_from_draws_and_from_logprobs() -> None:
    masks = {0: mask_of([7, 31, 32, 299]), 2: mask_of([4]), 3: mask_of(list(range(0, V, 3)))}
    kinds = [
        row(replace(GREEDY, num_top_tokens=6)),
        row(replace(SAMPLED, top_p=0.5)),
        row(replace(SAMPLED, top_k=3)),
        row(replace(SAMPLED, typical_p=0.5, min_p=0.02, top_k=50)),
    ]
    samples = check(random_logits(4), kinds, masks)
    assert samples.token_ids[0] in (7, 31, 32, 299)
    assert samples.token_ids[2] == 4
    assert samples.logprobs[2] == 0
    assert samples.top_logprobs[0].isfinite().tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_says_so_and_harms_no_other(poison: float) -> None:
    logits = random_logits(3)
    clean = check(logits, [row(replace(SAMPLED, top_p=0.9))] * 3)
    logits[1, 200] = poison
    samples = check(logits, [row(replace(SAMPLED, top_p=0.9))] * 3)
    assert samples.is_finite.tolist() == [True, False, True]
    assert samples.token_ids[1] == 0
    assert samples.token_ids[[0, 2]].tolist() == clean.token_ids[[0, 2]].tolist()


def test_large_logits_whose_sum_overflows_are_finite() -> None:
    logits = torch.full((1, V), 3e38)
    logits[0, 9] = 3.2e38
    assert fused.sample(logits, [row(GREEDY)]).is_finite.all()
    assert fused.sample(logits, [row(GREEDY)]).token_ids.tolist() == [9]


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = random_logits(2) * 1e30
    assert check(logits, [row(replace(SAMPLED, temperature=1e-37))] * 2).token_ids.tolist() == logits.argmax(-1).tolist()


def test_banning_every_token_still_draws_as_the_reference_does() -> None:
    parameters = replace(SAMPLED, min_new_tokens=2, end_token_ids=tuple(range(V)), top_p=0.9)
    check(random_logits(2), [row(replace(parameters, seed=seed)) for seed in range(2)])


def test_rows_together_are_rows_alone() -> None:
    logits = random_logits(3)
    rows = [row(replace(SAMPLED, top_k=9)), row(replace(SAMPLED, typical_p=0.4)), row(GREEDY)]
    together = fused.sample(logits, rows)
    for n in range(3):
        alone = fused.sample(logits[n : n + 1], rows[n : n + 1])
        assert alone.token_ids[0] == together.token_ids[n]
        assert alone.logprobs[0] == together.logprobs[n]


@pytest.mark.parametrize("count", [0, 1, 5, 37, 300])
def test_the_most_likely_tokens_come_without_a_sort_of_the_row(count: int) -> None:
    logits = random_logits(2).round()
    logits[0, :50] = -0.0
    logits[0, 50:80] = 0.0
    ids, values = kernels.most_likely(logits, count)
    order = sorted(range(V), key=lambda token: (-logits[0, token].item(), token))
    assert ids[0].tolist() == order[:count]
    assert torch.equal(values, logits.gather(-1, ids))


def test_the_normalizer_is_that_of_the_reference() -> None:
    logits = torch.cat((random_logits(2), torch.full((1, V), -1e30)))
    parameters = fused._draw_parameters([row(GREEDY)] * 3, logits.device)
    normalizers = kernels.choose_tokens(logits, logits, parameters).normalizers
    torch.testing.assert_close(normalizers, log_normalizer(logits), atol=1e-6, rtol=1e-6)


def test_the_random_numbers_are_those_of_the_reference() -> None:
    assert (kernels.GOLDEN.value, kernels.MIX_1.value, kernels.MIX_2.value) == (rng.GOLDEN, rng.MIX_1, rng.MIX_2)
    # A flat distribution over a power of two shows the leading bits of the number.
    seeds = [0, 1, 2**63, 2**64 - 1, 12345678901234567890]
    rows = [row(replace(SAMPLED, seed=seed), (1,) * (n + 1)) for n, seed in enumerate(seeds)]
    numbers = rng.uniform(torch.tensor([rng.to_signed(seed) for seed in seeds]), torch.arange(1, 6))
    assert fused.sample(torch.zeros(5, 256), rows).token_ids.tolist() == (numbers * 256).long().tolist()
