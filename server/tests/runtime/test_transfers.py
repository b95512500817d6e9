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
