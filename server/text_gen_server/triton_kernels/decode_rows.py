"""The inputs of a step of decodes in one launch: the tables that the device keeps get their new blocks, and the memory that the
model reads is written whole, empty rows included. The plain form is `plain.py`.

Shapes: see `decode_rows.py`; R tables of as many blocks as the longest sequence has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from text_gen_server.decode_rows import NUM_FIELDS

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.decode_rows import DecodeDeltas, DecodeRows

COLUMNS = 1024  # of a table, by one program


def fill_decode_rows(
    deltas: DecodeDeltas, tables: Tensor, sampled_before: Tensor, rows: DecodeRows, *, block_size: int
) -> None:
    """Fills all of `rows`, and writes the new blocks into `tables`.

    tables: [R, blocks] int32; no two rows of a batch have one table
    sampled_before: [N] int64, the tokens for which numbers below 0 stand: -1 - n for the n-th
    rows: S >= B, as wide as the blocks that a row of the batch uses, or wider
    """
    num_rows, width = rows.block_tables.shape
    assert deltas.num_rows <= num_rows, "the batch fits"
    assert rows.block_tables.is_contiguous(), "rows lie behind each other"
    assert tables.stride(1) == 1, "blocks of a table lie side by side"
    _fill_rows[(num_rows, triton.cdiv(width, COLUMNS))](
        *rows.vectors(),
        rows.block_tables,
        tables,
        deltas.numbers,
        sampled_before,
        deltas.num_rows,
        width,
        tables.stride(0),
        BLOCK_SIZE=block_size,
        COLUMNS=COLUMNS,
        NUM_FIELDS=NUM_FIELDS,
    )


# One form for all steps: none of them may wait for a compiler.
@triton.jit(do_not_specialize=["deltas", "sampled_before", "num_rows", "width", "stride_tables"])
def _fill_rows(
    token_ids,
    positions,
    slot_mapping,
    kv_lens,
    targets,
    tables,
    deltas,
    sampled_before,
    num_rows,
    width,
    stride_tables,
    BLOCK_SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    NUM_FIELDS: tl.constexpr,
):
    row = tl.program_id(0)
    is_row = row < num_rows
    field = deltas + row
    token = tl.load(field, mask=is_row, other=0).to(tl.int64)
    position = tl.load(field + num_rows, mask=is_row, other=0).to(tl.int64)
    table = tables + tl.load(field + 2 * num_rows, mask=is_row, other=0).to(tl.int64) * stride_tables
    num_known = tl.load(field + 3 * num_rows, mask=is_row, other=0)
    first_new = tl.load(field + 4 * num_rows, mask=is_row, other=0)
    num_used = tl.where(is_row, position // BLOCK_SIZE + 1, 0).to(tl.int32)
    # Where the block of column c would be if all of the row's blocks were new.
    new_blocks = deltas + NUM_FIELDS * num_rows + first_new - num_known

    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_used = column < num_used
    is_new = is_used & (column >= num_known)
    known = tl.load(table + column, mask=is_used & (column < num_known), other=0)
    new = tl.load(new_blocks + column, mask=is_new, other=0)
    tl.store(table + column, new, mask=is_new)
    target = targets + row.to(tl.int64) * width + column
    tl.store(target, tl.where(is_new, new, known), mask=column < width)

    if tl.program_id(1) == 0:
        # Another program may be writing this block into the table just now.
        last = num_used - 1
        block = tl.load(table + last, mask=is_row & (last < num_known), other=0)
        block += tl.load(new_blocks + last, mask=is_row & (last >= num_known), other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        sampled = tl.load(sampled_before + (-1 - token), mask=token < 0, other=0)
        tl.store(token_ids + row, tl.where(token < 0, sampled, token))
        tl.store(positions + row, position)
        tl.store(slot_mapping + row, tl.where(is_row, slot, -1))
        tl.store(kv_lens + row, tl.where(is_row, position + 1, 0).to(tl.int32))
