"""Logits processors: penalties, logit bias, the watermark, the ban of end tokens, and masks, each for the rows that ask for it.

They run in this order, before temperature and filters. Must never touch the raw logits, which the log-probabilities are taken
from, and never leave NaN behind, nor infinity where no mask forbids the token.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from text_gen_server.plan import SamplingParameters
from text_gen_server.sampling.watermark import green
from text_gen_server.transfers import upload

LARGEST = torch.finfo(torch.float32).max
# The random numbers of a watermark take eight bytes for each token of the vocabulary, several times over: so many at once.
WATERMARK_BYTES = 64 * 2**20


class SamplingRow:
    """What the choice of one token depends on, besides the logits. What follows from the parameters is found out once, because
    it is asked for with every token.
    """

    __slots__ = (
        "_token_ids",
        "is_penalized",
        "is_processed",
        "num_tokens",
        "packed",
        "parameters",
        "prompt_len",
        "reads_history",
    )

    def __init__(self, parameters: SamplingParameters, token_ids: NDArray[np.int64], prompt_len: int) -> None:
        """token_ids: [L], prompt and generated tokens"""
        self.parameters = parameters
        self.prompt_len = prompt_len
        self.num_tokens = len(token_ids)
        self._token_ids = token_ids  # filled up to num_tokens
        self.is_penalized = (
            parameters.repetition_penalty != 1 or parameters.frequency_penalty != 0 or parameters.presence_penalty != 0
        )
        # Whether the choice depends on what the tokens are, and not on their number alone.
        self.reads_history = self.is_penalized or parameters.watermark_delta != 0
        # Whether `process` may have something to do.
        self.is_processed = (
            self.reads_history
            or len(parameters.logit_bias) > 0
            or (parameters.min_new_tokens > 0 and len(parameters.end_token_ids) > 0)
        )
        self.packed: bytes | None = None  # the parameters as the sampler in use wants them, which fills it in

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """[L] prompt and generated tokens."""
        return self._token_ids[: self.num_tokens]

    @property
    def position(self) -> int:
        """Index in the sequence of the token being sampled."""
        return self.num_tokens


def process(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The logits to choose from: `logits` itself where no row asks for a processor, else a changed copy.

    logits: [N, V] float32, left as it is
    rows:   N rows
    """
    processed = [n for n, row in enumerate(rows) if row.is_processed]
    repeated = [n for n in processed if rows[n].parameters.repetition_penalty != 1]
    counted = [n for n in processed if _counts(rows[n])]
    biased = [n for n in processed if rows[n].parameters.logit_bias]
    marked = [n for n in processed if rows[n].parameters.watermark_delta != 0]
    banned = [n for n in processed if _bans(rows[n])]
    if not (repeated or counted or biased or marked or banned):
        return logits
    logits = logits.clone()
    if repeated:
        _penalize_repetition(logits, rows, repeated)
    if counted:
        _penalize_counts(logits, rows, counted)
    if biased:
        _add_bias(logits, rows, biased)
    if marked:
        _raise_green(logits, rows, marked)
    logits.clamp_(-LARGEST, LARGEST)
    if banned:
        _ban_end_tokens(logits, rows, banned)
    return logits


def apply_masks(logits: Tensor, masks: Mapping[int, bytes]) -> Tensor:
    """A copy of `logits` ([N, V] float32) with minus infinity for every token that the mask of its row leaves out.

    masks: index in N -> at least V bits, lowest bit of the first byte first; at least one of them is set
    """
    chosen = list(masks)
    packed = np.stack([np.frombuffer(masks[n], dtype=np.uint8) for n in chosen])
    allowed = np.unpackbits(packed, axis=1, count=logits.shape[-1], bitorder="little").view(np.bool_)
    index = upload(torch.tensor(chosen), logits.device)
    logits = logits.clone()
    logits[index] = logits[index].masked_fill_(~upload(torch.from_numpy(allowed), logits.device), -math.inf)
    return logits


def _counts(row: SamplingRow) -> bool:
    asked = row.parameters.frequency_penalty != 0 or row.parameters.presence_penalty != 0
    return asked and row.num_tokens > row.prompt_len


