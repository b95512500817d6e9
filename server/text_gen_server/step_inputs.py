"""Where the inputs of a step are made: on the host, or for decode steps on the device, which keeps the block table of every
sequence that decodes. Both make the same. Chosen once at start; must never read the device.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.batch import BatchInputs, Mirror, build_batch
from text_gen_server.decode_rows import DecodeDeltas, DecodeRows, pack_deltas
from text_gen_server.triton_kernels import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from text_gen_server.cuda_graphs import GraphedModel
    from text_gen_server.plan import PlanLimits, Row
    from text_gen_server.transfers import Transfers


class StepInputs(Protocol):
    @property
    def num_bytes(self) -> int:
        """What is kept on the device for it."""

    def build(self, rows: Sequence[Row], mirrors: Sequence[Mirror], sampled_before: Tensor | None) -> BatchInputs:
        """See `build_batch`, with the tokens themselves in the place of numbers below 0.

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
        batch = build_batch(rows, mirrors, block_size=self.block_size, transfers=self.transfers)
        if sampled_before is None:
            return batch
        token_ids = batch.token_ids
        sampled = sampled_before[(-1 - token_ids).clamp_(min=0)]
        return replace(batch, token_ids=torch.where(token_ids < 0, sampled, token_ids))

    def forget(self, mirrors: Iterable[Mirror]) -> None:
        pass


class DeviceInputs:
    """See `StepInputs`. A step of one token to sample in each row takes five numbers for each row and one for each new block,
    and is made where the graph of its size reads it, if there is one; all other steps are made on the host.

    R rows of tables, one for each sequence that has decoded; W blocks of the longest sequence.
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
        self.host = HostInputs(limits, transfers)
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
                return self.host.build(rows, mirrors, sampled_before)
        num_rows, positions = len(mirrors), [mirror.num_computed_tokens for mirror in mirrors]
        deltas = self._send(mirrors, positions)
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

    def _place(self, positions: Sequence[int]) -> tuple[DecodeRows, AttentionMetadata]:
        """Memory for a step with these positions: of its graph, or else new and without empty rows."""
        num_rows = len(positions)
        captured = self.graphed.inputs_for(num_rows) if self.graphed is not None else None
        if captured is not None:
            return captured.rows, captured.metadata
        step = DecodeRows.allocate(num_rows, max(positions) // self.block_size + 1, self.device)
        metadata = AttentionMetadata(
            query_start=self.query_start[: num_rows + 1],
            kv_lens=step.kv_lens,
            block_tables=step.block_tables,
            query_lens_host=(1,) * num_rows,
            kv_lens_host=tuple(position + 1 for position in positions),
            num_decodes=num_rows,
        )
        return step, metadata

    def _send(self, mirrors: Sequence[Mirror], positions: Sequence[int]) -> DecodeDeltas:
        """Sends what the device does not know, in one copy. Its tables will have the blocks once the step is filled."""
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
                new_blocks += mirror.block_table[known:used].tolist()
                mirror.num_device_blocks = used
        codes = [mirror.last_token_id for mirror in mirrors]
        numbers = pack_deltas((codes, positions, table_rows, num_known, first_new), new_blocks)
        return DecodeDeltas(self.transfers.upload([numbers])[0], len(mirrors))

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
