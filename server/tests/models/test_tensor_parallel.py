"""Two ranks compute what one rank computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from text_gen_server.distributed import TensorParallel
from torch import Tensor

from models.driver import CPU, Driver, load

TOKENS = [(5 * i * i + i + 3) % 2047 for i in range(23)]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "one KV head on each rank": ("llama", {}),
    "a KV head on both ranks": ("llama", {"num_key_value_heads": 1}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "odd vocabulary": ("llama", {"vocab_size": 2047}),
    "odd vocabulary, tied": ("qwen2", {"vocab_size": 2047, "tie_word_embeddings": True}),
    "normalized heads": ("qwen3", {"num_key_value_heads": 4}),
    "sliding": ("mistral", {"sliding_window": 6}),
}


def _run_rank(rank: int, world_size: int, folders: dict[str, Path], work: Path) -> None:
    torch.set_num_threads(1)
    parallel = TensorParallel.init(rank=rank, world_size=world_size, rendezvous=work / "rendezvous", device=CPU)
    results: dict[str, Any] = {"minimum": parallel.minimum(10 - rank)}
    shared = torch.tensor([rank + 1.0, 7.0])
    parallel.broadcast_from_rank0(shared)
    results["broadcast"] = shared
    for variant, folder in folders.items():
        model, config = load(folder, tensor_parallel=parallel)
        driver = Driver(model, config, tensor_parallel=parallel)
        logits = driver.compute(TOKENS, 9).logits
        results[variant] = torch.cat(logits) if logits else None
        results[f"KV heads, {variant}"] = driver.cache.keys[0].shape[2]
    torch.save(results, work / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def results(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    work = tmp_path_factory.mktemp("ranks")
    folders = {variant: model_folder(family, **config) for variant, (family, config) in VARIANTS.items()}
    torch.multiprocessing.spawn(_run_rank, (2, folders, work), nprocs=2)
    return [torch.load(work / f"rank{rank}.pt") for rank in range(2)]


def single_rank_logits(folder: Path) -> Tensor:
    return Driver(*load(folder)).run(TOKENS, 9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_give_the_logits_of_one(
    variant: str, results: list[dict[str, Any]], model_folder: Callable[..., Path]
) -> None:
    family, config = VARIANTS[variant]
    expected = single_rank_logits(model_folder(family, **config))
    torch.testing.assert_close(results[0][variant], expected, atol=1e-4, rtol=1e-4)
    assert results[1][variant] is None, "only rank 0 has logits"


def test_a_kv_head_is_on_every_rank_that_needs_it(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["KV heads, one KV head on each rank"] == 1
        assert result["KV heads, a KV head on both ranks"] == 1
        assert result["KV heads, normalized heads"] == 2


def test_the_minimum_of_the_ranks_is_known_to_all(results: list[dict[str, Any]]) -> None:
    assert [result["minimum"] for result in results] == [9, 9]


def test_a_broadcast_gives_all_ranks_the_tensor_of_rank_0(results: list[dict[str, Any]]) -> None:
    assert [result["broadcast"].tolist() for result in results] == [[1.0, 7.0], [1.0, 7.0]]


@pytest.mark.parametrize(
    ("num_kv_heads", "world_size", "heads"),
    [(8, 4, [(0, 2), (2, 4), (4, 6), (6, 8)]), (2, 4, [(0, 1), (0, 1), (1, 2), (1, 2)]), (3, 3, [(0, 1), (1, 2), (2, 3)])],
)
def test_kv_heads_are_split_or_shared(num_kv_heads: int, world_size: int, heads: list[tuple[int, int]]) -> None:
    ranks = [TensorParallel(rank=rank, world_size=world_size, group=None, device=CPU) for rank in range(world_size)]
    assert [rank.split_kv_heads(num_kv_heads) for rank in ranks] == [slice(start, stop) for start, stop in heads]


@pytest.mark.parametrize(
    ("world_size", "config", "message"),
    [
        (3, {}, "4 attention heads cannot be split over 3 shards"),
        (3, {"num_attention_heads": 6, "hidden_size": 96}, "2 KV heads cannot be shared by 3 shards"),
        (4, {"intermediate_size": 110}, "110 MLP features cannot be split over 4 shards"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused(
    world_size: int, config: dict[str, Any], message: str, model_folder: Callable[..., Path]
) -> None:
    parallel = TensorParallel(rank=0, world_size=world_size, group=None, device=CPU)
    with pytest.raises(ValueError, match=message):
        load(model_folder("llama", **config), tensor_parallel=parallel)
