"""Memory on the host that is used from its beginning on, and taken from the system a little before it is needed.

To take all of it at the start would need half a minute and gigabytes that a laptop seldom needs. To take it when it is first
written makes those wait who write: the system clears what it gives, in pieces of megabytes, and on a virtual machine the host
may have to find them first.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

HUGE_PAGE_BYTES = 2 * 2**20
MADV_POPULATE_WRITE = 23  # since Linux 5.14; Python 3.11 has no name for it


class GrowingMemory:
    """Parts of one size, zeroed, which grow together: what is written of one is about what is written of the others.

    They are neighbours and no multiple of a huge page, so that they do not all come to the end of theirs at the same time.
    A thread that runs only when a core has nothing else to do takes the next `ahead_bytes` of each.
    """

    def __init__(
        self, *, num_parts: int, part_bytes: int, ahead_bytes: int, populate: Callable[[int, int], bool] | None = None
    ) -> None:
        """populate: takes memory, given its address and size, and says whether it could; for tests"""
        stride = -(-part_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        num_bytes = num_parts * stride
        whole = torch.from_numpy(np.frombuffer(_untouched_pages(num_bytes), dtype=np.uint8, count=num_bytes))
        self.parts: tuple[Tensor, ...] = tuple(whole[n * stride :][:part_bytes] for n in range(num_parts))  # [part_bytes] uint8
        self._part_bytes = part_bytes
        self._ahead_bytes = ahead_bytes
        self._populate = populate or _populate
        self._taken = 0  # bytes of each part; the thread's own
        self._wanted = 0
        self._is_wanted = threading.Event()
        self._has_thread = False

    def reach(self, used_bytes: int) -> None:
        """The first `used_bytes` of each part are in use."""
        wanted = min(used_bytes + self._ahead_bytes, self._part_bytes)
        if wanted <= self._wanted:
            return
        self._wanted = wanted
        if not self._has_thread:
            self._has_thread = True
            # The thread must not keep the memory.
            weakref.finalize(self, self._is_wanted.set)
            arguments = (weakref.ref(self), self._is_wanted)
            threading.Thread(target=_take_ahead, args=arguments, name="memory-ahead", daemon=True).start()
        self._is_wanted.set()

    def take_next(self) -> bool:
        """Takes the next piece of each part. False where nothing more is wanted, or the system cannot do it."""
        start = self._taken
        if start >= self._wanted:
            return False
        self._taken = min(start + HUGE_PAGE_BYTES, self._part_bytes)
        return all(self._populate(part.data_ptr() + start, self._taken - start) for part in self.parts)


def _take_ahead(memory: weakref.ref[GrowingMemory], is_wanted: threading.Event) -> None:
    with suppress(OSError, AttributeError):  # a system that has no such thing, where the thread is one among equals
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while is_wanted.wait():
        is_wanted.clear()
        while (alive := memory()) is not None and alive.take_next():
            pass
        if alive is None:
            return
        del alive


def _populate(address: int, num_bytes: int) -> bool:
    start = address // mmap.PAGESIZE * mmap.PAGESIZE
    libc = ctypes.CDLL(None)  # its calls let other threads run, those of `mmap` do not
    size = ctypes.c_size_t(address + num_bytes - start)
    return bool(libc.madvise(ctypes.c_void_p(start), size, MADV_POPULATE_WRITE) == 0)


def _untouched_pages(num_bytes: int) -> mmap.mmap:
    """Zeroed pages of the system's, huge ones where it has them: a step reads the blocks of many sequences, and with small
    pages finding out where they are takes longer than reading them.
    """
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if num_bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
