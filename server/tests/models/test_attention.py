"""The fast implementation gives what the plain one gives, and no row sees what is not its own."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_gen_server.attention import cpu
from text_gen_server.attention.choose import choose_attention
from text_gen_server.attention.cpu import CpuAttention
from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.attention.reference import ReferenceAttention
from text_gen_server.config import ModelConfig
from text_gen_server.kv_cache import KVCache
from torch import Tensor

from models.driver import CPU, metadata_of


@st.composite
def cases(draw: st.DrawFn) -> tuple[AttentionMetadata, KVCache, Tensor]:
    """A step of any shape over a cache of random numbers."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    head_dim, block_size = draw(st.sampled_from([2, 8, 16])), draw(st.sampled_from([1, 4, 16]))
    lens = draw(
        st.lists(st.tuples(st.integers(0, 40) | st.integers(0, 700), st.just(1) | st.integers(1, 30)), min_size=1, max_size=6)
    )
    decodes = sorted(lens, key=lambda row: row[1] != 1)
    query_lens = [query_len for _, query_len in decodes]
    kv_lens = [before + query_len for before, query_len in decodes]
    ones = sum(query_len == 1 for query_len in query_lens)
    # A row of one token may count as a prefill too: the last piece of a chunked prompt.
    num_decodes = draw(st.integers(0, ones))
    num_blocks = sum(-(-kv_len // block_size) for kv_len in kv_lens) + 3
    free = list(range(num_blocks))
    random.Random(draw(st.integers(0, 99))).shuffle(free)
    block_ids = [[free.pop() for _ in range(-(-kv_len // block_size))] for kv_len in kv_lens]
    cache = make_cache(num_blocks, block_size, kv_heads, head_dim)
    query = torch.randn(sum(query_lens), kv_heads * group, head_dim)
    return metadata_of(block_ids, query_lens, kv_lens, num_decodes), cache, query


def make_cache(num_blocks: int, block_size: int, kv_heads: int, head_dim: int) -> KVCache:
    slots = [torch.randn(num_blocks * block_size + 1, kv_heads, head_dim) for _ in range(2)]
    blocks = [tensor[:-1].view(num_blocks, block_size, kv_heads, head_dim) for tensor in slots]
    return KVCache(num_blocks, block_size, (blocks[0],), (blocks[1],), (slots[0],), (slots[1],))


@settings(max_examples=120, deadline=None)
@given(cases(), st.none() | st.integers(1, 50))
def test_cpu_attention_equals_the_reference(case: tuple[AttentionMetadata, KVCache, Tensor], window: int | None) -> None:
    metadata, cache, query = case
    prepared = CpuAttention().prepare(metadata, cache)
    expected = ReferenceAttention().prepare(metadata, cache).attend(0, query, window)
    for _ in range(2):  # The second layer uses what the first one left.
        torch.testing.assert_close(prepared.attend(0, query, window), expected, atol=2e-5, rtol=2e-5)


def test_a_long_prefill_is_computed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "PREFILL_SLICE", 7)
    monkeypatch.setattr(cpu, "MAX_KEPT_MASK_ELEMENTS", 500)
    cache = make_cache(32, 4, 2, 8)
    metadata = metadata_of([list(range(30))], [52], [117], 0)
    query = torch.randn(52, 4, 8)
    for window in (None, 3, 20, 200):
        prepared = CpuAttention().prepare(metadata, cache)
        expected = ReferenceAttention().prepare(metadata, cache).attend(0, query, window)
        torch.testing.assert_close(prepared.attend(0, query, window), expected)


@pytest.mark.parametrize("window", [11, 12, 13])
def test_a_window_about_as_long_as_the_prompt_hides_what_it_should(window: int) -> None:
    cache, query = make_cache(4, 4, 1, 8), torch.randn(12, 2, 8)
    metadata = metadata_of([[2, 0, 1]], [12], [12], 0)
    prepared = CpuAttention().prepare(metadata, cache)
    expected = ReferenceAttention().prepare(metadata, cache).attend(0, query, window)
    torch.testing.assert_close(prepared.attend(0, query, window), expected)


def test_a_poisoned_neighbour_does_not_reach_other_rows() -> None:
    cache = make_cache(12, 4, 1, 8)
    # Row 1 owns block 0, which pads the table of row 0, and has NaN in all of it.
    metadata = metadata_of([[5], [0, 1, 2]], [1, 1], [3, 12], 2)
    for blocks in (*cache.keys, *cache.values):
        blocks[0] = float("nan")
    output = CpuAttention().prepare(metadata, cache).attend(0, torch.randn(2, 2, 8), None)
    assert output[0].isfinite().all()
    assert output[1].isnan().all()


def test_a_block_that_held_nan_is_clean_for_the_next_sequence() -> None:
    cache = make_cache(4, 4, 1, 8)
    for blocks in (*cache.keys, *cache.values):
        blocks[2] = float("nan")
    metadata = metadata_of([[1, 2]], [1], [5], 1)
    prepared = CpuAttention().prepare(metadata, cache)
    for slots in cache.slots(0):
        slots[8] = torch.randn(1, 8)
    assert prepared.attend(0, torch.randn(1, 2, 8), None).isfinite().all()


def test_a_block_in_use_is_not_cleared() -> None:
    cache = make_cache(4, 4, 1, 8)
    before = cache.keys[0].clone()
    CpuAttention().prepare(metadata_of([[1, 2], [3]], [1, 2], [6, 4], 1), cache)
    assert torch.equal(cache.keys[0], before)


def test_slot_minus_one_is_not_written() -> None:
    cache = make_cache(2, 4, 1, 8)
    before = cache.keys[0].clone()
    for slots in cache.slots(0):
        slots[torch.tensor([-1, 5])] = 1.0
    assert torch.equal(cache.keys[0][1, 1], torch.ones(1, 8))
    before[1, 1] = 1
    assert torch.equal(cache.keys[0], before)


def test_attention_is_chosen_by_device_or_by_name(llama_config: ModelConfig) -> None:
    cuda = torch.device("cuda")
    assert choose_attention(None, device=CPU, dtype=torch.float32, config=llama_config).name == "cpu"
    assert choose_attention("reference", device=CPU, dtype=torch.float32, config=llama_config).name == "reference"
    with pytest.raises(
        ValueError, match="attention 'fast' is unknown; there are auto, reference, cpu, native, flash-attn, torch-varlen"
    ):
        choose_attention("fast", device=CPU, dtype=torch.float32, config=llama_config)
    with pytest.raises(ValueError, match="does not run on cuda"):
        choose_attention("cpu", device=cuda, dtype=torch.float32, config=llama_config)
