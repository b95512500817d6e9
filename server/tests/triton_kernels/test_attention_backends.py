"""The implementations for GPUs behind the attention interface: Triton's in the interpreter, those of packages that need a GPU
with the package replaced by a fake that does what the package's documentation says.
"""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.driver import CPU, Driver, load, metadata_of
from text_gen_server.attention import choose, flash_attn, torch_varlen
from text_gen_server.attention import triton as triton_attention
from text_gen_server.attention.choose import choose_attention
from text_gen_server.attention.interface import Attention, CompiledAttention
from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.attention.reference import ReferenceAttention
from text_gen_server.attention.triton import TritonAttention
from text_gen_server.config import ModelConfig, load_model_config
from text_gen_server.kv_cache import KVCache
from text_gen_server.triton_kernels import paged_attention, plain
from text_gen_server.triton_kernels.paged_attention import PagedKV, PagedRows, Scores
from tiny_models import write_model
from torch import Tensor

CUDA = torch.device("cuda")
MIXED = [(1, 30), (1, 700), (1, 1), (5, 5), (7, 300), (1, 90)]


def make_case(lens: list[tuple[int, int]], block_size: int) -> tuple[AttentionMetadata, KVCache, Tensor]:
    torch.manual_seed(1)
    query_lens, kv_lens = ([pair[side] for pair in lens] for side in (0, 1))
    num_blocks = sum(-(-kv_len // block_size) for kv_len in kv_lens) + 1
    slots = [torch.randn(num_blocks * block_size + 1, 2, 16) for _ in range(2)]
    key, value = (tensor[:-1].view(num_blocks, block_size, 2, 16) for tensor in slots)
    free = list(range(num_blocks))
    random.Random(1).shuffle(free)
    block_ids = [[free.pop() for _ in range(-(-kv_len // block_size))] for kv_len in kv_lens]
    num_decodes = next((n for n, query_len in enumerate(query_lens) if query_len != 1), len(lens))
    metadata = metadata_of(block_ids, query_lens, kv_lens, num_decodes)
    cache = KVCache(num_blocks, block_size, (key,), (value,), (slots[0],), (slots[1],))
    return metadata, cache, torch.randn(sum(query_lens), 6, 16)


def check(attention: Attention, lens: list[tuple[int, int]], block_size: int, window: int | None) -> None:
    metadata, cache, query = make_case(lens, block_size)
    expected = ReferenceAttention().prepare(metadata, cache).attend(0, query, window)
    output = attention.prepare(metadata, cache).attend(0, query, window)
    torch.testing.assert_close(output, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("window", [None, 3, 300])
@pytest.mark.parametrize("num_processors", [1, 60])
def test_triton_attention_equals_the_reference(window: int | None, num_processors: int) -> None:
    check(TritonAttention(num_processors=num_processors), MIXED, 16, window)


def test_triton_attention_gives_the_tokens_of_the_reference(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "mistral", sliding_window=9, num_hidden_layers=2)
    prompt = [5, 9, 11, 2, 7, 30, 31, 32, 33, 34, 35, 36]
    answers = []
    for name in ("triton", "reference"):
        model, config = load(folder, attention=name)
        answers.append(Driver(model, config).greedy(prompt, 4, chunk=7))
    assert answers[0] == answers[1]


def window_from(window_size: tuple[int, int]) -> int | None:
    left, right = window_size
    assert right == 0
    return None if left == -1 else left + 1


def attend(query: Tensor, cache: tuple[Tensor, Tensor], rows: PagedRows, window: int | None) -> Tensor:
    return plain.paged_attention(query, PagedKV(*cache), rows, Scores(query.shape[-1] ** -0.5, window))


class FakeFlashAttn:
    """`flash_attn` as documented: the causal mask ends at the bottom right corner, a window counts neighbours."""

    @staticmethod
    def flash_attn_with_kvcache(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        *,
        cache_seqlens: Tensor,
        block_table: Tensor,
        causal: bool,
        window_size: tuple[int, int],
    ) -> Tensor:
        assert causal
        assert k_cache.shape[1] % 256 == 0
        assert q.shape[:2] == (len(cache_seqlens), 1)
        assert cache_seqlens.dtype == block_table.dtype == torch.int32
        start = torch.arange(len(q) + 1, dtype=torch.int32)
        rows = PagedRows(start, cache_seqlens, block_table, 1)
        return attend(q.squeeze(1), (k_cache, v_cache), rows, window_from(window_size)).unsqueeze(1)

    @staticmethod
    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        *,
        causal: bool,
        window_size: tuple[int, int],
        block_table: Tensor,
    ) -> Tensor:
        assert causal
        assert k.shape[1] % 256 == 0
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == block_table.dtype == torch.int32
        assert cu_seqlens_q[0] == cu_seqlens_k[0] == 0
        assert cu_seqlens_q[-1] == len(q)
        assert cu_seqlens_q.diff().max() == max_seqlen_q
        assert cu_seqlens_k.diff().max() == max_seqlen_k
        rows = PagedRows(cu_seqlens_q, cu_seqlens_k.diff(), block_table, max_seqlen_q)
        return attend(q, (k, v), rows, window_from(window_size))


def fake_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
) -> Tensor:
    assert enable_gqa
    assert torch.equal(cu_seq_k.diff(), seqused_k)
    assert seqused_k.max() == max_k
    return FakeFlashAttn.flash_attn_varlen_func(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, causal=True, window_size=window_size, block_table=block_table
    )


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """packages(flash_attn=..., varlen=...) -> what is installed on a machine with a Hopper GPU"""

    def install(*, flash: bool, varlen: bool) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(multi_processor_count=132))
        monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda _enabled: None)
        modules: dict[str, Any] = {
            "flash_attn": FakeFlashAttn,
            torch_varlen.MODULE: SimpleNamespace(varlen_attn=fake_varlen_attn if varlen else lambda query: query),
        }
        monkeypatch.setattr(flash_attn.importlib, "import_module", modules.__getitem__)
        monkeypatch.setattr(flash_attn, "is_installed", lambda: flash)

    return install


@pytest.fixture
def half_config(tmp_path: Path) -> ModelConfig:
    return replace(load_model_config(write_model(tmp_path, "llama")), torch_dtype="bfloat16")


@pytest.mark.parametrize("name", ["flash-attn", "torch-varlen"])
@pytest.mark.parametrize("window", [None, 1, 200])
@pytest.mark.parametrize("lens", [MIXED, MIXED[:3], MIXED[3:]], ids=["mixed", "decodes", "prefills"])
def test_the_calls_of_packages_give_what_the_reference_gives(
    name: str,
    window: int | None,
    lens: list[tuple[int, int]],
    half_config: ModelConfig,
    packages: Callable[..., None],
) -> None:
    packages(flash=True, varlen=True)
    attention = choose_attention(name, device=CUDA, config=half_config, dtype=torch.bfloat16)
    check(attention, lens, attention.default_block_size, window)


@pytest.mark.parametrize("name", ["flash-attn", "torch-varlen"])
def test_blocks_that_a_package_refuses_are_refused_with_a_reason(
    name: str, half_config: ModelConfig, packages: Callable[..., None]
) -> None:
    packages(flash=True, varlen=True)
    attention = choose_attention(name, device=CUDA, config=half_config, dtype=torch.bfloat16)
    metadata, cache, _ = make_case([(1, 3)], 16)
    with pytest.raises(ValueError, match=f"attention '{name}' needs a block size that 256 divides, not 16"):
        attention.prepare(metadata, cache)


@pytest.mark.parametrize(("block_size", "chosen"), [(None, "flash-attn"), (512, "flash-attn"), (16, "triton"), (264, "triton")])
def test_the_size_of_blocks_has_a_say(
    block_size: int | None, chosen: str, half_config: ModelConfig, packages: Callable[..., None]
) -> None:
    packages(flash=True, varlen=True)
    options: dict[str, Any] = {"device": CUDA, "config": half_config, "dtype": torch.bfloat16, "block_size": block_size}
    assert choose_attention("auto", **options).name == chosen
    if chosen == "triton":
        with pytest.raises(ValueError, match=f"'torch-varlen' needs a block size that 256 divides, not {block_size}; use auto"):
            choose_attention("torch-varlen", **options)


@pytest.mark.parametrize(
    ("flash", "varlen", "chosen"), [(True, True, "flash-attn"), (False, True, "torch-varlen"), (False, False, "triton")]
)
def test_a_gpu_gets_the_fastest_that_is_installed(
    flash: bool, varlen: bool, chosen: str, half_config: ModelConfig, packages: Callable[..., None]
) -> None:
    packages(flash=flash, varlen=varlen)
    assert choose_attention("auto", device=CUDA, config=half_config, dtype=torch.bfloat16).name == chosen
    assert choose_attention("reference", device=CUDA, config=half_config, dtype=torch.bfloat16).name == "reference"


@pytest.mark.parametrize(
    ("changes", "dtype", "reason"),
    [
        ({}, torch.float32, "needs float16 or bfloat16, not float32"),
        ({"head_dim": 512}, torch.bfloat16, "needs a head size of at most 256 that 8 divides, not 512"),
        ({"head_dim": 100}, torch.float16, "needs a head size of at most 256 that 8 divides, not 100"),
    ],
)
def test_what_flash_attention_cannot_do_goes_to_triton(
    changes: dict[str, Any],
    dtype: torch.dtype,
    reason: str,
    half_config: ModelConfig,
    packages: Callable[..., None],
) -> None:
    packages(flash=True, varlen=True)
    config = replace(half_config, **changes)
    assert choose_attention("auto", device=CUDA, config=config, dtype=dtype).name == "triton"
    with pytest.raises(ValueError, match=f"attention 'flash-attn' {reason}; use auto, triton or reference"):
        choose_attention("flash-attn", device=CUDA, config=config, dtype=dtype)


def test_an_old_gpu_gets_triton(
    half_config: ModelConfig, packages: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages(flash=True, varlen=True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert choose_attention("auto", device=CUDA, config=half_config, dtype=torch.bfloat16).name == "triton"


def test_what_is_not_there_is_refused_with_a_reason(
    half_config: ModelConfig, packages: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        choose_attention("torch-varlen", device=CPU, config=half_config, dtype=torch.bfloat16)
    packages(flash=False, varlen=False)
    with pytest.raises(ValueError, match="needs the package flash-attn, which is not installed for this PyTorch"):
        choose_attention("flash-attn", device=CUDA, config=half_config, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="needs a newer PyTorch than"):
        choose_attention("torch-varlen", device=CUDA, config=half_config, dtype=torch.bfloat16)
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="needs the package triton, which is not installed"):
        choose_attention("triton", device=CUDA, config=half_config, dtype=torch.bfloat16)
    assert choose_attention("auto", device=CUDA, config=half_config, dtype=torch.bfloat16).name == "reference"


def test_a_package_built_for_another_pytorch_is_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undefined_symbol(_name: str) -> None:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(flash_attn.importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(flash_attn.importlib, "import_module", undefined_symbol)
    assert not flash_attn.is_installed()
    assert "flash-attn is installed, but cannot be used: undefined symbol" in caplog.text


def test_a_cpu_installation_needs_no_triton() -> None:
    blocked = "import sys; sys.modules['triton'] = None; import text_gen_server.runner, text_gen_server.shard"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", blocked], env=environment, check=True)


def test_the_installed_pytorch_is_looked_at() -> None:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    assert version < (2, 12) or torch_varlen.is_supported()


def test_every_division_of_the_keys_is_compiled_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is launched for it touches nothing."""
    _, cache, _ = make_case(MIXED, 16)
    before = cache.keys[0].clone()
    launched: set[tuple[int, int]] = set()

    def launch(query: Tensor, kv: PagedKV, rows: PagedRows, scores: Scores, *, num_splits: int) -> Tensor:
        launched.add((rows.max_query_len, num_splits))
        output = paged_attention.paged_attention(query, kv, rows, scores, num_splits=num_splits)
        assert (output == 0).all(), "rows without context"
        return output

    monkeypatch.setattr(triton_attention, "paged_attention", launch)
    attention = TritonAttention(num_processors=132)
    assert isinstance(attention, CompiledAttention)
    attention.compile_kernels(cache, num_heads=6, dtype=torch.float32)
    assert launched == {(query_len, 2**n) for query_len in (1, 2) for n in range(6)}
    assert paged_attention.MAX_SPLITS == 2**5
    assert torch.equal(cache.keys[0], before)


def test_other_attention_has_nothing_to_compile() -> None:
    assert not isinstance(ReferenceAttention(), CompiledAttention)
