"""The kernels of a decoder layer, called at once or, while a recording is open, written down for later (see `recording.py`).

Whoever calls answers for shapes, dtypes and contiguity, as with the library itself.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch

from text_gen_server import native
from text_gen_server.native.recording import OnlyViews

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.native.recording import Recording


class Kernels:
    """One for the process, as the library is; used by one thread at a time."""

    def __init__(self) -> None:
        self.library = native.library()
        self.recording: Recording | None = None

    @contextmanager
    def record(self, recording: Recording) -> Iterator[None]:
        """Within it, calls are added to `recording` and compute nothing."""
        assert self.recording is None, "one recording at a time"
        self.recording = recording
        try:
            with OnlyViews():  # type: ignore[no-untyped-call]
                yield
        finally:
            self.recording = None

    def empty(self, *shape: int) -> Tensor:
        """[T, ...] float32, for what a kernel computes."""
        return torch.empty(shape) if self.recording is None else self.recording.empty(shape)

    def multiply(self, weights: int, hidden: Tensor, bias: int | None, output: Tensor) -> None:
        num_rows, source, target = hidden.shape[0], hidden.data_ptr(), output.data_ptr()
        if self.recording is None:
            self.library.tgk_multiply(weights, source, num_rows, bias, target)
            return
        self.recording.check(num_rows)
        self.library.tgk_program_add_multiply(self.recording.program, weights, source, bias, target)

    def gather(self, weights: int, token_ids: Tensor, output: Tensor) -> None:
        if self.recording is None:
            self.library.tgk_gather(weights, token_ids.data_ptr(), len(token_ids), output.data_ptr())
            return
        self.recording.check(len(token_ids))
        assert token_ids.data_ptr() == self.recording.token_ids.data_ptr(), "a program embeds the tokens of its step"
        self.library.tgk_program_add_gather(self.recording.program, weights, output.data_ptr())

    def look_up(self, arguments: native.LookUp) -> None:
        address = ctypes.addressof(arguments)
        if self.recording is None:
            self.library.tgk_look_up(address)
            return
        self.recording.check(arguments.num_rows)
        assert arguments.rows == self.recording.positions.data_ptr(), "a program looks up the positions of its step"
        self.library.tgk_program_add_look_up(self.recording.program, address)

    def normalize(self, arguments: native.Normalize) -> None:
        address = ctypes.addressof(arguments)
        if self.recording is None:
            self.library.tgk_normalize(address)
            return
        self.recording.check(arguments.num_rows)
        self.library.tgk_program_add_normalize(self.recording.program, address)

    def rotate_and_write(self, arguments: native.Rotate) -> None:
        address = ctypes.addressof(arguments)
        if self.recording is None:
            self.library.tgk_rotate_and_write(address)
            return
        self.recording.check(arguments.num_tokens)
        assert arguments.slots == self.recording.slots.data_ptr(), "a program writes to the slots of its step"
        self.library.tgk_program_add_rotate_and_write(self.recording.program, address)

    def attend(self, arguments: native.Attend, num_tokens: int) -> None:
        address = ctypes.addressof(arguments)
        if self.recording is None:
            self.library.tgk_attend(address)
            return
        self.recording.check(num_tokens)
        self.library.tgk_program_add_attend(self.recording.program, address)


@cache
def kernels() -> Kernels:
    """ValueError, for the user, where the kernels were not built."""
    return Kernels()
