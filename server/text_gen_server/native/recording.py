"""A model's kernel calls, written down once and run in one call, for any number of tokens: what a CUDA graph is to a GPU.

Where the calls read and write stays from step to step: weights, KV cache, and an arena of activations that is sized for the
largest step. What a step brings is in `native.Step`. Must never write down part of a computation: an operation of PyTorch on
activations would happen once, while recording, so it is refused.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from text_gen_server import native

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CACHE_LINE = 64


class Arena:
    """The memory of a program's activations.

    A part is free for later tensors as soon as nobody holds the tensor that had it, nor a view of that. This is right for a
    program because its calls run in the order in which they were written down.
    """

    def __init__(self, num_bytes: int) -> None:
        memory = np.empty(num_bytes + CACHE_LINE, dtype=np.uint8)  # the system gives pages when they are first written
        self.memory = memory[-memory.ctypes.data % CACHE_LINE :][:num_bytes]
        self.free = [(0, num_bytes)]  # (start, end), ascending, with something between any two
        self.used_bytes = 0  # up to the highest byte that was ever taken

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """[shape] float32, with anything in it."""
        num_bytes = 4 * math.prod(shape)
        start = self._take(num_bytes)
        part = self.memory[start : start + num_bytes].view(np.float32)
        # PyTorch holds this very array until the last view of the tensor is gone.
        weakref.finalize(part, self._give_back, start, num_bytes).atexit = False
        return torch.from_numpy(part).view(shape)

    def _take(self, num_bytes: int) -> int:
        for n, (start, end) in enumerate(self.free):
            taken_end = start + _whole_lines(num_bytes)
            if taken_end <= end:
                self.free[n : n + 1] = [(taken_end, end)] if taken_end < end else []
                self.used_bytes = max(self.used_bytes, taken_end)
                return start
        raise AssertionError(f"{num_bytes} bytes more do not fit the {len(self.memory)} bytes that bound a step's activations")

    def _give_back(self, start: int, num_bytes: int) -> None:
        end = start + _whole_lines(num_bytes)
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.free, (start, end)]):
            if merged and merged[-1][1] == first:
                merged[-1] = (merged[-1][0], last)
            else:
                merged.append((first, last))
        self.free = merged


def _whole_lines(num_bytes: int) -> int:
    return -(-num_bytes // CACHE_LINE) * CACHE_LINE


class Recording:
    """What is written down so far. The calls are added by `Kernels`, which knows their arguments."""

    def __init__(self, max_tokens: int, arena_bytes: int) -> None:
        """arena_bytes: more than the activations that exist at the same time can take"""
        self.max_tokens = max_tokens
        self.arena = Arena(arena_bytes)
        self.library = native.library()
        self.program = self.library.tgk_program_new()
        self.before_step: list[Callable[[int], None]] = []  # called with the largest position of each step
        # What stands for the numbers of a step while recording. Nobody reads them.
        self.token_ids, self.positions, self.slots = (torch.empty(max_tokens, dtype=torch.int64) for _ in range(3))
        weakref.finalize(self, self.library.tgk_program_free, self.program)

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """[T, ...] float32 of the arena"""
        self.check(shape[0])
        return self.arena.empty(shape)

    def check(self, num_tokens: int) -> None:
        """Of a call that is to be added."""
        assert num_tokens == self.max_tokens, "a program computes all tokens of its step in every call"

    def run(self, step: native.Step, max_position: int) -> None:
        """Computes a step of at most `max_tokens` tokens. max_position: the largest of the step's positions"""
        assert step.num_tokens <= self.max_tokens, "a step fits the activations"
        for prepare in self.before_step:
            prepare(max_position)
        self.library.tgk_program_run(self.program, ctypes.addressof(step))


class OnlyViews(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, operations of PyTorch can give views of tensors and nothing else."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise PyTorch loads its compiler, to keep it away from here: 2.5 s of every start."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_view = not func._schema.is_mutable and isinstance(result, torch.Tensor) and _storage(result) == _storage(args[0])
        assert is_view, f"{func} cannot be recorded"
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
