"""The CPU kernels of `kernels/`, as Python sees them: a shared library with a C interface, built with the project.

The structures repeat those of the Rust sources field by field. Tensors are passed as addresses, so that whoever calls answers
for shapes, dtypes and contiguity.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_float, c_size_t, c_uint8, c_void_p
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "libtext_gen_kernels.so"
INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16")


class Normalize(ctypes.Structure):
    """`pointwise::Normalize`"""

    _fields_ = [
        ("hidden", c_void_p),
        ("residual", c_void_p),
        ("weight", c_void_p),
        ("output", c_void_p),
        ("num_rows", c_size_t),
        ("size", c_size_t),
        ("epsilon", c_float),
    ]


class Rotate(ctypes.Structure):
    """`pointwise::Rotate`"""

    _fields_ = [
        ("heads", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("norm_weight", c_void_p),
        ("slots", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("num_tokens", c_size_t),
        ("num_heads", c_size_t),
        ("num_kv_heads", c_size_t),
        ("head_dim", c_size_t),
        ("norm_epsilon", c_float),
    ]


class Rows(ctypes.Structure):
    """`attention::Rows`"""

    _fields_ = [
        ("query_start", c_void_p),
        ("kv_lens", c_void_p),
        ("block_tables", c_void_p),
        ("num_rows", c_size_t),
        ("max_blocks", c_size_t),
    ]


class Attend(ctypes.Structure):
    """`attention::Attend`"""

    _fields_ = [
        ("rows", Rows),
        ("query", c_void_p),
        ("query_stride", c_size_t),
        ("output", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("block_size", c_size_t),
        ("num_heads", c_size_t),
        ("num_kv_heads", c_size_t),
        ("head_dim", c_size_t),
        ("sliding_window", c_size_t),
    ]


class Summarize(ctypes.Structure):
    """`summary::Summarize`"""

    _fields_ = [
        ("logits", c_void_p),
        ("stride", c_size_t),
        ("num_rows", c_size_t),
        ("size", c_size_t),
        ("largest", c_void_p),
        ("log_normalizer", c_void_p),
        ("is_finite", c_void_p),
    ]


class Draw(ctypes.Structure):
    """`draw::Draw`"""

    _fields_ = [
        ("logits", c_void_p),
        ("stride", c_size_t),
        ("num_rows", c_size_t),
        ("size", c_size_t),
        ("parameters", c_void_p),
        ("token_ids", c_void_p),
    ]


class LookUp(ctypes.Structure):
    """`table::LookUp`"""

    _fields_ = [
        ("table", c_void_p),
        ("row_size", c_size_t),
        ("rows", c_void_p),
        ("num_rows", c_size_t),
        ("output", c_void_p),
    ]


class Step(ctypes.Structure):
    """`program::Step`"""

    _fields_ = [
        ("num_tokens", c_size_t),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("rows", Rows),
    ]


_FUNCTIONS = {
    "tgk_start": ([c_size_t], None),
    "tgk_instruction_set": ([], c_uint8),
    "tgk_choose_instruction_set": ([c_char_p], c_uint8),
    "tgk_pack": ([c_void_p, c_size_t, c_size_t, c_uint8, c_uint8], c_void_p),
    "tgk_free": ([c_void_p], None),
    "tgk_packed_bytes": ([c_void_p], c_size_t),
    "tgk_multiply": ([c_void_p, c_void_p, c_size_t, c_void_p, c_void_p], None),
    "tgk_gather": ([c_void_p, c_void_p, c_size_t, c_void_p], None),
    "tgk_normalize": ([c_void_p], None),
    "tgk_rotate_and_write": ([c_void_p], None),
    "tgk_attend": ([c_void_p], None),
    "tgk_summarize": ([c_void_p], None),
    "tgk_draw": ([c_void_p], None),
    "tgk_look_up": ([c_void_p], None),
    "tgk_program_new": ([], c_void_p),
    "tgk_program_free": ([c_void_p], None),
    "tgk_program_add_multiply": ([c_void_p, c_void_p, c_void_p, c_void_p, c_void_p], None),
    "tgk_program_add_gather": ([c_void_p, c_void_p, c_void_p], None),
    "tgk_program_add_normalize": ([c_void_p, c_void_p], None),
    "tgk_program_add_rotate_and_write": ([c_void_p, c_void_p], None),
    "tgk_program_add_attend": ([c_void_p, c_void_p], None),
    "tgk_program_add_look_up": ([c_void_p, c_void_p], None),
    "tgk_program_run": ([c_void_p, c_void_p], None),
}


@cache
def library() -> ctypes.CDLL:
    """The library, loaded once. ValueError, for the user, where the project was not built for this machine."""
    try:
        loaded = ctypes.CDLL(str(FILE))
    except OSError as error:
        raise ValueError(f"the CPU kernels cannot be loaded ({error}); build the project with `make install`") from error
    for name, (arguments, result) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes = arguments
        function.restype = result
    return loaded


def instruction_set() -> str:
    """What the kernels use on this processor."""
    return INSTRUCTION_SETS[library().tgk_instruction_set() - 1]


def choose_instruction_set(name: str) -> bool:
    """Uses `name` from now on. False, and nothing changes, where this processor does not have it."""
    return bool(library().tgk_choose_instruction_set(name.encode()))


def start(num_threads: int) -> None:
    """Starts the threads of the kernels. Only the first call does anything."""
    library().tgk_start(num_threads)
