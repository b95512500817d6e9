"""What all layers are told when they are made: which part of the model they are, where their tensors live and what computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from text_gen_server.distributed import TensorParallel
    from text_gen_server.fp8_config import Fp8Config
    from text_gen_server.ops.interface import Ops


@dataclass(frozen=True)
class Placement:
    """A layer takes its part of the model from `tensor_parallel`, makes its tensors of `dtype` on `device`, and gives them to
    `ops` when they are loaded.
    """

    tensor_parallel: TensorParallel
    dtype: torch.dtype
    device: torch.device
    ops: Ops
    fp8: Fp8Config | None = None  # which linear layers the checkpoint has in fp8

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)
