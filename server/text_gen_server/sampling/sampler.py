"""Chooses one token per row and says how likely it was: a function of (logits, sampling parameters, history) alone.

There is no generator state, and no row depends on another: a batch of 8 gives the tokens of 8 alone, for equal logits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from text_gen_server.sampling.filters import filter_logits
from text_gen_server.sampling.processors import SamplingRow, apply_masks, process
from text_gen_server.sampling.rng import to_signed, uniform
from text_gen_server.sampling.summary import Summarize, log_normalizer
from text_gen_server.sampling.summary import summarize as summarize_by_pytorch
from text_gen_server.transfers import upload


@dataclass(frozen=True)
class Samples:
    """One choice per row, still on the device."""

    token_ids: Tensor  # [N] int64; 0 where the row is not finite
    logprobs: Tensor  # [N] float32, log_softmax of the raw logits, among the allowed tokens where there is a mask
    is_finite: Tensor  # [N] bool; False: the logits held NaN or infinity
    top_token_ids: Tensor  # [N, K] int64, most likely first; K = most asked for by a row
    top_logprobs: Tensor  # [N, K] float32; minus infinity where a mask allows fewer than K


class Draw(Protocol):
    def __call__(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        """See `draw`."""


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """[n] int64, by inverting the cumulative distribution over the vocabulary in the order of its ids.

    logits: [n, V] float32, minus infinity where a token cannot be drawn
    """
    device = logits.device
    probabilities = filter_logits(logits, [row.parameters for row in rows]).softmax(-1)
    # On a CPU a float32 running sum is carried in float64 anyway; elsewhere it is a tree of sums and needs the width.
    cumulative = probabilities.cumsum(-1, dtype=torch.float32 if device.type == "cpu" else torch.float64)
    seeds = upload(torch.tensor([to_signed(row.parameters.seed) for row in rows]), device)
    positions = upload(torch.tensor([row.position for row in rows]), device)
    total = cumulative[:, -1]
    # Rounding must not lift the target to the total, which nothing is above.
    target = torch.minimum((uniform(seeds, positions) * total).to(cumulative.dtype), total.nextafter(torch.zeros_like(total)))
    token_ids = torch.searchsorted(cumulative, target.unsqueeze(1), right=True).clamp_(max=logits.shape[-1] - 1)
    if device.type == "cpu":
        return token_ids.squeeze(1)
    # A parallel running sum need not be flat where a probability is 0; a token that was filtered out is never drawn.
    is_possible = probabilities.gather(-1, token_ids) > 0
    return torch.where(is_possible, token_ids, probabilities.argmax(-1, keepdim=True)).squeeze(1)


class Sample(Protocol):
    """A sampler: see `sample`. Which one is used is chosen once at start (`choose.py`)."""

    def __call__(self, logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes] | None = None) -> Samples: ...


def sample(
    logits: Tensor,
    rows: Sequence[SamplingRow],
    masks: Mapping[int, bytes] | None = None,
    summarize: Summarize = summarize_by_pytorch,
    draw: Draw = draw,
) -> Samples:
    """Draws the next token of each row; the most likely one where a row does not sample (the first, of equals).

    logits: [N, V] float32, raw
    masks:  index in N -> the tokens that row may have, one bit each, lowest bit of the first byte first
    """
    summary = summarize(logits)
    is_finite = summary.is_finite
    raw, processed = logits, process(logits, rows)
    if masks:
        processed, logits = apply_masks(processed, masks), apply_masks(logits, masks)
        summary = summarize(logits)
    token_ids = summary.largest if processed is raw else summarize(processed).largest
    drawn = [n for n, row in enumerate(rows) if row.parameters.do_sample]
    if drawn:
        index = upload(torch.tensor(drawn), logits.device)
        part = processed if len(drawn) == len(rows) else processed[index]
        token_ids[index] = draw(part, [rows[n] for n in drawn])
    token_ids = token_ids.masked_fill_(~is_finite, 0)
    normalizer = summary.log_normalizer.unsqueeze(1)
    num_top_tokens = max(row.parameters.num_top_tokens for row in rows)
    top_token_ids = most_likely(logits, num_top_tokens)
    return Samples(
        token_ids=token_ids,
        logprobs=(logits.gather(-1, token_ids.unsqueeze(1)) - normalizer).squeeze(1),
        is_finite=is_finite,
        top_token_ids=top_token_ids,
        top_logprobs=logits.gather(-1, top_token_ids) - normalizer,
    )


def token_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """[N] float32: log_softmax of `logits` ([N, V] float32) at `token_ids` ([N] int64)."""
    return logits.gather(-1, token_ids.unsqueeze(1)).squeeze(1) - log_normalizer(logits)


def most_likely(logits: Tensor, count: int) -> Tensor:
    """[N, count] int64: the ids of the largest logits ([N, V] float32), largest first; of equals the lower id first."""
    vocab_size = logits.shape[-1]
    if count == 0:
        return logits.new_empty((len(logits), 0), dtype=torch.int64)
    # Sorting by (logit, -id) in one 64-bit integer, because topk leaves the order of equals open. The bits of a float order
    # like an integer once those of the negative ones are flipped; adding 0 turns -0 into 0.
    bits = (logits + 0.0).view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
    keys = (ordered << 32) + torch.arange(vocab_size - 1, -1, -1, device=logits.device)
    return vocab_size - 1 - (keys.topk(count).values & 0xFFFFFFFF)
