"""A step whose work is enqueued on the device, and how its answer is made once the device is done.

Until then the tokens that it samples stand in the mirrors as numbers below 0, which only the next step may use, on the device.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from text_gen_server.batch import Mirror
from text_gen_server.plan import RowError, RowResult, SampledToken, StepPlan, StepResult
from text_gen_server.sampling.sampler import Samples
from text_gen_server.transfers import Transfers


@dataclass(slots=True)
class SampledRow:
    """A row that samples. Not frozen, because one is made for every token."""

    row_idx: int
    mirror: Mirror
    position: int  # of its token in the sequence


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

    def __init__(self, plan: StepPlan, rows: tuple[SampledRow, ...], leavings: Leavings, transfers: Transfers) -> None:
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
        if self._rows:
            for row, token_id in zip(self._rows, self.download.tensors()[0].tolist(), strict=True):
                row.mirror.set_token(row.position, token_id)

    def result(self) -> StepResult:
        """The answer of a step that is resolved; without rows on a rank that does not sample."""
        assert self.is_resolved, "a step is resolved before it is read"
        tensors = self.download.tensors()
        outcomes = self._outcomes(tensors) if self._has_samples else {}
        prompts = tensors[4:-1] if self._has_samples else tensors[len(tensors) - len(self._prompt_rows) :]
        prompt_logprobs = {n: tuple(logprobs.tolist()) for n, logprobs in zip(self._prompt_rows, prompts, strict=True)}
        return StepResult(self.plan.step_id, tuple(_row_results(self.plan, outcomes, prompt_logprobs)))

    def _outcomes(self, tensors: tuple[Tensor, ...]) -> dict[int, SampledToken | RowError]:
        """Row index -> outcome. tensors: see `Leavings.tensors`"""
        token_ids, top_token_ids, logprobs, top_logprobs = (tensor.tolist() for tensor in tensors[:4])
        outcomes: dict[int, SampledToken | RowError] = {}
        for i, (row, is_finite) in enumerate(zip(self._rows, tensors[-1].tolist(), strict=True)):
            if not is_finite:
                outcomes[row.row_idx] = RowError.NUMERICAL
                continue
            count = row.mirror.sampling.num_top_tokens
            top = zip(top_token_ids[i][:count], top_logprobs[i][:count], strict=True)
            top_tokens = tuple((token_id, logprob) for token_id, logprob in top if logprob > -math.inf)
            outcomes[row.row_idx] = SampledToken(token_ids[i], logprobs[i], top_tokens)
        return outcomes


def _row_results(
    plan: StepPlan, outcomes: dict[int, SampledToken | RowError], prompt_logprobs: dict[int, tuple[float, ...]]
) -> Iterator[RowResult]:
    for n, row in enumerate(plan.rows):
        logprobs = prompt_logprobs.get(n, ())
        if not all(math.isfinite(logprob) for logprob in logprobs):
            yield RowResult(row.sequence_id, RowError.NUMERICAL)
        elif n in outcomes or logprobs:
            yield RowResult(row.sequence_id, outcomes.get(n), logprobs)
