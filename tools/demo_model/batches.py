"""Windows of tokens for training: the batch of a step is a function of seed and step, so that training can go on anywhere.

Whole documents are laid one after the other, and each window begins with one. What does not fit is not read on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from demo_model.documents import HELD_OUT_SEED, document

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """Each step has `tokens` tokens, in windows of the lengths in turn: most documents are short, and so is their attention."""

    def __init__(self, tokenizer: Tokenizer, *, seed: int, tokens: int, lengths: Sequence[int]) -> None:
        if any(tokens % length for length in lengths):
            raise ValueError(f"a step of {tokens} tokens is no whole number of windows of {lengths}")
        self.tokenizer, self.seed, self.tokens, self.lengths = tokenizer, seed, tokens, lengths

    def batch(self, step: int) -> Batch:
        index = step * DOCUMENTS_PER_STEP
        length = self.lengths[step % len(self.lengths)]
        rows_of_ids, rows_of_weights = [], []
        for _ in range(self.tokens // length):
            ids: list[int] = []
            weights: list[float] = []
            while len(ids) < length + 1:
                for piece in document(self.seed, index):
                    piece_ids = self.tokenizer.encode(piece.text, add_special_tokens=False).ids
                    ids += piece_ids
                    weights += [piece.weight] * len(piece_ids)
                index += 1
            rows_of_ids.append(ids[: length + 1])
            rows_of_weights.append(weights[1 : length + 1])
        assert index <= (step + 1) * DOCUMENTS_PER_STEP, "a step has read documents of the next"
        ids_tensor = torch.tensor(rows_of_ids)
        return Batch(ids_tensor[:, :-1].contiguous(), ids_tensor[:, 1:].contiguous(), torch.tensor(rows_of_weights))


def held_out(tokenizer: Tokenizer, *, windows: int, length: int) -> Batch:
    """The same for every training; its documents are in none."""
    return Batches(tokenizer, seed=HELD_OUT_SEED, tokens=windows * length, lengths=[length]).batch(0)
