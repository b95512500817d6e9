"""A step whose work is enqueued on the device, and how its answer is made once the device is done.

Until then the tokens that it samples stand in the mirrors as numbers below 0, which only the next step may use, on the device.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

from torch import Tensor

from text_gen_server.batch import Mirror
from text_gen_server.plan import RowError, RowResult, SampledToken, StepPlan, StepResult
from text_gen_server.sampling.sampler import Samples
from text_gen_server.transfers import Transfers


@dataclass(frozen=True)
class SampledRows:
    """The rows that sample, N of them, side by side: an object for each would be one for each token."""

    row_idx: Sequence[int] = ()
    mirrors: Sequence[Mirror] = ()
    positions: Sequence[int] = ()  # of their tokens in the sequences


@dataclass(frozen=True)
class Leavings:
    """What a step leaves on the device for the host to read."""

    token_ids: Tensor | None = None  # [N] int64, of the rows that sample; None where none does
    samples: Samples | None = None  # of the same rows, on the rank that sampled
    prompt_logprobs: tuple[tuple[int, Tensor], ...] = ()  # (row index, [n] float32), on that rank as well

    def tensors(self) -> tuple[Tensor, ...]:
        """In descending order of the size of their elements."""
        prompts = tuple(logprobs for _, logprobs in self.prompt_logprobs)
        samples = self.samples
        if samples is None:
            return (self.token_ids,) if self.token_ids is not None else prompts
        return (
            samples.token_ids,
            samples.top_token_ids,
            samples.logprobs,
            samples.top_logprobs,
            *prompts,
            samples.is_finite,
        )


class LaunchedStep:
    """See the module. Only `resolve` waits."""

    def __init__(self, plan: StepPlan, rows: SampledRows, leavings: Leavings, transfers: Transfers) -> None:
        """`rows` are those of `leavings.token_ids`."""
        self.plan = plan
        self.token_ids = leavings.token_ids
        self.download = transfers.download(leavings.tensors())
        self.is_resolved = False
        self._rows = rows
        self._has_samples = leavings.samples is not None
        self._prompt_rows = tuple(row_idx for row_idx, _ in leavings.prompt_logprobs)

    def resolve(self) -> None:
        """Waits until the device is done, and tells the mirrors what was sampled."""
        if self.is_resolved:
            return
        # Device sync: the tokens leave the device, to be answered or because a row's choice depends on its history.
        self.download.wait()
        self.is_resolved = True
        rows = self._rows
        if rows.mirrors:
            token_ids = self.download.tensors()[0].tolist()
            for mirror, position, token_id in zip(rows.mirrors, rows.positions, token_ids, strict=True):
                mirror.set_token(position, token_id)

    def result(self) -> StepResult:
        """The answer of a step that is resolved; without rows on a rank that does not sample."""
        assert self.is_resolved, "a step is resolved before it is read"
        tensors = self.download.tensors()
        outcomes = self._outcomes(tensors) if self._has_samples else []
        sampled = zip(self._rows.row_idx, outcomes, strict=False)  # there are no outcomes on a rank that does not sample
        rows = self.plan.rows
        if not self._prompt_rows:
            return StepResult(self.plan.step_id, tuple([RowResult(rows[n].sequence_id, outcome) for n, outcome in sampled]))
        prompts = tensors[4:-1] if self._has_samples else tensors[len(tensors) - len(self._prompt_rows) :]
        prompt_logprobs = {n: tuple(logprobs.tolist()) for n, logprobs in zip(self._prompt_rows, prompts, strict=True)}
        return StepResult(self.plan.step_id, tuple(_row_results(self.plan, dict(sampled), prompt_logprobs)))

    def _outcomes(self, tensors: tuple[Tensor, ...]) -> list[SampledToken | RowError]:
        """[N]. tensors: see `Leavings.tensors`"""
        token_ids, top_token_ids, logprobs, top_logprobs = (tensor.tolist() for tensor in tensors[:4])
        if tensors[1].shape[1] == 0:  # as a rule nobody asks for top tokens
            all_top: Iterable[tuple[tuple[int, float], ...]] = repeat((), len(token_ids))
        else:
            counts = [mirror.parameters.num_top_tokens for mirror in self._rows.mirrors]
            all_top = [_top_tokens(*each) for each in zip(top_token_ids, top_logprobs, counts, strict=True)]
        each_row = zip(token_ids, logprobs, all_top, tensors[-1].tolist(), strict=True)
        return [
            SampledToken(token_id, logprob, top) if is_finite else RowError.NUMERICAL
            for token_id, logprob, top, is_finite in each_row
        ]


def _top_tokens(token_ids: list[int], logprobs: list[float], count: int) -> tuple[tuple[int, float], ...]:
    pairs = zip(token_ids[:count], logprobs[:count], strict=True)
    return tuple((token_id, logprob) for token_id, logprob in pairs if logprob > -math.inf)


def _row_results(
    plan: StepPlan, outcomes: dict[int, SampledToken | RowError], prompt_logprobs: dict[int, tuple[float, ...]]
) -> Iterator[RowResult]:
    """Where rows have log-probabilities of their prompts."""
    for n, row in enumerate(plan.rows):
        logprobs = prompt_logprobs.get(n, ())
        if not all(math.isfinite(logprob) for logprob in logprobs):
            yield RowResult(row.sequence_id, RowError.NUMERICAL)
        elif n in outcomes or logprobs:
            yield RowResult(row.sequence_id, outcomes.get(n), logprobs)
