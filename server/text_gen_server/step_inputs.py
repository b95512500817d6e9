"""Where the inputs of a step are made: on the host, or for decode steps on the device, which keeps the block table of every
sequence that decodes. Both make the same. Chosen once at start; must never read the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.batch import BatchInputs, Mirror, build_batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from text_gen_server.plan import PlanLimits, Row
    from text_gen_server.transfers import Transfers


class StepInputs(Protocol):
    @property
    def num_bytes(self) -> int:
        """What is kept on the device for it."""

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror]) -> BatchInputs:
        """See `build_batch`."""

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        """These sequences will not be seen again."""


def choose_inputs(device: torch.device, limits: PlanLimits, transfers: Transfers) -> StepInputs:
    return DeviceInputs(limits, transfers, device) if device.type == "cuda" else HostInputs(limits, transfers)


class HostInputs:
    """See `StepInputs`. Keeps nothing."""

    num_bytes = 0

    def __init__(self, limits: PlanLimits, transfers: Transfers) -> None:
        self.block_size = limits.block_size
        self.transfers = transfers

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror]) -> BatchInputs:
        return build_batch(rows, mirrors, block_size=self.block_size, transfers=self.transfers)

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        pass


class DeviceInputs:
    """See `StepInputs`. A step of one token to sample in each row takes three numbers for each row and one for each new block;
    all others are made on the host.

    R rows of tables, one for each sequence that has decoded; W blocks of the longest sequence.
    """

    def __init__(self, limits: PlanLimits, transfers: Transfers, device: torch.device) -> None:
        self.host = HostInputs(limits, transfers)
        self.block_size = limits.block_size
        self.transfers = transfers
        self.width = -(-limits.max_total_tokens // limits.block_size)
        self.tables = torch.zeros((limits.max_batch_size, self.width), dtype=torch.int32, device=device)  # [R, W]
        self.columns = torch.arange(self.width, device=device)
        self.counting = torch.arange(limits.max_batch_size + 1, device=device)
        self.query_start = self.counting.to(torch.int32)
        self.free_rows = list(range(limits.max_batch_size - 1, -1, -1))

    @property
    def num_bytes(self) -> int:
        return self.tables.nbytes + self.columns.nbytes + self.counting.nbytes + self.query_start.nbytes

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        for mirror in mirrors:
            if mirror.device_row is not None:
                self.free_rows.append(mirror.device_row)
                mirror.device_row = None

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror]) -> BatchInputs:
        for row, mirror in zip(rows, mirrors, strict=True):
            if row.num_scheduled_tokens != 1 or mirror.num_computed_tokens + 1 != mirror.num_tokens:
                return self.host.build(rows, mirrors)
        num_rows, positions_host = len(mirrors), [mirror.num_computed_tokens for mirror in mirrors]
        codes, positions, table_rows = self._send(mirrors, positions_host)
        width = max(positions_host) // self.block_size + 1
        column = positions // self.block_size
        # What lies behind a row's blocks may be left from another sequence that had the row.
        behind = self.columns[:width] > column.unsqueeze(1)
        block_tables = self.tables[:, :width].index_select(0, table_rows).masked_fill_(behind, 0)
        blocks = block_tables.gather(1, column.unsqueeze(1)).squeeze(1).to(torch.int64)
        return BatchInputs(
            token_ids=codes,
            positions=positions,
            slot_mapping=blocks * self.block_size + positions % self.block_size,
            attention_metadata=AttentionMetadata(
                query_start=self.query_start[: num_rows + 1],
                kv_lens=(positions + 1).to(torch.int32),
                block_tables=block_tables,
                query_lens_host=(1,) * num_rows,
                kv_lens_host=tuple(position + 1 for position in positions_host),
                num_decodes=num_rows,
            ),
            sample_idx=self.counting[:num_rows],
            samplers=tuple(range(num_rows)),
            sampling_rows=mirrors,
            prompt_spans=(),
        )

    def _send(self, mirrors: Sequence[Mirror], positions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Sends what the device does not know, in one copy, and writes new blocks into the tables.

        -> last token of each row, or the number that stands for it; its position; the row of its table: [B] int64 each
        """
        table_rows: list[int] = []
        places: list[int] = []  # in the tables as one vector
        blocks: list[int] = []
        for mirror in mirrors:
            row = mirror.device_row
            if row is None:
                row = self._give_row(mirror)
            table_rows.append(row)
            if mirror.num_device_blocks < mirror.num_blocks:
                end = min(mirror.num_blocks, self.width)
                places += range(row * self.width + mirror.num_device_blocks, row * self.width + end)
                blocks += mirror.block_table[mirror.num_device_blocks : end].tolist()
                mirror.num_device_blocks = end
        codes = [mirror.last_token_id for mirror in mirrors]
        sent = self.transfers.upload([np.array((codes, positions, table_rows)), np.array((places, blocks), dtype=np.int64)])
        if places:
            self.tables.view(-1).index_copy_(0, sent[1][0], sent[1][1].to(torch.int32))
        return sent[0][0], sent[0][1], sent[0][2]

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
