"""Compiles every kernel to machine code of an H200 without one: a program of its own, because it must not be interpreted.

    python compile_all.py

Each kernel is launched by its own function on tensors without memory; what would be launched is compiled instead.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import triton
from text_gen_server.decode_rows import NUM_FIELDS, DecodeDeltas, DecodeRows
from text_gen_server.triton_kernels import activation, decode_rows, norm, paged_attention, quantize, rotary, sampler
from text_gen_server.triton_kernels.paged_attention import PagedKV, PagedRows, Scores
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)
SHARED_MEMORY_BYTES = 227 * 1024  # of a program on Hopper
KERNELS: dict[ModuleType, tuple[str, ...]] = {
    activation: ("_silu_mul", "_silu_mul_fp8"),
    decode_rows: ("_fill_rows",),
    norm: ("_add_rms_norm",),
    paged_attention: ("_attend_tile", "_join_splits"),
    quantize: ("_quantize_rows",),
    rotary: ("_rotate_and_write",),
    sampler: ("_choose", "_collect_largest", "_count_tokens", "_penalize"),
}
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages")


class Compiled:
    """Stands where a kernel stood."""

    def __init__(self, kernel: JITFunction[Any]) -> None:
        self.kernel = kernel
        self.forms: set[Any] = set()  # what was compiled: constants, and which arguments 16 divides

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)
        return self.compile

    def compile(self, *arguments: Any, **constants: Any) -> None:
        options = {name: constants.pop(name) for name in OPTIONS if name in constants}
        named = dict(zip(self.kernel.arg_names, arguments, strict=False))
        # A launch does the same: it makes a constant of 1, and tells which pointers and numbers 16 divides.
        changing = {parameter.name for parameter in self.kernel.params if parameter.do_not_specialize}
        ones = {name: 1 for name in named.keys() - changing if isinstance(named[name], int) and named[name] == 1}
        constants = {**constants, **ones}
        signature = {name: "constexpr" if name in constants else type_of(named[name]) for name in self.kernel.arg_names}
        attributes = {
            (index,): [["tt.divisibility", 16]]
            for index, (name, value) in enumerate(named.items())
            if name not in changing and (isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0))
        }
        self.forms.add((tuple(sorted(constants.items())), tuple(attributes)))
        source = ASTSource(self.kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=TARGET, options=options)
        name, shared = self.kernel.__name__, compiled.metadata.shared
        assert shared <= SHARED_MEMORY_BYTES, f"{name} needs {shared} bytes of shared memory"
        print(name, len(compiled.asm["cubin"]), "bytes,", shared, "shared", constants)


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def replace_kernels() -> None:
    """From now on the launches of KERNELS compile. A kernel that is not listed fails for want of a GPU."""
    for module, names in KERNELS.items():
        for name in names:
            setattr(module, name, Compiled(getattr(module, name)))


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int32)


def attention(head_dim: int, group: int, query_len: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> None:
    kv = PagedKV(*(empty(9, 16, 2, head_dim, dtype=kv_dtype) for _ in range(2)))
    num_rows = 1 if query_len == 1 else 4
    rows = PagedRows(ints(num_rows + 1), ints(num_rows), ints(num_rows, 8), query_len)
    scores = Scores(0.1, sliding_window=100, soft_cap=30.0 if head_dim == 96 else None)
    query = empty(num_rows * query_len, 2 * group, head_dim, dtype=dtype)
    paged_attention.paged_attention(query, kv, rows, scores, num_splits=8 if query_len == 1 else 1)


def everything() -> None:
    half, fp8 = torch.bfloat16, torch.float8_e4m3fn
    attention(128, 4, 1, half, half)
    attention(128, 4, 100, half, half)
    attention(96, 7, 1, half, fp8)
    attention(128, 4, 1, half, torch.float8_e5m2)
    attention(256, 16, 100, torch.float16, torch.float16)
    norm.add_rms_norm(empty(3, 4096), empty(3, 4096), empty(4096), 1e-5)
    norm.rms_norm(empty(3, 65536), empty(65536), 1e-5)
    norm.add_rms_norm_fp8(empty(3, 4096), empty(3, 4096), empty(4096), 1e-5, None)
    norm.add_rms_norm_fp8(empty(3, 8192), None, empty(8192), 1e-5, empty(dtype=torch.float32))
    activation.silu_mul(empty(3, 28672))
    activation.silu_mul_fp8(empty(3, 28672), None)
    activation.silu_mul_fp8(empty(3, 57344), empty(dtype=torch.float32))
    quantize.quantize_rows(empty(3, 4096))
    quantize.quantize_rows(empty(3, 28672), empty(dtype=torch.float32))
    for num_rows, width in ((1, 1), (32, 8192), (33, 16)):
        deltas = DecodeDeltas(ints(NUM_FIELDS * num_rows + 5), num_rows)
        rows = DecodeRows.allocate(num_rows, width, torch.device("meta"))
        decode_rows.fill_decode_rows(deltas, ints(64, width), empty(num_rows, dtype=torch.int64), rows, block_size=16)
    places = rotary.TokenPlaces(empty(3, 1, 128), empty(3, 1, 128), empty(3, dtype=torch.int64))
    for kv_dtype, head_norm in ((half, None), (fp8, rotary.HeadNorm(empty(40, 128), 1e-6)), (torch.float8_e5m2, None)):
        kv = PagedKV(*(empty(9, 16, 8, 128, dtype=kv_dtype) for _ in range(2)))
        rotary.rotate_and_write_kv(empty(3, 48, 128), places, kv, head_norm)
    logits = empty(3, 128256, dtype=torch.float32)
    parameters = sampler.DrawParameters(empty(3, 4, dtype=torch.float32), empty(3, 4, dtype=torch.int64))
    for allowed in (None, ints(3, 4008)):
        sampler.choose_tokens(logits, logits, parameters, allowed)
        for count in (1, 5, 16):
            sampler.most_likely(logits, count, allowed)
    longs = empty(3, dtype=torch.int64)
    for longest in (1, 96, 100):
        token_ids = empty(3 * longest, dtype=torch.int64)
        counts = sampler.count_tokens(token_ids, longs, longs, longest=longest, vocab_size=128256)
    sampler.penalize_(logits, longs, counts, empty(3, 3, dtype=torch.float32))


if __name__ == "__main__":
    replace_kernels()
    everything()
    # Their sizes come from requests, which must not wait for a compiler.
    assert len(sampler._collect_largest.forms) == 2, "one with masks and one without"
    assert len(sampler._count_tokens.forms) == 1
    assert len(decode_rows._fill_rows.forms) == 1, "for all sizes of batches and tables"
