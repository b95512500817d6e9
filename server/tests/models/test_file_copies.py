"""Weights arrive whole however many threads copy them, and an error ends the copying with that error."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from text_gen_server import file_copies, weights
from text_gen_server.checkpoint import read_checkpoint
from text_gen_server.file_copies import copy_in_threads
from text_gen_server.weights import WantedTensor, load_weights
from torch import Tensor


class Direct:
    """Copies at once, and notes who copied what."""

    def __init__(self, log: list[tuple[int, int]]) -> None:
        self.log = log

    def copy(self, source: Tensor, target: Tensor) -> None:
        self.log.append((threading.get_ident(), source.nbytes))
        target.copy_(source)

    def finish(self) -> None:
        self.log.append((-1, 0))


@pytest.mark.parametrize("num_threads", [1, 2, 7])
def test_any_number_of_threads_copies_the_same(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_copies, "PIECE_BYTES", 1000)
    torch.manual_seed(0)
    sources = [torch.randn(100, 7), torch.randn(3, 5), torch.randn(9), torch.randn(()), torch.randn(2, 600), torch.randn(0, 4)]
    targets = [
        torch.empty(100, 7),
        torch.empty(3, 5, dtype=torch.float16),
        torch.empty(4, 9),
        torch.empty(5),
        torch.empty(2, 600),
    ]
    targets.append(torch.empty(0, 4))
    log: list[tuple[int, int]] = []
    copy_in_threads(zip(sources, targets, strict=True), lambda: Direct(log), num_threads=num_threads)
    for source, target in zip(sources, targets, strict=True):
        assert torch.equal(target, source.to(target.dtype).expand_as(target))
    assert sum(size for _, size in log) == sum(source.nbytes for source in sources), "everything once"
    assert max(size for _, size in log) == 2400, "rows longer than a piece are not cut, all others are small"
    finished = [who for who, _ in log if who == -1]
    assert 1 <= len(finished) <= num_threads, "every thread that began waits for the device in the end"


def test_the_error_of_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_copies, "PIECE_BYTES", 4)

    class Failing(Direct):
        def copy(self, source: Tensor, target: Tensor) -> None:
            if source[0] == 3:
                raise ValueError("model.safetensors: cannot be read: gone")
            super().copy(source, target)

    with pytest.raises(ValueError, match=r"^model\.safetensors: cannot be read: gone"):
        copy_in_threads([(torch.arange(100.0), torch.empty(100))], lambda: Failing([]), num_threads=3)


def test_a_file_that_vanished_is_one_line(
    model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_folder("llama")
    found = read_checkpoint(path)

    def read_and_vanish(_: Path) -> object:
        for name, entry in found.tensors.items():
            object.__setattr__(entry, "file", tmp_path / "gone.safetensors")
            found.tensors[name] = entry
        return found

    monkeypatch.setattr(weights, "read_checkpoint", read_and_vanish)
    wanted = [
        WantedTensor(name, entry.shape, torch.empty(entry.shape), (slice(None),) * len(entry.shape))
        for name, entry in found.tensors.items()
    ]
    with pytest.raises(ValueError, match=r"^gone\.safetensors: cannot be read: No such file or directory$"):
        load_weights(path, wanted)
