"""Where the inputs of a step are made: on the host, or from what is new on the device, which keeps the block table of every
sequence. Both make the same. Chosen once at start; must never read the device.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.batch import BatchInputs, Mirror, block_tables, lay_out
from text_gen_server.decode_rows import DecodeDeltas, DecodeRows, pack_deltas
from text_gen_server.triton_kernels import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from text_gen_server.cuda_graphs import GraphedModel
    from text_gen_server.plan import PlanLimits, Row
    from text_gen_server.transfers import Transfers


class StepInputs(Protocol):
    @property
    def num_bytes(self) -> int:
        """What is kept on the device for it."""

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror], sampled_before: Tensor | None) -> BatchInputs:
        """The inputs of a step whose plan was checked. `mirrors` are those of `rows`, with the new blocks appended.

        sampled_before: [N] int64, the tokens for which such numbers stand; None where the host knows all
        """

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        """These sequences will not be seen again."""


class FillDecodeRows(Protocol):
    """See `triton_kernels.decode_rows`."""

    def __call__(
        self, deltas: DecodeDeltas, tables: Tensor, sampled_before: Tensor, rows: DecodeRows, *, block_size: int
    ) -> None: ...


def choose_inputs(
    device: torch.device, limits: PlanLimits, transfers: Transfers, graphed: GraphedModel | None
) -> HostInputs | DeviceInputs:
    """graphed: the model that will get the inputs, where it is one"""
    if device.type != "cuda":
        return HostInputs(limits, transfers)
    return DeviceInputs(limits, transfers, device, graphed=graphed, fill=choose_fill())


def choose_fill() -> FillDecodeRows:
    """One launch where there is Triton, and some twenty of PyTorch elsewhere."""
    if importlib.util.find_spec("triton") is None:
        return plain.fill_decode_rows
    from text_gen_server.triton_kernels.decode_rows import fill_decode_rows

    return fill_decode_rows


class HostInputs:
    """See `StepInputs`. Keeps nothing."""

    num_bytes = 0

    def __init__(self, limits: PlanLimits, transfers: Transfers) -> None:
        self.block_size = limits.block_size
        self.transfers = transfers

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror], sampled_before: Tensor | None) -> BatchInputs:
        tables = block_tables(rows, mirrors, self.block_size)
        step = lay_out(rows, mirrors, block_size=self.block_size, tables=tables)
        *uploaded, kv_lens, on_device = self.transfers.upload((*step.arrays(), np.array(step.kv_lens, dtype=np.int32), tables))
        return _with_tokens(step.batch(uploaded, mirrors, kv_lens=kv_lens, block_tables=on_device), sampled_before)

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        pass


class DeviceInputs:
    """See `StepInputs`. Five numbers for each row and one for each new block tell the device which blocks all rows have. A step
    of one token to sample in each row needs no more, and is made where the graph of its size reads it, if there is one; all
    others are sent the rest.

    R rows of tables, one for each sequence that has been computed; W blocks of the longest sequence.
    """

    def __init__(
        self,
        limits: PlanLimits,
        transfers: Transfers,
        device: torch.device,
        *,
        graphed: GraphedModel | None,
        fill: FillDecodeRows,
    ) -> None:
        self.block_size = limits.block_size
        self.transfers = transfers
        self.device = device
        self.graphed = graphed
        self.fill = fill
        width = -(-limits.max_total_tokens // limits.block_size)
        self.tables = torch.zeros((limits.max_batch_size, width), dtype=torch.int32, device=device)  # [R, W]
        self.counting = torch.arange(limits.max_batch_size + 1, device=device)
        self.query_start = self.counting.to(torch.int32)
        self.free_rows = list(range(limits.max_batch_size - 1, -1, -1))

    @property
    def num_bytes(self) -> int:
        return self.tables.nbytes + self.counting.nbytes + self.query_start.nbytes

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        for mirror in mirrors:
            if mirror.device_row is not None:
                self.free_rows.append(mirror.device_row)
                mirror.device_row = None

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror], sampled_before: Tensor | None) -> BatchInputs:
        for row, mirror in zip(rows, mirrors, strict=True):
            if row.num_scheduled_tokens != 1 or mirror.num_computed_tokens + 1 != mirror.num_tokens:
                return self._build_mixed(rows, mirrors, sampled_before)
        num_rows, positions = len(mirrors), [mirror.num_computed_tokens for mirror in mirrors]
        deltas = DecodeDeltas(self.transfers.upload([self._deltas(mirrors, positions)])[0], num_rows)
        step, metadata = self._place(positions)
        # Where the host knows all tokens no number is below 0.
        self.fill(
            deltas,
            self.tables,
            sampled_before if sampled_before is not None else self.counting,
            step,
            block_size=self.block_size,
        )
        return BatchInputs(
            token_ids=step.token_ids,
            positions=step.positions,
            slot_mapping=step.slot_mapping,
            attention_metadata=metadata,
            sample_idx=self.counting[:num_rows],
            samplers=tuple(range(num_rows)),
            sampling_rows=mirrors,
            prompt_spans=(),
        )

    def _build_mixed(self, rows: Sequence[Row], mirrors: Sequence[Mirror], sampled_before: Tensor | None) -> BatchInputs:
        """Any step. Its lengths and block tables are those of decodes at the last positions of its rows."""
        step = lay_out(rows, mirrors, block_size=self.block_size)
        last = [kv_len - 1 for kv_len in step.kv_lens]
        *uploaded, numbers = self.transfers.upload((*step.arrays(), self._deltas(mirrors, last)))
        ends = self._allocate(last)
        self.fill(DecodeDeltas(numbers, len(mirrors)), self.tables, self.counting, ends, block_size=self.block_size)
        batch = step.batch(uploaded, mirrors, kv_lens=ends.kv_lens, block_tables=ends.block_tables)
        return _with_tokens(batch, sampled_before)

    def _allocate(self, positions: Sequence[int]) -> DecodeRows:
        return DecodeRows.allocate(len(positions), max(positions) // self.block_size + 1, self.device)

    def _place(self, positions: Sequence[int]) -> tuple[DecodeRows, AttentionMetadata]:
        """Memory for a step with these positions: of its graph, or else new and without empty rows."""
        num_rows = len(positions)
        captured = self.graphed.inputs_for(num_rows) if self.graphed is not None else None
        if captured is not None:
            return captured.rows, captured.metadata
        step = self._allocate(positions)
        metadata = AttentionMetadata(
            query_start=self.query_start[: num_rows + 1],
            kv_lens=step.kv_lens,
            block_tables=step.block_tables,
            query_lens_host=(1,) * num_rows,
            kv_lens_host=tuple(position + 1 for position in positions),
            num_decodes=num_rows,
        )
        return step, metadata

    def _deltas(self, mirrors: Sequence[Mirror], positions: Sequence[int]) -> NDArray[np.int32]:
        """What the device does not know of rows whose last tokens have these positions; its tables have the new blocks once the
        step is filled.
        """
        table_rows: list[int] = []
        num_known: list[int] = []
        first_new: list[int] = []
        new_blocks: list[int] = []
        for mirror, position in zip(mirrors, positions, strict=True):
            row = mirror.device_row
            if row is None:
                row = self._give_row(mirror)
            known, used = mirror.num_device_blocks, position // self.block_size + 1
            table_rows.append(row)
            num_known.append(known)
            first_new.append(len(new_blocks))
            if known < used:
                new_blocks += mirror.blocks(known, used).tolist()
                mirror.num_device_blocks = used
        codes = [mirror.last_token_id for mirror in mirrors]
        return pack_deltas((codes, positions, table_rows, num_known, first_new), new_blocks)

    def _give_row(self, mirror: Mirror) -> int:
        if not self.free_rows:
            self._grow()
        row = self.free_rows.pop()
        mirror.device_row, mirror.num_device_blocks = row, 0
        return row

    def _grow(self) -> None:
        """Makes room for twice as many sequences: more may be held than a step has rows."""
        num_rows = len(self.tables)
        self.tables = torch.cat([self.tables, torch.zeros_like(self.tables)])
        self.free_rows = list(range(2 * num_rows - 1, num_rows - 1, -1))


def _with_tokens(batch: BatchInputs, sampled_before: Tensor | None) -> BatchInputs:
    """With the tokens themselves in the place of numbers below 0."""
    if sampled_before is None:
        return batch
    token_ids = batch.token_ids
    sampled = sampled_before[(-1 - token_ids).clamp_(min=0)]
    return replace(batch, token_ids=torch.where(token_ids < 0, sampled, token_ids))
