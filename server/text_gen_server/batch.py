"""The sequences a shard mirrors, and the tensors of one step built from them.

Shapes: T tokens of the step, B sequences, H query heads of this rank, KH KV heads of this rank, D head size, V vocabulary,
NB blocks, BS block size; N rows that sample. A mirror changes only by what a plan says and by the token its own row sampled.
Everything is put together in numpy on the host and crosses to the device at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.plan import NewSequence, PlanLimits, Row, StepPlan
from text_gen_server.sampling.processors import SamplingRow
from text_gen_server.transfers import Transfers


class Mirror(SamplingRow):
    """What the shard knows of one sequence. Below 0 stand tokens that only the device knows (see `append_token`)."""

    __slots__ = (
        "_block_table",
        "device_row",
        "last_token_id",
        "num_blocks",
        "num_computed_tokens",
        "num_device_blocks",
        "sequence_id",
    )

    def __init__(self, new: NewSequence) -> None:
        super().__init__(new.sampling, np.array(new.token_ids, dtype=np.int64), new.prompt_len)
        self.sequence_id = new.sequence_id
        self.num_computed_tokens = new.num_computed_tokens
        self.last_token_id = new.token_ids[-1]
        self.num_blocks = 0
        self.device_row: int | None = None  # of its block table on the device, where there is one (`step_inputs.py`)
        self.num_device_blocks = 0  # in that table
        self._block_table = np.empty(8, dtype=np.int32)  # filled up to num_blocks

    @property
    def block_table(self) -> NDArray[np.int32]:
        return self._block_table[: self.num_blocks]

    def append_token(self, token_id: int) -> int:
        """Its position. -1 - n stands for the n-th token that the last launched step samples, until `set_token` names it."""
        if self.num_tokens == len(self._token_ids):
            self._token_ids = np.concatenate([self._token_ids, np.empty(max(64, self.num_tokens), np.int64)])
        position = self.num_tokens
        self._token_ids[position] = self.last_token_id = token_id
        self.num_tokens = position + 1
        return position

    def set_token(self, position: int, token_id: int) -> None:
        self._token_ids[position] = token_id
        if position == self.num_tokens - 1:
            self.last_token_id = token_id

    def append_blocks(self, block_ids: Sequence[int]) -> None:
        num_blocks = self.num_blocks + len(block_ids)
        if num_blocks > len(self._block_table):
            self._block_table = np.concatenate([self._block_table, np.empty(num_blocks, np.int32)])
        self._block_table[self.num_blocks : num_blocks] = block_ids
        self.num_blocks = num_blocks


@dataclass(frozen=True)
class BatchInputs:
    """One step, ready for the model. Behind the rows of a step of decodes there may be empty ones (see `decode_rows.py`)."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, index of each token in its sequence
    slot_mapping: Tensor  # [T] int64, slot of each token's K/V; -1 = do not write
    attention_metadata: AttentionMetadata
    sample_idx: Tensor  # [N] int64, index in T of the last token of each row that samples
    samplers: tuple[int, ...]  # [N] which rows sample
    sampling_rows: Sequence[Mirror]  # [N]
    prompt_spans: tuple["PromptSpan", ...]


@dataclass(frozen=True)
class PromptSpan:
    """The part of one row whose logits give log-probabilities of prompt tokens.

    The hidden state of token p gives the log-probability of token p + 1. A row that computes tokens start..end of a prompt of
    length P so reports tokens start + 1 .. min(end, P - 1), the last of which it need not compute itself: over all chunks every
    prompt token but the first is reported exactly once, in order, and no hidden state is kept between steps.
    """

    row_idx: int
    first: int  # index in T of the hidden state of token `start`
    targets: Tensor  # [n] int64, the tokens whose log-probability is asked


def check_sequences(plan: StepPlan, mirrors: dict[int, Mirror], limits: PlanLimits) -> tuple[dict[int, Mirror], list[Mirror]]:
    """The mirrors of the plan's new sequences, and those of its rows. ValueError where `plan` does not fit the sequences held:
    unknown or doubled ids, tokens that are not known yet, blocks that are missing. Changes nothing.
    """
    forget = _distinct("forgets", plan.forget)
    for sequence_id in forget:
        if sequence_id not in mirrors:
            raise ValueError(f"step {plan.step_id} forgets sequence {sequence_id}, which is not held")
    _distinct("adds", [new.sequence_id for new in plan.new_sequences])
    added = {new.sequence_id: Mirror(new) for new in plan.new_sequences}
    for sequence_id in added:
        if sequence_id in mirrors and sequence_id not in forget:
            raise ValueError(f"step {plan.step_id} adds sequence {sequence_id}, which is held already")
    _distinct("schedules", [row.sequence_id for row in plan.rows])
    scheduled = []
    for row in plan.rows:
        mirror = added.get(row.sequence_id) or (mirrors.get(row.sequence_id) if row.sequence_id not in forget else None)
        if mirror is None:
            raise ValueError(f"step {plan.step_id} schedules sequence {row.sequence_id}, which is not held")
        _check_row(row, mirror, limits)
        scheduled.append(mirror)
    return added, scheduled


