"""What every model offers to the runner, and what its layers get in a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.attention.interface import PreparedAttention
    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.kv_cache import KVCache
    from text_gen_server.ops.interface import StepPositions
    from text_gen_server.weights import WantedTensor


class CausalLM(Protocol):
    """A language model on one rank. Call within `torch.inference_mode`."""

    def wanted(self) -> Iterator[WantedTensor]:
        """Every tensor of the checkpoint that the model needs."""

    def pack(self) -> None:
        """Once, when the wanted tensors are loaded, and before anything else."""

    def forward(
        self,
        *,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        attention_metadata: AttentionMetadata,
        kv_cache: KVCache,
    ) -> Tensor:
        """Computes the step's tokens and writes their K/V.

        token_ids, positions: [T] int64
        slot_mapping: [T] int64, slot of each token's K/V; -1 = do not write
        -> hidden states after the final norm, [T, hidden_size], whole on every rank
        """

    def logits(self, hidden: Tensor) -> Tensor | None:
        """hidden: [N, hidden_size] -> [N, V] float32 on rank 0, None elsewhere. All ranks must call it."""


@dataclass(frozen=True)
class LayerInputs:
    """What all layers of a step share."""

    positions: StepPositions
    kv_cache: KVCache
    attention: PreparedAttention
