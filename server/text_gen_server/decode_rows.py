"""The inputs of a step of decodes on the device, and what the host sends from which they are made.

Shapes: B rows of a batch, one token each; S >= B rows of memory, those behind the batch empty; W blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

NUM_FIELDS = 5


@dataclass(frozen=True)
class DecodeRows:
    """Memory for the inputs. An empty row has token 0 at position 0, reads no block and writes to slot -1."""

    token_ids: Tensor  # [S] int64
    positions: Tensor  # [S] int64
    slot_mapping: Tensor  # [S] int64
    kv_lens: Tensor  # [S] int32, this step's token included
    block_tables: Tensor  # [S, W] int32, 0 behind a row's blocks

    @classmethod
    def allocate(cls, num_rows: int, width: int, device: torch.device) -> DecodeRows:
        """Not filled."""
        token_ids, positions, slot_mapping = (torch.empty(num_rows, dtype=torch.int64, device=device) for _ in range(3))
        kv_lens = torch.empty(num_rows, dtype=torch.int32, device=device)
        block_tables = torch.empty((num_rows, width), dtype=torch.int32, device=device)
        return cls(token_ids, positions, slot_mapping, kv_lens, block_tables)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.vectors(), self.block_tables))

    def vectors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What has one number for each row."""
        return self.token_ids, self.positions, self.slot_mapping, self.kv_lens

    def part(self, rows: slice) -> DecodeRows:
        """Some of the rows, in the same memory."""
        return DecodeRows(
            token_ids=self.token_ids[rows],
            positions=self.positions[rows],
            slot_mapping=self.slot_mapping[rows],
            kv_lens=self.kv_lens[rows],
            block_tables=self.block_tables[rows],
        )

    def clear(self) -> None:
        """Empties all rows."""
        for vector, value in zip(self.vectors(), (0, 0, -1, 0), strict=True):
            vector.fill_(value)
        self.block_tables.zero_()


@dataclass(frozen=True)
class DecodeDeltas:
    """What the device does not know of a step, in one vector of 5 B + n numbers: the fields of all rows, and behind them the n
    blocks that its tables lack, row by row.

    The fields: the last token, below 0 where only the device knows it (see `Mirror.append_token`); its position; the row of its
    table; how many of its blocks that table has, which may be more than it uses; where its new blocks start among the n.
    """

    numbers: Tensor  # [5 B + n] int32
    num_rows: int  # B

    def fields(self) -> Tensor:
        """[5, B] int32"""
        return self.numbers[: NUM_FIELDS * self.num_rows].view(NUM_FIELDS, self.num_rows)

    def new_blocks(self) -> Tensor:
        """[n] int32"""
        return self.numbers[NUM_FIELDS * self.num_rows :]


def pack_deltas(fields: Sequence[Sequence[int]], new_blocks: Sequence[int]) -> NDArray[np.int32]:
    """The numbers of `DecodeDeltas` on the host. fields: [5][B]"""
    num_fields = NUM_FIELDS * len(fields[0])
    numbers = np.empty(num_fields + len(new_blocks), dtype=np.int32)
    numbers[:num_fields].reshape(NUM_FIELDS, -1)[:] = fields
    numbers[num_fields:] = new_blocks
    return numbers