def build_batch(rows: Sequence[Row], mirrors: Sequence[Mirror], *, block_size: int, transfers: Transfers) -> BatchInputs:
    """The inputs of a step whose plan was checked. `mirrors` are those of `rows`, with the new blocks appended.

    Tokens are below 0 where only the device knows them (see `Mirror.append_token`).
    """
    query_lens = np.array([row.num_scheduled_tokens for row in rows], dtype=np.int64)
    starts = np.array([mirror.num_computed_tokens for mirror in mirrors], dtype=np.int64)
    kv_lens = starts + query_lens
    query_ends = query_lens.cumsum()
    query_start = np.zeros(len(rows) + 1, dtype=np.int32)
    query_start[1:] = query_ends
    row_of_token = np.repeat(np.arange(len(rows)), query_lens)
    positions = np.arange(query_ends[-1]) + (starts - query_start[:-1])[row_of_token]
    block_tables = _block_tables(mirrors, kv_lens, block_size)
    block_idx, offset = np.divmod(positions, block_size)
    slots = block_tables[row_of_token, block_idx].astype(np.int64) * block_size + offset
    query_lens_host, kv_lens_host = tuple(query_lens.tolist()), tuple(kv_lens.tolist())
    # A token is sampled exactly when no uncomputed token is left after the step.
    samplers = tuple(n for n, mirror in enumerate(mirrors) if kv_lens_host[n] == mirror.num_tokens)
    token_ids = _token_ids(mirrors, starts.tolist(), kv_lens_host)
    sample_idx = query_ends[list(samplers)] - 1
    spans = list(_prompt_spans(mirrors, query_start, kv_lens_host))
    arrays = (token_ids, positions, slots, sample_idx, query_start, kv_lens.astype(np.int32), block_tables)
    uploaded = transfers.upload((*arrays, *(targets for _, _, targets in spans)))
    return BatchInputs(
        token_ids=uploaded[0],
        positions=uploaded[1],
        slot_mapping=uploaded[2],
        sample_idx=uploaded[3],
        attention_metadata=AttentionMetadata(
            query_start=uploaded[4],
            kv_lens=uploaded[5],
            block_tables=uploaded[6],
            query_lens_host=query_lens_host,
            kv_lens_host=kv_lens_host,
            num_decodes=next((n for n, query_len in enumerate(query_lens_host) if query_len != 1), len(rows)),
        ),
        samplers=samplers,
        sampling_rows=[mirrors[n] for n in samplers],
        prompt_spans=tuple(
            PromptSpan(row_idx=n, first=first, targets=targets)
            for (n, first, _), targets in zip(spans, uploaded[len(arrays) :], strict=True)
        ),
    )


def _distinct(verb: str, sequence_ids: Sequence[int]) -> set[int]:
    distinct = set(sequence_ids)
    if len(distinct) < len(sequence_ids):
        twice = next(sequence_id for n, sequence_id in enumerate(sequence_ids) if sequence_id in sequence_ids[:n])
        raise ValueError(f"the plan {verb} sequence {twice} twice")
    return distinct


def _check_row(row: Row, mirror: Mirror, limits: PlanLimits) -> None:
    end = mirror.num_computed_tokens + row.num_scheduled_tokens
    if end > mirror.num_tokens:
        left = mirror.num_tokens - mirror.num_computed_tokens
        raise ValueError(f"sequence {row.sequence_id}: {row.num_scheduled_tokens} tokens scheduled, {left} left to compute")
    if end > limits.max_total_tokens:
        raise ValueError(f"sequence {row.sequence_id} would be {end} tokens long, the limit is {limits.max_total_tokens}")
    capacity = (mirror.num_blocks + len(row.new_block_ids)) * limits.block_size
    if end > capacity:
        raise ValueError(f"sequence {row.sequence_id}: {end} tokens do not fit in its blocks of {capacity} tokens")


def _token_ids(mirrors: Sequence[Mirror], starts: Sequence[int], ends: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([mirror.token_ids[start:end] for mirror, start, end in zip(mirrors, starts, ends, strict=True)])


def _block_tables(mirrors: Sequence[Mirror], kv_lens: NDArray[np.int64], block_size: int) -> NDArray[np.int32]:
    """[B, most blocks in use by a row] int32, padded with 0."""
    num_blocks = (-(-kv_lens // block_size)).tolist()
    tables = np.zeros((len(mirrors), max(num_blocks)), dtype=np.int32)
    for table, mirror, count in zip(tables, mirrors, num_blocks, strict=True):
        table[:count] = mirror.block_table[:count]
    return tables


def _prompt_spans(
    mirrors: Sequence[Mirror], query_start: NDArray[np.int32], ends: Sequence[int]
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """The fields of each `PromptSpan`, on the host."""
    for n, (mirror, end) in enumerate(zip(mirrors, ends, strict=True)):
        start = mirror.num_computed_tokens
        last = min(end, mirror.prompt_len - 1)
        if mirror.parameters.prompt_logprobs and last > start:
            yield n, int(query_start[n]), mirror.token_ids[start + 1 : last + 1].copy()
