"""Replays all steps from one recording of the model's CPU kernels, so that a step costs one call instead of hundreds.

The model runs once, with as many tokens as a step may have, while its kernels are written down. A kernel's sizes depend on the
number of tokens alone, so that the recording serves every step, prefill and decode alike. Must never change what a step
computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from text_gen_server import native
from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.attention.native import rows_of
from text_gen_server.native.kernels import kernels
from text_gen_server.native.recording import Recording

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.kv_cache import KVCache
    from text_gen_server.models.causal_lm import CausalLM
    from text_gen_server.weights import WantedTensor


class RecordedModel:
    """A `CausalLM` of one rank by the native operations, for one KV cache."""

    def __init__(self, model: CausalLM, *, kv_cache: KVCache, max_step_tokens: int, activation_bytes: int) -> None:
        """activation_bytes: a bound for the activations of `max_step_tokens`; more of it than needed costs nothing"""
        self.model = model
        self.kv_cache = kv_cache
        self.max_step_tokens = max_step_tokens
        self.activation_bytes = activation_bytes
        self.recorded: tuple[Recording, Tensor] | None = None  # with the hidden states [max_step_tokens, hidden] it leaves

    def wanted(self) -> Iterator[WantedTensor]:
        return self.model.wanted()

    def pack(self) -> None:
        self.model.pack()

    def logits(self, hidden: Tensor) -> Tensor | None:
        return self.model.logits(hidden)

    def forward(
        self,
        *,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        attention_metadata: AttentionMetadata,
        kv_cache: KVCache,
    ) -> Tensor:
        """See `CausalLM`. What a step returns is overwritten by the next one."""
        assert kv_cache is self.kv_cache, "a recording writes to the KV cache that it was made for"
        if self.recorded is None:
            self.recorded = self._record()
        recording, hidden = self.recorded
        assert all(numbers.is_contiguous() for numbers in (token_ids, positions, slot_mapping)), (
            "the kernels read them in a row"
        )
        num_tokens = len(token_ids)
        step = native.Step(
            num_tokens=num_tokens,
            token_ids=token_ids.data_ptr(),
            positions=positions.data_ptr(),
            slots=slot_mapping.data_ptr(),
            rows=rows_of(attention_metadata),
        )
        recording.run(step, max_position=max(attention_metadata.kv_lens_host) - 1)
        return hidden[:num_tokens]

    def _record(self) -> tuple[Recording, Tensor]:
        recording = Recording(self.max_step_tokens, self.activation_bytes)
        metadata = _placeholder(self.max_step_tokens)
        with kernels().record(recording):
            hidden = self.model.forward(
                token_ids=recording.token_ids,
                positions=recording.positions,
                slot_mapping=recording.slots,
                attention_metadata=metadata,
                kv_cache=self.kv_cache,
            )
        return recording, hidden


def _placeholder(num_tokens: int) -> AttentionMetadata:
    """One row of so many tokens; each step brings its own."""
    return AttentionMetadata(
        query_start=torch.tensor([0, num_tokens], dtype=torch.int32),
        kv_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_tables=torch.zeros((1, 1), dtype=torch.int32),
        query_lens_host=(num_tokens,),
        kv_lens_host=(num_tokens,),
        num_decodes=0,
    )
