"""Token embedding and language model head, split over the ranks by vocabulary. The two can share one weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from text_gen_server.weights import WantedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.layers.placement import Placement
    from text_gen_server.ops.interface import Vocabulary


class VocabularyWeight:
    """This rank's rows of a [V, hidden] weight.

    Every rank has the same number of rows; where the vocabulary does not divide, the last ranks have rows of zeros.
    """

    packed: Vocabulary  # after `pack`

    def __init__(self, name: str, vocab_size: int, hidden_size: int, placement: Placement) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.ops = placement.ops
        parallel = placement.tensor_parallel
        self.num_rows = -(-vocab_size // parallel.world_size)
        self.start = min(parallel.rank * self.num_rows, vocab_size)
        self.stop = min(self.start + self.num_rows, vocab_size)
        self.tensor = placement.zeros(self.num_rows, hidden_size)

    def wanted(self) -> Iterator[WantedTensor]:
        target = self.tensor[: self.stop - self.start]
        shape = (self.vocab_size, self.tensor.shape[1])
        yield WantedTensor(f"{self.name}.weight", shape, target, (slice(self.start, self.stop),))

    def pack(self) -> None:
        self.packed = self.ops.vocabulary(self.tensor)
        del self.tensor


class Embedding:
    """Token ids to hidden states."""

    def __init__(self, weight: VocabularyWeight, placement: Placement) -> None:
        self.weight = weight
        self.parallel = placement.tensor_parallel

    def __call__(self, token_ids: Tensor) -> Tensor:
        """token_ids: [T] int64, each below V -> [T, hidden]"""
        if self.parallel.world_size == 1:
            return self.weight.packed.embed(token_ids)
        row = token_ids - self.weight.start
        elsewhere = (token_ids < self.weight.start) | (token_ids >= self.weight.stop)
        hidden = self.weight.packed.embed(row.masked_fill_(elsewhere, 0))
        return self.parallel.all_reduce(hidden.masked_fill_(elsewhere.unsqueeze(-1), 0))


class LanguageModelHead:
    """Hidden states to logits."""

    def __init__(self, weight: VocabularyWeight, placement: Placement) -> None:
        self.weight = weight
        self.parallel = placement.tensor_parallel

    def __call__(self, hidden: Tensor) -> Tensor | None:
        """hidden: [N, hidden] -> [N, V] float32 on rank 0, None elsewhere"""
        logits = self.parallel.gather_last_dim_to_rank0(self.weight.packed.logits(hidden))
        return None if logits is None else logits[:, : self.weight.vocab_size].float()
