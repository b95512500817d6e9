"""What is asked of every row of logits: the most likely token, the normalizer of log-probabilities, whether it is sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Summary:
    largest: Tensor  # [N] int64, index of the largest logit, the first of equals
    log_normalizer: Tensor  # [N] float32, log of the sum of exp(logit)
    is_finite: Tensor  # [N] bool; False: a logit is NaN or infinite


class Summarize(Protocol):
    def __call__(self, logits: Tensor) -> Summary:
        """logits: [N, V] float32"""


def summarize(logits: Tensor) -> Summary:
    """See `Summarize`; in PyTorch, on any device."""
    # NaN and infinity survive a sum, and one sum is far cheaper than a look at every number.
    return Summary(logits.argmax(-1), log_normalizer(logits), logits.sum(-1).isfinite())


def log_normalizer(logits: Tensor) -> Tensor:
    """[N] float32: log of the sum of exp(logits [N, V]), by way of the probability of the most likely token.

    Row by row the same in every batch, which torch.logsumexp does not promise, and it needs no logarithm of the whole row.
    """
    largest, index = logits.max(-1, keepdim=True)
    return (largest - logits.softmax(-1).gather(-1, index).log()).squeeze(1)
