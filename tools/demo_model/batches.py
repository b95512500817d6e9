"""Windows of tokens for training: the batch of a step is a function of seed and step, so that training can go on anywhere.

Whole documents are laid one after the other, and each window begins with one. What does not fit is not read on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from demo_model.documents import HELD_OUT_SEED, document

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

# Documents of one step have indices of their own; no step needs as many.
DOCUMENTS_PER_STEP = 1 << 16


@dataclass(frozen=True)
class Batch:
    token_ids: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64, the next token of each
    weights: Tensor  # [B, T] float32, of each target in the loss


class Batches:
    def __init__(self, tokenizer: Tokenizer, *, seed: int, windows: int, length: int) -> None:
        self.tokenizer, self.seed, self.windows, self.length = tokenizer, seed, windows, length

    def batch(self, step: int) -> Batch:
        index = step * DOCUMENTS_PER_STEP
        rows_of_ids, rows_of_weights = [], []
        for _ in range(self.windows):
            ids: list[int] = []
            weights: list[float] = []
            while len(ids) < self.length + 1:
                for piece in document(self.seed, index):
                    piece_ids = self.tokenizer.encode(piece.text, add_special_tokens=False).ids
                    ids += piece_ids
                    weights += [piece.weight] * len(piece_ids)
                index += 1
            rows_of_ids.append(ids[: self.length + 1])
            rows_of_weights.append(weights[1 : self.length + 1])
        assert index <= (step + 1) * DOCUMENTS_PER_STEP, "a step has read documents of the next"
        ids_tensor = torch.tensor(rows_of_ids)
        return Batch(ids_tensor[:, :-1].contiguous(), ids_tensor[:, 1:].contiguous(), torch.tensor(rows_of_weights))


def held_out(tokenizer: Tokenizer, *, windows: int, length: int) -> Batch:
    """The same for every training; its documents are in none."""
    return Batches(tokenizer, seed=HELD_OUT_SEED, windows=windows, length=length).batch(0)
