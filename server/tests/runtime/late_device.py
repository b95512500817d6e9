"""A device whose results the host cannot read before it has waited for them, and a host that is caught when it tries."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from text_gen_server.transfers import join_bytes, pack, split_bytes, unpack
from torch import Tensor
from torch.overrides import TorchFunctionMode

READS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "nonzero"}


class LateDownload:
    """See `Download`. Done when somebody waits, or when `is_done` is set."""

    def __init__(self, tensors: Sequence[Tensor], is_done: threading.Event | None) -> None:
        self.layout = [(tensor.shape, tensor.dtype) for tensor in tensors]
        self.bytes = join_bytes(tensors).clone() if tensors else None
        self.is_done = is_done
        self.was_waited_for = False

    def is_ready(self) -> bool:
        return self.was_waited_for

    def wait(self) -> None:
        if self.is_done is not None:
            assert self.is_done.wait(10)
        self.was_waited_for = True

    def tensors(self) -> tuple[Tensor, ...]:
        assert self.was_waited_for, "read before the device was done"
        return split_bytes(self.bytes, self.layout) if self.bytes is not None else ()


class LateTransfers:
    """See `Transfers`. With `gates`, the n-th download is done when the test says so."""

    def __init__(self, gates: list[threading.Event] | None = None) -> None:
        self.gates = gates
        self.downloads: list[LateDownload] = []

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        packed, places = pack(arrays)
        return unpack(torch.from_numpy(packed), arrays, places)

    def download(self, tensors: Sequence[Tensor]) -> LateDownload:
        gate = self.gates[len(self.downloads)] if self.gates is not None else None
        self.downloads.append(LateDownload(tensors, gate))
        return self.downloads[-1]


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        assert name not in READS, f"the host read a tensor of the device by {name}"
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_reads() -> Iterator[None]:
    """Within it, a look at what a tensor holds is an error, but on the device itself (see `on_device`)."""
    with _NoReads():
        yield


def on_device(model: Any) -> Any:
    """The model as code of the device, which may look at tensors."""

    class OnDevice:
        def forward(self, **inputs: Any) -> Tensor:
            with torch._C.DisableTorchFunction():
                return model.forward(**inputs)

        def logits(self, hidden: Tensor) -> Any:
            with torch._C.DisableTorchFunction():
                return model.logits(hidden)

    return OnDevice()
