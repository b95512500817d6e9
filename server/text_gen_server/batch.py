"""The sequences a shard mirrors, and one step of them, laid out on the host in numpy. What becomes of it is the business of
`step_inputs.py`.

Shapes: T tokens of the step, B sequences, H query heads of this rank, KH KV heads of this rank, D head size, V vocabulary,
NB blocks, BS block size; N rows that sample. A mirror changes only by what a plan says and by the token its own row sampled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.plan import NewSequence, PlanLimits, Row, StepPlan
from text_gen_server.sampling.processors import SamplingRow


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

    def blocks(self, begin: int, end: int) -> NDArray[np.int32]:
        """Part of the block table."""
        return self._block_table[begin:end]

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


@dataclass(frozen=True)
class StepLayout:
    """Everything of a step but its block tables, on the host."""

    token_ids: NDArray[np.int64]  # [T], below 0 where only the device knows them (see `Mirror.append_token`)
    positions: NDArray[np.int64]  # [T]
    slots: NDArray[np.int64]  # [T]
    sample_idx: NDArray[np.int64]  # [N]
    query_start: NDArray[np.int32]  # [B + 1]
    query_lens: tuple[int, ...]  # [B]
    kv_lens: tuple[int, ...]  # [B]
    samplers: tuple[int, ...]  # [N]
    spans: list[tuple[int, int, NDArray[np.int64]]]  # the fields of each `PromptSpan`

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """What `batch` needs on the device, in this order."""
        spans = (targets for _, _, targets in self.spans)
        return self.token_ids, self.positions, self.slots, self.sample_idx, self.query_start, *spans

    def batch(
        self, uploaded: Sequence[Tensor], mirrors: Sequence[Mirror], *, kv_lens: Tensor, block_tables: Tensor
    ) -> BatchInputs:
        """The step, from its `arrays` on the device. mirrors: of all rows; tensors as `AttentionMetadata` has them"""
        token_ids, positions, slots, sample_idx, query_start, *spans = uploaded
        return BatchInputs(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            sample_idx=sample_idx,
            attention_metadata=AttentionMetadata(
                query_start=query_start,
                kv_lens=kv_lens,
                block_tables=block_tables,
                query_lens_host=self.query_lens,
                kv_lens_host=self.kv_lens,
                num_decodes=next((n for n, query_len in enumerate(self.query_lens) if query_len != 1), len(self.query_lens)),
            ),
            samplers=self.samplers,
            sampling_rows=[mirrors[n] for n in self.samplers],
            prompt_spans=tuple(
                PromptSpan(row_idx=n, first=first, targets=targets)
                for (n, first, _), targets in zip(self.spans, spans, strict=True)
            ),
        )


def lay_out(
    rows: Sequence[Row], mirrors: Sequence[Mirror], *, block_size: int, tables: NDArray[np.int32] | None = None
) -> StepLayout:
    """A step whose plan was checked. `mirrors` are those of `rows`, with the new blocks appended.

    tables: the `block_tables` of the step, where they are made anyhow
    """
    query_lens = np.array([row.num_scheduled_tokens for row in rows], dtype=np.int64)
    starts = np.array([mirror.num_computed_tokens for mirror in mirrors], dtype=np.int64)
    kv_lens = starts + query_lens
    query_ends = query_lens.cumsum()
    query_start = np.zeros(len(rows) + 1, dtype=np.int32)
    query_start[1:] = query_ends
    positions = np.arange(query_ends[-1]) + np.repeat(starts - query_start[:-1], query_lens)
    query_lens_host, kv_lens_host = tuple(query_lens.tolist()), tuple(kv_lens.tolist())
    if tables is None:
        slots = _slots(mirrors, positions, query_start, block_size)
    else:
        block_idx, offset = np.divmod(positions, block_size)
        slots = tables[np.repeat(np.arange(len(rows)), query_lens), block_idx].astype(np.int64) * block_size + offset
    # A token is sampled exactly when no uncomputed token is left after the step.
    samplers = tuple(n for n, mirror in enumerate(mirrors) if kv_lens_host[n] == mirror.num_tokens)
    return StepLayout(
        token_ids=_token_ids(mirrors, starts.tolist(), kv_lens_host),
        positions=positions,
        slots=slots,
        sample_idx=query_ends[list(samplers)] - 1,
        query_start=query_start,
        query_lens=query_lens_host,
        kv_lens=kv_lens_host,
        samplers=samplers,
        spans=list(_prompt_spans(mirrors, query_start, kv_lens_host)),
    )


def block_tables(rows: Sequence[Row], mirrors: Sequence[Mirror], block_size: int) -> NDArray[np.int32]:
    """[B, most blocks in use by a row] int32, padded with 0."""
    num_blocks = [
        -(-(mirror.num_computed_tokens + row.num_scheduled_tokens) // block_size)
        for row, mirror in zip(rows, mirrors, strict=True)
    ]
    tables = np.zeros((len(mirrors), max(num_blocks)), dtype=np.int32)
    for table, mirror, count in zip(tables, mirrors, num_blocks, strict=True):
        table[:count] = mirror.block_table[:count]
    return tables


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


def _slots(
    mirrors: Sequence[Mirror], positions: NDArray[np.int64], query_start: NDArray[np.int32], block_size: int
) -> NDArray[np.int64]:
    """[T] of tokens at these positions; those of a row follow each other."""
    block_idx, offset = np.divmod(positions, block_size)
    first, last = block_idx[query_start[:-1]], block_idx[query_start[1:] - 1]
    # The blocks that the rows write, behind each other, of which a token's block is looked up.
    ends = (last + 1).tolist()
    parts = [mirror.blocks(begin, end) for mirror, begin, end in zip(mirrors, first.tolist(), ends, strict=True)]
    num_blocks = last - first + 1
    shift = num_blocks.cumsum() - num_blocks - first  # from a row's column to its place among them
    blocks: NDArray[np.int32] = np.concatenate(parts)[np.repeat(shift, np.diff(query_start)) + block_idx]
    return blocks.astype(np.int64) * block_size + offset


def _prompt_spans(
    mirrors: Sequence[Mirror], query_start: NDArray[np.int32], ends: Sequence[int]
) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """The fields of each `PromptSpan`, on the host."""
    for n, (mirror, end) in enumerate(zip(mirrors, ends, strict=True)):
        start = mirror.num_computed_tokens
        last = min(end, mirror.prompt_len - 1)
        if mirror.parameters.prompt_logprobs and last > start:
            yield n, int(query_start[n]), mirror.token_ids[start + 1 : last + 1].copy()
