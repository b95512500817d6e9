"""Memory that is taken from the system a little before it is needed."""

import ctypes
import gc
import mmap
import queue
import threading

import torch
from text_gen_server.growing_memory import HUGE_PAGE_BYTES, GrowingMemory, _populate

PATIENCE_SECS = 30


class Pieces:
    """Takes memory as the real function does, and tells of it."""

    def __init__(self) -> None:
        self.taken: queue.Queue[tuple[int, int]] = queue.Queue()

    def __call__(self, address: int, num_bytes: int) -> bool:
        assert _populate(address, num_bytes)
        self.taken.put((address, num_bytes))
        return True

    def next(self) -> tuple[int, int]:
        return self.taken.get(timeout=PATIENCE_SECS)


def test_parts_are_zero_apart_and_all_of_their_size() -> None:
    memory = GrowingMemory(num_parts=3, part_bytes=5000, ahead_bytes=0)
    for n, part in enumerate(memory.parts):
        assert part.shape == (5000,)
        assert not part.any()
        part.fill_(n + 1)
    assert [part.unique().tolist() for part in memory.parts] == [[1], [2], [3]]


def test_what_comes_after_the_memory_in_use_is_taken_in_all_parts_and_no_more() -> None:
    pieces = Pieces()
    part_bytes = 5 * HUGE_PAGE_BYTES + 4096
    memory = GrowingMemory(num_parts=2, part_bytes=part_bytes, ahead_bytes=HUGE_PAGE_BYTES, populate=pieces)
    memory.reach(10)
    starts = [part.data_ptr() for part in memory.parts]
    assert [pieces.next() for _ in range(4)] == [
        (start + n * HUGE_PAGE_BYTES, HUGE_PAGE_BYTES) for n in range(2) for start in starts
    ]
    assert all(_num_resident(part[: 2 * HUGE_PAGE_BYTES]) == 2 * HUGE_PAGE_BYTES // mmap.PAGESIZE for part in memory.parts)
    # The last part has nothing behind it that a huge page of its own could reach into.
    assert _num_resident(memory.parts[-1][4 * HUGE_PAGE_BYTES :]) == 0

    memory.reach(10)  # nothing new
    memory.reach(part_bytes)  # up to the end, and not beyond
    rest = [pieces.next() for _ in range(8)]
    assert rest[-1] == (starts[1] + 5 * HUGE_PAGE_BYTES, 4096)
    assert pieces.taken.empty()


def test_its_thread_ends_with_the_memory() -> None:
    pieces = Pieces()
    memory = GrowingMemory(num_parts=1, part_bytes=HUGE_PAGE_BYTES, ahead_bytes=0, populate=pieces)
    before = set(threading.enumerate())
    memory.reach(1)
    (thread,) = set(threading.enumerate()) - before
    pieces.next()
    del memory
    gc.collect()
    thread.join(PATIENCE_SECS)
    assert not thread.is_alive()


def test_a_system_that_cannot_do_it_is_asked_no_more_for_the_same_piece() -> None:
    asked: queue.Queue[tuple[int, int]] = queue.Queue()

    def refuse(*piece: int) -> bool:
        asked.put(piece)
        return False

    memory = GrowingMemory(num_parts=1, part_bytes=4 * HUGE_PAGE_BYTES, ahead_bytes=0, populate=refuse)
    memory.reach(1)
    assert asked.get(timeout=PATIENCE_SECS) == (memory.parts[0].data_ptr(), HUGE_PAGE_BYTES)
    memory.parts[0][:10] = 7
    assert memory.parts[0][:11].tolist() == [7] * 10 + [0]
    assert asked.empty()


def _num_resident(part: torch.Tensor) -> int:
    """Pages of it that the system has given."""
    start = -(-part.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    num_pages = (part.data_ptr() + part.nbytes - start) // mmap.PAGESIZE
    resident = (ctypes.c_ubyte * num_pages)()
    size = ctypes.c_size_t(num_pages * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), size, resident) == 0
    return sum(page & 1 for page in resident)
