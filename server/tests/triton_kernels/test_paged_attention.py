"""The paged attention kernel gives what plain PyTorch gives, and reads nothing that is not its row's."""

from dataclasses import replace

import pytest
import torch
from text_gen_server.triton_kernels import plain
from text_gen_server.triton_kernels.paged_attention import (
    MAX_SPLITS,
    PagedKV,
    PagedRows,
    Scores,
    choose_num_splits,
    paged_attention,
)

from triton_kernels.paged import Shape, Step, make_step

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SCALE = Scores(0.125)


def check(step: Step, scores: Scores = SCALE, num_splits: int = 1) -> None:
    expected = plain.paged_attention(step.query, step.kv, step.rows, scores)
    assert expected.isfinite().all(), "the test reads what it forbids"
    tolerance = TOLERANCE[step.query.dtype]
    output = paged_attention(step.query, step.kv, step.rows, scores, num_splits=num_splits)
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 8, 16])
def test_every_head_size_and_group_equals_the_plain_form(head_dim: int, group: int) -> None:
    shape = Shape(num_kv_heads=1, group=group, head_dim=head_dim)
    check(make_step(shape, [(1, 70), (5, 21)]))


@pytest.mark.parametrize("group", [2, 4, 5, 6, 7, 12])
def test_every_group_decodes(group: int) -> None:
    check(make_step(Shape(num_kv_heads=2, group=group), [(1, 20), (1, 3)]))


@pytest.mark.parametrize("block_size", [16, 32, 48, 64, 128, 256])
def test_every_block_size_equals_the_plain_form(block_size: int) -> None:
    check(make_step(Shape(num_kv_heads=1, block_size=block_size), [(1, block_size), (1, block_size + 1), (9, 2 * block_size)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fp8", [False, True])
def test_every_dtype_equals_the_plain_form(dtype: torch.dtype, fp8: bool) -> None:
    step = make_step(Shape(dtype=dtype, kv_dtype=torch.float8_e4m3fn if fp8 else None), [(1, 40), (4, 30)])
    kv = replace(step.kv, key_scale=0.5, value_scale=3.0) if fp8 else step.kv
    check(replace(step, kv=kv))


RAGGED = [(1, 1), (1, 64), (1, 65), (16, 16), (17, 40), (33, 33), (2, 130)]


@pytest.mark.parametrize("window", [None, 1, 7, 64, 1000])
@pytest.mark.parametrize("soft_cap", [None, 2.5])
def test_windows_and_caps_on_ragged_rows(window: int | None, soft_cap: float | None) -> None:
    scores = Scores(0.2, sliding_window=window, soft_cap=soft_cap)
    check(make_step(Shape(num_kv_heads=1, group=4), RAGGED), scores)


@pytest.mark.parametrize("num_splits", [2, 3, 8])
@pytest.mark.parametrize("window", [None, 100])
def test_splits_of_a_long_context_equal_the_whole(num_splits: int, window: int | None) -> None:
    step = make_step(Shape(num_kv_heads=1, group=3, head_dim=96), [(1, 700), (1, 5), (2, 200), (1, 0)])
    check(step, Scores(0.1, sliding_window=window), num_splits)


def test_a_row_without_tokens_and_a_row_without_context_do_no_harm() -> None:
    step = make_step(Shape(num_kv_heads=1), [(0, 5), (1, 0), (3, 9), (0, 0), (1, 2)])
    check(step)
    assert not paged_attention(step.query, step.kv, step.rows, SCALE)[0].any()


def test_a_step_without_tokens_is_empty() -> None:
    step = make_step(Shape(), [(0, 5)])
    assert paged_attention(step.query, step.kv, step.rows, SCALE).shape == (0, 4, 64)


def test_the_query_may_be_a_view_into_a_wider_tensor() -> None:
    step = make_step(Shape(), [(1, 9), (4, 20)])
    wide = torch.cat((step.query, torch.full_like(step.query, float("nan"))), dim=1)
    check(replace(step, query=wide[:, : step.query.shape[1]]))


def test_a_prompt_in_chunks_is_the_prompt_at_once() -> None:
    whole = make_step(Shape(num_kv_heads=1), [(50, 50)])
    at_once = paged_attention(whole.query, whole.kv, whole.rows, SCALE)
    parts = []
    for first, last in ((0, 1), (1, 18), (18, 34), (34, 50)):
        rows = replace(
            whole.rows,
            query_start=torch.tensor([0, last - first], dtype=torch.int32),
            kv_lens=torch.tensor([last], dtype=torch.int32),
            max_query_len=last - first,
        )
        parts.append(paged_attention(whole.query[first:last], whole.kv, rows, SCALE))
    torch.testing.assert_close(torch.cat(parts), at_once, atol=2e-5, rtol=2e-5)


def test_rows_together_are_rows_alone() -> None:
    together = make_step(Shape(num_kv_heads=1), [(1, 33), (1, 7), (1, 90)])
    output = paged_attention(together.query, together.kv, together.rows, SCALE)
    for n in range(3):
        rows = replace(
            together.rows,
            query_start=torch.tensor([0, 1], dtype=torch.int32),
            kv_lens=together.rows.kv_lens[n : n + 1],
            block_tables=together.rows.block_tables[n : n + 1],
        )
        assert torch.equal(paged_attention(together.query[n : n + 1], together.kv, rows, SCALE)[0], output[n])


def test_nan_of_a_row_stays_in_that_row() -> None:
    step = make_step(Shape(num_kv_heads=1), [(1, 20), (1, 20)])
    step.kv.value[step.block_ids[0][0], 3] = float("nan")
    output = paged_attention(step.query, step.kv, step.rows, SCALE)
    assert output[0].isnan().any()
    assert output[1].isfinite().all()


def splits_of(num_rows: int, query_len: int, max_seen_len: int) -> int:
    """On the shape of an 8B Llama and a device of 132 processors."""
    query = torch.empty(num_rows * query_len, 32, 128, device="meta")
    kv = PagedKV(*(torch.empty(9, 16, 8, 128, device="meta") for _ in range(2)))
    kv_lens = torch.zeros(num_rows, dtype=torch.int32)
    rows = PagedRows(query_start=kv_lens, kv_lens=kv_lens, block_tables=kv_lens.view(-1, 1), max_query_len=query_len)
    return choose_num_splits(query, kv, rows, max_seen_len=max_seen_len, num_processors=132)


def test_only_few_rows_with_long_contexts_are_split() -> None:
    assert splits_of(1, 1, 8192) == 32
    assert splits_of(1, 1, 2048) == 8
    assert splits_of(1, 1, 200) == 1
    assert splits_of(8, 1, 8192) > 1
    assert splits_of(256, 1, 8192) == 1
    assert splits_of(1, 8192, 8192) == 1
    assert max(splits_of(n, 1, 2**20) for n in range(1, 300)) <= MAX_SPLITS
