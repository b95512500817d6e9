"""Copies between the host and the device of a shard. On a GPU the host waits for none of them: what it sends lies in pinned
memory, and what it asks for is read once an event says that it is there. Must never read a device tensor by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

ALIGNMENT = 8  # bytes; of the largest element that is sent


class Download(Protocol):
    """Tensors on their way to the host, and the work before them."""

    def is_ready(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> None:
        """Returns when everything enqueued before the download is done. May be called on any thread, again and again."""

    def tensors(self) -> tuple[Tensor, ...]:
        """On the host, as they were when the download started. Only after `wait`."""


class Transfers(Protocol):
    """The copies of one step, one each way. Which ones is chosen once at start."""

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        """The arrays on the device. They must not be changed afterwards."""

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Starts to bring tensors to the host, in descending order of the size of their elements."""


def choose_transfers(device: torch.device) -> Transfers:
    return CudaTransfers(device) if device.type == "cuda" else HostTransfers()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`, for which the host does not wait; `tensor` itself where the device is the host."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class HostTransfers:
    """Where the device is the host, everything is there already."""

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        return [torch.from_numpy(array) for array in arrays]

    def download(self, tensors: Sequence[Tensor]) -> HostDownload:
        return HostDownload(tuple(tensors))


class HostDownload:
    """See `Download`."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def is_ready(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def tensors(self) -> tuple[Tensor, ...]:
        return self._tensors


class CudaTransfers:
    """One copy for all that goes up, one for all that comes down."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def upload(self, arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
        packed, places = pack(arrays)
        # PyTorch keeps pinned memory from being used again until the copies out of it are done.
        on_device = upload(torch.from_numpy(packed), self.device)
        return unpack(on_device, arrays, places)

    def download(self, tensors: Sequence[Tensor]) -> CudaDownload:
        return CudaDownload(tensors, self.device)


class CudaDownload:
    """See `Download`."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self._layout = [(tensor.shape, tensor.dtype) for tensor in tensors]
        self._bytes: Tensor | None = None
        if tensors:
            joined = join_bytes(tensors)
            self._bytes = torch.empty(joined.shape, dtype=torch.uint8, pin_memory=True)
            self._bytes.copy_(joined, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def is_ready(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()

    def tensors(self) -> tuple[Tensor, ...]:
        return split_bytes(self._bytes, self._layout) if self._bytes is not None else ()


def pack(arrays: Sequence[NDArray[Any]]) -> tuple[NDArray[np.uint8], list[int]]:
    """All arrays behind each other, and where each begins, in bytes."""
    places, end = [], 0
    for array in arrays:
        places.append(end)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    packed = np.empty(end, dtype=np.uint8)
    for place, array in zip(places, arrays, strict=True):
        packed[place : place + array.nbytes].view(array.dtype)[:] = array.reshape(-1)
    return packed, places


def unpack(packed: Tensor, arrays: Sequence[NDArray[Any]], places: Sequence[int]) -> list[Tensor]:
    """The arrays again, as views of the packed bytes on a device."""
    dtypes = {np.dtype(np.int64): torch.int64, np.dtype(np.int32): torch.int32, np.dtype(np.float32): torch.float32}
    return [
        packed[place : place + array.nbytes].view(dtypes[array.dtype]).view(array.shape)
        for place, array in zip(places, arrays, strict=True)
    ]


def join_bytes(tensors: Sequence[Tensor]) -> Tensor:
    """[bytes] uint8: the tensors behind each other, on their device."""
    sizes = [tensor.element_size() for tensor in tensors]
    assert sizes == sorted(sizes, reverse=True), "large elements come first, so that each begins where it may"
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])


def split_bytes(joined: Tensor, layout: Sequence[tuple[torch.Size, torch.dtype]]) -> tuple[Tensor, ...]:
    """What `join_bytes` joined."""
    sizes = [shape.numel() * dtype.itemsize for shape, dtype in layout]
    parts = torch.split(joined, sizes)
    return tuple(part.view(dtype).view(shape) for part, (shape, dtype) in zip(parts, layout, strict=True))
