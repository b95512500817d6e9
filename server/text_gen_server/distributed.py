"""Tensor parallel: which part of the model this rank has, and the few collectives that join the parts. The only place with
process groups. All ranks must call the same collectives in the same order; a rank that does not is found by the timeout.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

# Long enough for the slowest rank to read its weights, short enough to end a group that hangs.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


class TensorParallel:
    """`world_size` ranks that each hold a slice of every layer. With one rank all collectives are free."""

    def __init__(self, *, rank: int, world_size: int, group: Any, device: torch.device) -> None:
        assert 0 <= rank < world_size, "a rank is below the world size"
        self.rank = rank
        self.world_size = world_size
        self._group = group  # a c10d backend (gloo or NCCL), None for one rank
        self._device = device

    @staticmethod
    def single() -> TensorParallel:
        return TensorParallel(rank=0, world_size=1, group=None, device=torch.device("cpu"))

    @staticmethod
    def init(*, rank: int, world_size: int, rendezvous: Path, device: torch.device) -> TensorParallel:
        """Joins the group of `world_size` ranks that meet in the file `rendezvous`, which must be new for every group.

        Gloo on the CPU, bound to the loopback address; NCCL on CUDA. RuntimeError when the others do not come in time.
        """
        if world_size == 1:
            return TensorParallel(rank=rank, world_size=1, group=None, device=device)
        store: Any = dist.FileStore(str(rendezvous), world_size)  # type: ignore[attr-defined]
        store.set_timeout(COLLECTIVE_TIMEOUT)
        if device.type == "cuda":
            options: Any = dist.ProcessGroupNCCL.Options()
            options._timeout = COLLECTIVE_TIMEOUT
            torch.cuda.set_device(device)
            group: Any = dist.ProcessGroupNCCL(store, rank, world_size, options)
        else:
            gloo: Any = dist.ProcessGroupGloo
            options = gloo._Options()
            options._timeout = COLLECTIVE_TIMEOUT
            options._devices = [gloo.create_device(hostname="127.0.0.1")]
            group = gloo(store, rank, world_size, options)
        return TensorParallel(rank=rank, world_size=world_size, group=group, device=device)

    def split(self, total: int, what: str) -> slice:
        """This rank's part of `total` equal things. ValueError if the ranks do not divide them."""
        if total % self.world_size != 0:
            raise ValueError(f"{total} {what} cannot be split over {self.world_size} shards")
        size = total // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)

    def split_kv_heads(self, num_kv_heads: int) -> slice:
        """This rank's KV heads. With fewer heads than ranks, neighbouring ranks hold the same head."""
        if num_kv_heads >= self.world_size:
            return self.split(num_kv_heads, "KV heads")
        if self.world_size % num_kv_heads != 0:
            raise ValueError(f"{num_kv_heads} KV heads cannot be shared by {self.world_size} shards")
        head = self.rank // (self.world_size // num_kv_heads)
        return slice(head, head + 1)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over the ranks, in place, and returns it."""
        if self._group is not None:
            self._group.allreduce([tensor]).wait()
        return tensor

    def gather_last_dim_to_rank0(self, tensor: Tensor) -> Tensor | None:
        """[N, K] of every rank, in rank order, as [N, world_size * K] on rank 0; None elsewhere."""
        if self._group is None:
            return tensor
        options = dist.GatherOptions()
        options.rootRank = 0
        tensor = tensor.contiguous()
        if self.rank != 0:
            self._group.gather([], [tensor], options).wait()
            return None
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        self._group.gather([parts], [tensor], options).wait()
        return torch.cat(parts, dim=-1)

    def broadcast_from_rank0(self, tensor: Tensor) -> None:
        """Overwrites `tensor` with rank 0's. It must be contiguous."""
        if self._group is not None:
            options = dist.BroadcastOptions()
            options.rootRank = 0
            self._group.broadcast([tensor], options).wait()

    def minimum(self, value: int) -> int:
        """The smallest `value` of all ranks. Waits for the device; not for use within a step."""
        if self._group is None:
            return value
        tensor = torch.tensor([value], dtype=torch.int64, device=self._device)
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MIN
        self._group.allreduce([tensor], options).wait()
        return int(tensor.item())