def _bans(row: SamplingRow) -> bool:
    num_generated = row.num_tokens - row.prompt_len
    return num_generated < row.parameters.min_new_tokens and len(row.parameters.end_token_ids) > 0


def _penalize_repetition(logits: Tensor, rows: Sequence[SamplingRow], chosen: list[int]) -> None:
    """Divides positive and multiplies negative logits of seen tokens (Keskar et al.: CTRL, 2019)."""
    # Behind each other: padded to the longest they would take as much as all rows at their longest.
    lens = [rows[n].num_tokens for n in chosen]
    penalties = np.array([rows[n].parameters.repetition_penalty for n in chosen], dtype=np.float32)
    row_idx, seen, penalty = (
        upload(torch.from_numpy(array), logits.device)
        for array in (np.repeat(chosen, lens), np.concatenate([rows[n].token_ids for n in chosen]), penalties.repeat(lens))
    )
    # A repeated id is written several times, with the same value.
    scores = logits[row_idx, seen]
    logits[row_idx, seen] = torch.where(scores > 0, scores / penalty, scores * penalty)


def _penalize_counts(logits: Tensor, rows: Sequence[SamplingRow], chosen: list[int]) -> None:
    """OpenAI's definition: logit -= count * frequency_penalty + (count > 0) * presence_penalty, over generated tokens."""
    ids, counts, owners = [], [], []
    for owner, n in enumerate(chosen):
        row_ids, row_counts = np.unique(rows[n].token_ids[rows[n].prompt_len :], return_counts=True)
        ids.append(row_ids)
        counts.append(row_counts)
        owners.append(np.full(len(row_ids), owner))
    device = logits.device
    owner_idx = upload(torch.from_numpy(np.concatenate(owners)), device)
    count = upload(torch.from_numpy(np.concatenate(counts)), device)
    frequency = upload(torch.tensor([rows[n].parameters.frequency_penalty for n in chosen]), device)[owner_idx]
    presence = upload(torch.tensor([rows[n].parameters.presence_penalty for n in chosen]), device)[owner_idx]
    row_idx = upload(torch.tensor(chosen), device)[owner_idx]
    logits[row_idx, upload(torch.from_numpy(np.concatenate(ids)), device)] -= count * frequency + presence


def _add_bias(logits: Tensor, rows: Sequence[SamplingRow], chosen: list[int]) -> None:
    entries = [(n, token_id, bias) for n in chosen for token_id, bias in rows[n].parameters.logit_bias]
    row_idx, ids, biases = zip(*entries, strict=True)
    device = logits.device
    index = (upload(torch.tensor(row_idx), device), upload(torch.tensor(ids), device))
    logits.index_put_(index, upload(torch.tensor(biases, dtype=torch.float32), device), accumulate=True)


def _raise_green(logits: Tensor, rows: Sequence[SamplingRow], chosen: list[int]) -> None:
    device = logits.device
    at_once = max(1, WATERMARK_BYTES // (8 * logits.shape[-1]))
    for first in range(0, len(chosen), at_once):
        part = chosen[first : first + at_once]
        previous = upload(torch.tensor([int(rows[n].token_ids[-1]) for n in part]), device)
        gammas = upload(torch.tensor([rows[n].parameters.watermark_gamma for n in part], dtype=torch.float64), device)
        deltas = _column([rows[n].parameters.watermark_delta for n in part], device)
        logits[upload(torch.tensor(part), device)] += green(previous, gammas, logits.shape[-1]) * deltas


def _ban_end_tokens(logits: Tensor, rows: Sequence[SamplingRow], chosen: list[int]) -> None:
    # The lowest number, not minus infinity: should nothing else be left, there is still a distribution.
    entries = [(n, token_id) for n in chosen for token_id in rows[n].parameters.end_token_ids]
    row_idx, ids = zip(*entries, strict=True)
    index = (upload(torch.tensor(row_idx), logits.device), upload(torch.tensor(ids), logits.device))
    logits[index] = -LARGEST


def _column(values: list[float], device: torch.device) -> Tensor:
    return upload(torch.tensor(values, dtype=torch.float32), device).unsqueeze(1)
