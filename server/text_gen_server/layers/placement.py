"""What all layers are told when they are made: which part of the model they are, and where their tensors live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.distributed import TensorParallel


@dataclass(frozen=True)
class Placement:
    """A layer takes its part of the model from `tensor_parallel` and makes its tensors of `dtype` on `device`."""

    tensor_parallel: TensorParallel
    dtype: torch.dtype
    device: torch.device

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)
