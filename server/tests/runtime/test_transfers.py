"""What is packed for one copy comes out as it went in."""

import numpy as np
import pytest
import torch
from text_gen_server.transfers import HostTransfers, choose_transfers, join_bytes, pack, split_bytes, unpack, upload

ARRAYS = (
    np.array([1, -2, 3], dtype=np.int64),
    np.array([[1, 2, 3], [4, 5, 2**31 - 1]], dtype=np.int32),
    np.empty(0, dtype=np.int64),
    np.array([7], dtype=np.int32),
    np.array([0.5, -np.inf], dtype=np.float32),
    np.array([2**62], dtype=np.int64),
)


def test_packed_arrays_come_out_as_they_went_in() -> None:
    packed, places = pack(ARRAYS)
    assert all(place % 8 == 0 for place in places)
    for array, tensor in zip(ARRAYS, unpack(torch.from_numpy(packed), ARRAYS, places), strict=True):
        assert tensor.numpy().dtype == array.dtype
        assert np.array_equal(tensor.numpy(), array)


def test_joined_tensors_come_out_as_they_went_in() -> None:
    tensors = (
        torch.tensor([1, -1]),
        torch.empty((2, 0), dtype=torch.int64),
        torch.tensor([[0.5], [float("nan")]]),
        torch.tensor([True, False, True]),
    )
    found = split_bytes(join_bytes(tensors), [(tensor.shape, tensor.dtype) for tensor in tensors])
    for tensor, other in zip(tensors, found, strict=True):
        assert tensor.dtype == other.dtype
        torch.testing.assert_close(tensor, other, equal_nan=True)


def test_tensors_in_another_order_are_refused() -> None:
    with pytest.raises(AssertionError, match="large elements come first"):
        join_bytes((torch.tensor([True]), torch.tensor([1])))


def test_on_the_host_nothing_is_copied() -> None:
    transfers = choose_transfers(torch.device("cpu"))
    assert isinstance(transfers, HostTransfers)
    tensors = transfers.upload(ARRAYS)
    assert tensors[0].data_ptr() == ARRAYS[0].ctypes.data
    download = transfers.download(tensors)
    assert download.is_ready()
    assert download.tensors()[0] is tensors[0]
    assert upload(tensors[0], torch.device("cpu")) is tensors[0]


class FakeEvent:
    """In the place of `torch.cuda.Event`: done when somebody waits."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def record(self, stream: object) -> None:
        self.calls.append(stream)

    def query(self) -> bool:
        return "waited" in self.calls

    def synchronize(self) -> None:
        self.calls.append("waited")


def test_on_a_gpu_one_copy_goes_up_from_pinned_memory_and_one_comes_down_before_an_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code that calls CUDA, with the calls replaced: what it asks for, not what a GPU does."""
    pinned: list[int] = []
    copies: list[bool] = []
    to, empty, copy_ = torch.Tensor.to, torch.empty, torch.Tensor.copy_

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.nbytes)
        return tensor.clone()

    def recorded_to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        assert device == torch.device("cuda", 1)
        copies.append(non_blocking)
        return to(tensor, "cpu")

    def recorded_copy(target: torch.Tensor, source: torch.Tensor, *, non_blocking: bool) -> torch.Tensor:
        copies.append(non_blocking)
        return copy_(target, source)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", recorded_to)
    monkeypatch.setattr(torch.Tensor, "copy_", recorded_copy)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))  # noqa: ARG005
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    transfers = choose_transfers(torch.device("cuda", 1))
    tensors = transfers.upload(ARRAYS)
    assert (len(pinned), copies) == (1, [True])
    assert [tensor.tolist() for tensor in tensors[:2]] == [ARRAYS[0].tolist(), ARRAYS[1].tolist()]
    download = transfers.download([tensors[0], tensors[3]])
    assert copies == [True, True]
    assert not download.is_ready()
    download.wait()
    assert download.is_ready()
    assert [tensor.tolist() for tensor in download.tensors()] == [[1, -2, 3], [7]]
    nothing = transfers.download([])
    assert not nothing.is_ready(), "also a step that leaves nothing takes its time"
    nothing.wait()
    assert nothing.tensors() == ()
