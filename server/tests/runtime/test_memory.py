"""The KV cache is as large as the arithmetic says, within the machine, its control groups, and what can be used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from text_gen_server.config import load_model_config
from text_gen_server.host import free_cpu_bytes, usable_cores
from text_gen_server.memory import MIB, CapacityRequest, MemoryBudget, activation_bound_bytes, size_kv_cache

BUDGET = MemoryBudget(free_bytes=1100 * MIB, num_sharers=2, activation_bytes=50 * MIB, fraction=0.5)
REQUEST = CapacityRequest(
    max_batch_size=1000, max_total_tokens=100_000, max_batch_total_tokens=0, block_size=16, bytes_per_token=MIB // 16
)


def test_the_size_follows_from_free_memory_and_says_how() -> None:
    size = size_kv_cache(REQUEST, BUDGET)
    assert (size.num_blocks, size.block_size, size.kv_cache_bytes) == (250, 16, 250 * MIB)
    assert "(1100 MiB free / 2 rank(s) - 50 MiB for the worst step) x 0.5 = 250 MiB" in size.arithmetic
    assert size.arithmetic.endswith("-> 250 blocks, 250 MiB")


def test_graphs_leave_less_for_blocks() -> None:
    size = size_kv_cache(REQUEST, replace(BUDGET, graph_bytes=100 * MIB))
    assert size.num_blocks == 200
    assert "- 50 MiB for the worst step - 100 MiB for graphs) x 0.5 = 200 MiB" in size.arithmetic


def test_a_reserve_leaves_less_for_blocks() -> None:
    size = size_kv_cache(REQUEST, replace(BUDGET, reserve_bytes=20 * MIB))
    assert size.num_blocks == 240
    assert "- 50 MiB for the worst step - 20 MiB in reserve) x 0.5 = 240 MiB" in size.arithmetic


def test_what_attention_copies_leaves_less_for_blocks() -> None:
    size = size_kv_cache(replace(REQUEST, copied_bytes_per_token=REQUEST.bytes_per_token), BUDGET)
    assert (size.num_blocks, size.kv_cache_bytes) == (125, 125 * MIB)


def test_no_more_is_taken_than_a_full_batch_could_use() -> None:
    size = size_kv_cache(replace(REQUEST, max_batch_size=3, max_total_tokens=33), BUDGET)
    assert size.num_blocks == 9


def test_a_capacity_that_was_set_is_rounded_down_to_blocks_but_is_at_least_one() -> None:
    assert size_kv_cache(replace(REQUEST, max_batch_total_tokens=47), BUDGET).num_blocks == 2
    assert size_kv_cache(replace(REQUEST, max_batch_total_tokens=5), BUDGET).num_blocks == 1


def test_a_capacity_that_was_set_may_use_all_the_memory_and_not_more() -> None:
    assert size_kv_cache(replace(REQUEST, max_batch_total_tokens=500 * 16), BUDGET).num_blocks == 500
    with pytest.raises(ValueError, match=r"max_batch_total_tokens 8016 needs 501 MiB .* there is 500 MiB: \(1100 MiB free"):
        size_kv_cache(replace(REQUEST, max_batch_total_tokens=501 * 16), BUDGET)


def test_too_little_memory_for_a_block_is_an_error_with_its_arithmetic() -> None:
    with pytest.raises(ValueError, match=r"no memory for a single block of the KV cache: \(60 MiB free"):
        size_kv_cache(REQUEST, replace(BUDGET, free_bytes=60 * MIB))


def test_the_rank_with_the_least_memory_decides() -> None:
    size = size_kv_cache(REQUEST, BUDGET)
    assert size.with_blocks(250) is size
    smaller = size.with_blocks(100)
    assert (smaller.num_blocks, smaller.kv_cache_bytes) == (100, 100 * MIB)
    assert "another rank has memory for 100 blocks only" in smaller.arithmetic


def test_the_bound_of_a_step_grows_with_tokens_rows_and_width(babbling_folder: Path) -> None:
    config = load_model_config(babbling_folder)

    def bound(num_tokens: int, num_rows: int, dtype: torch.dtype = torch.float32) -> int:
        return activation_bound_bytes(config, num_tokens=num_tokens, num_rows=num_rows, dtype=dtype)

    assert bound(2000, 10) - bound(1000, 10) == bound(1000, 0)
    assert bound(10, 20) - bound(10, 10) == 10 * 6 * 4 * config.vocab_size
    assert bound(100, 0) == 2 * bound(100, 0, torch.bfloat16)


def proc(folder: Path, *, cgroup: str) -> Path:
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    (folder / "proc" / "self" / "cgroup").write_text(cgroup)
    return folder / "proc"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_without_a_control_group_all_available_memory_is_free(tmp_path: Path) -> None:
    assert free_cpu_bytes(proc(tmp_path, cgroup=""), tmp_path / "none") == 8000 * 1024
    assert free_cpu_bytes() > MIB


def test_the_tightest_control_group_of_version_2_limits_memory_and_cores(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root / "a", memory__max="5000000", memory__current="1000000", memory__stat="anon 1\ninactive_file 500000\n")
    write(root / "a" / "b", memory__max="max", memory__current="5", cpu__max="max 100000")
    folder = proc(tmp_path, cgroup="0::/a/b\n")
    assert free_cpu_bytes(folder, root) == 4_500_000
    cores = usable_cores(folder, root)
    write(root / "a", cpu__max="50000 100000")
    assert (usable_cores(folder, root), cores >= 1) == (1, True)


def test_a_control_group_of_version_1_limits_memory_and_cores(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root / "memory" / "x", memory__limit_in_bytes="3000000", memory__usage_in_bytes="1000000")
    write(root / "cpu,cpuacct")
    write(root / "cpu" / "x", cpu__cfs_quota_us="100000", cpu__cfs_period_us="100000")
    folder = proc(tmp_path, cgroup="4:memory:/x\n3:cpu,cpuacct:/x\n")
    assert free_cpu_bytes(folder, root) == 2_000_000
    assert usable_cores(folder, root) == 1


def test_a_full_control_group_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root, memory__max="100", memory__current="200")
    assert free_cpu_bytes(proc(tmp_path, cgroup="0::/\n"), root) == 0
