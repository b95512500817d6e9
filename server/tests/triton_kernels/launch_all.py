"""Drives a whole shard whose kernels are compiled for an H200 and launched on a driver that does nothing, and looks when they
are compiled: a program of its own, because it must not be interpreted.

    python launch_all.py MODEL_DIR

Every tensor is of the CPU and, where a kernel should have filled it, zero. So tokens mean nothing, but everything else is as
on a GPU: which kernels there are, with which constants, alignments and divisors they are launched, and when.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runtime.fakes import FakeRouter
from runtime.late_device import LateTransfers
from runtime.test_cuda_graphs import FakeCapture
from text_gen_server import shard as shard_module
from text_gen_server.attention.triton import TritonAttention
from text_gen_server.config import load_model_config
from text_gen_server.memory import MIB, MemoryBudget
from text_gen_server.ops.fp8 import Fp8Rows, ScaledMatrixMath
from text_gen_server.ops.interface import Fp8Weight
from text_gen_server.ops.triton import TritonOps
from text_gen_server.plan import SamplingParameters, StepPlan
from text_gen_server.sampling import fused
from text_gen_server.shard import PrepareParameters, Shard, ShardOptions
from text_gen_server.step_inputs import DeviceInputs, choose_fill
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

LIMITS = PrepareParameters(max_batch_prefill_tokens=512, max_batch_size=6, max_total_tokens=4096)
KINDS = (
    SamplingParameters(),
    SamplingParameters(num_top_tokens=1),
    SamplingParameters(do_sample=True, top_k=3, num_top_tokens=16),
    SamplingParameters(repetition_penalty=1.1),
    SamplingParameters(do_sample=True, logit_bias=((3, 1.0),), prompt_logprobs=True),
    SamplingParameters(watermark_gamma=0.5, watermark_delta=1.0),
)


class NoDriver:
    """Of Triton, for a device that is not there."""

    class utils:  # noqa: N801
        @staticmethod
        def get_device_properties(_: int) -> dict[str, int]:
            return {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132}

        @staticmethod
        def load_binary(*_: Any) -> tuple[int, int, int, int, int]:
            return 1, 1, 32, 0, 1024  # module, function, registers, spilled ones, threads

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, *_: Any) -> Callable[..., None]:
        return lambda *_, **__: None


class NoProducts(ScaledMatrixMath):
    """As a GPU rounds; what it would multiply is zero."""

    def __init__(self) -> None:
        pass

    def multiply(self, rows: Fp8Rows, weight: Fp8Weight, bias: Tensor | None) -> Tensor:  # noqa: ARG002
        return torch.zeros(len(rows.values), len(weight.values), dtype=torch.bfloat16)


def zeros_for_empty() -> None:
    empty, empty_like, new_empty = torch.empty, torch.empty_like, Tensor.new_empty

    def zeroed(make: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        tensor = make(*arguments, **options)
        (tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor).zero_()
        return tensor

    torch.empty, torch.empty_like = partial(zeroed, empty), partial(zeroed, empty_like)  # type: ignore[assignment]
    Tensor.new_empty = lambda self, *a, **k: zeroed(new_empty, self, *a, **k)  # type: ignore[method-assign]


def make_shard(folder: Path, *, fp8: bool, has_graphs: bool) -> Shard:
    """As it would be on a GPU."""
    choices: dict[str, Any] = {
        "choose_ops": lambda **_: TritonOps(torch.bfloat16, fp8_math=NoProducts() if fp8 else None, rounds_to_fp8=fp8),
        "choose_attention": lambda *_, **__: TritonAttention(num_processors=132),
        "choose_sampler": lambda *_: fused.sample,
        "choose_inputs": lambda device, limits, transfers, graphed: DeviceInputs(
            limits, transfers, device, graphed=graphed, fill=choose_fill()
        ),
        "choose_transfers": lambda _: LateTransfers(),  # which packs what it sends, so that not all of it is aligned
        "choose_capture": lambda *_: FakeCapture if has_graphs else None,
        "_choose_kv_dtype": lambda *_: torch.float8_e4m3fn if fp8 else torch.bfloat16,
        "cuda_budget": lambda **_: MemoryBudget(free_bytes=64 * MIB, num_sharers=1, activation_bytes=0, fraction=1.0),
        "cuda_used_bytes": lambda _: 0,
    }
    for name in ("memory_reserved", "max_memory_reserved", "reset_peak_memory_stats"):
        setattr(torch.cuda, name, lambda *_: 0)
    for name, choice in choices.items():
        setattr(shard_module, name, choice)
    shard = Shard(ShardOptions(model_dir=folder, device="cpu", dtype="bfloat16"), load_model_config(folder))
    shard.is_gpu = True
    return shard


def serve(shard: Shard, num_steps: int) -> None:
    """Requests of all kinds and lengths, which come, are cut into chunks, and leave."""
    assert shard.runner is not None
    router, chance = FakeRouter(shard.runner), random.Random(0)
    left: dict[int, int] = {}  # tokens still to be computed of each sequence
    for n in range(num_steps):
        if len(left) < LIMITS.max_batch_size and chance.random() < 0.5:
            left[n] = chance.choice([1, 2, 15, 16, 17, 64, 300])
            router.add(n, [chance.randrange(300) for _ in range(left[n])], sampling=replace(chance.choice(KINDS), seed=n))
        rows, budget = {}, LIMITS.max_batch_prefill_tokens
        for sequence_id in [each for each in left if chance.random() < 0.9]:
            count = min(budget, left[sequence_id] if chance.random() < 0.7 else chance.randint(1, left[sequence_id]))
            if count > 0:
                budget, rows[f"s{sequence_id}"] = budget - count, count
                left[sequence_id] = max(1, left[sequence_id] - count)
        if rows:
            plan = router.plan(**rows)
            shard.runner.step(masked(plan) if chance.random() < 0.3 else plan)
        if left and chance.random() < 0.2:
            gone = chance.choice(list(left))
            del left[gone]
            if gone in shard.runner.mirrors:
                router.forget(gone)
            else:
                router.to_add = [new for new in router.to_add if new.sequence_id != gone]


def masked(plan: StepPlan) -> StepPlan:
    first = plan.rows[0]
    return replace(plan, rows=(replace(first, masked=True), *plan.rows[1:]), masks=((first.sequence_id, b"\xff" * 40),))


if __name__ == "__main__":
    driver.set_active(NoDriver())
    zeros_for_empty()
    compiled: list[str] = []
    compile_kernel = JITFunction._do_compile

    def count(kernel: Any, *arguments: Any, **options: Any) -> Any:
        compiled.append(kernel.__name__)
        return compile_kernel(kernel, *arguments, **options)

    JITFunction._do_compile = count
    for fp8, has_graphs in ((False, False), (True, True)):
        shard = make_shard(Path(sys.argv[1]), fp8=fp8, has_graphs=has_graphs)
        shard.prepare(LIMITS)
        before = len(compiled)
        assert {"_fill_rows", "_attend_tile", "_choose", "_count_tokens"} <= set(compiled)
        serve(shard, 60)
        assert compiled[before:] == [], "a request waited for a compiler"
    assert compiled.count("_fill_rows") == 1, "one form for all steps, and wherever what they are sent lies"
