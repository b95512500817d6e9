"""Runs a model step by step the way a router would: block tables, slots and chunks are made up here, never in the tests."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from text_gen_server.attention.choose import choose_attention
from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.config import ModelConfig, load_model_config
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.models.causal_lm import CausalLM
from text_gen_server.models.loader import load_model
from text_gen_server.ops.choose import choose_ops
from text_gen_server.ops.interface import Ops
from torch import Tensor

CPU = torch.device("cpu")


@dataclass
class Sequence:
    tokens: list[int]
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)  # of every computed token


class Driver:
    """Owns a KV cache of scattered blocks. The cache starts full of NaN, as if others had left them."""

    def __init__(
        self,
        model: CausalLM,
        config: ModelConfig,
        *,
        block_size: int | None = None,
        num_blocks: int = 256,
        dtype: torch.dtype = torch.float32,
        tensor_parallel: TensorParallel | None = None,
    ) -> None:
        self.model = model
        self.cache = KVCache.allocate(
            config=config,
            tensor_parallel=tensor_parallel or TensorParallel.single(),
            num_blocks=num_blocks,
            block_size=block_size or (16 if dtype == torch.bfloat16 else 4),  # the native kernels keep 16 slots together
            dtype=dtype,
            device=CPU,
        )
        for layer in (*self.cache.keys, *self.cache.values):
            layer.fill_(float("nan"))
        self.free_blocks = list(range(num_blocks))
        random.Random(0).shuffle(self.free_blocks)

    @torch.inference_mode()
    def step(self, rows: list[tuple[Sequence, int]]) -> None:
        """Computes so many tokens of each sequence; rows of one token must come first."""
        lens = [num_tokens for _, num_tokens in rows]
        num_decodes = next((row for row, num_tokens in enumerate(lens) if num_tokens != 1), len(lens))
        token_ids, positions, slots = [], [], []
        for sequence, num_tokens in rows:
            end = sequence.num_computed + num_tokens
            assert end <= len(sequence.tokens), "only known tokens can be computed"
            while len(sequence.block_ids) * self.cache.block_size < end:
                sequence.block_ids.append(self.free_blocks.pop())
            for position in range(sequence.num_computed, end):
                block_id = sequence.block_ids[position // self.cache.block_size]
                token_ids.append(sequence.tokens[position])
                positions.append(position)
                slots.append(block_id * self.cache.block_size + position % self.cache.block_size)
            sequence.num_computed = end
        hidden = self.model.forward(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            slot_mapping=torch.tensor(slots),
            attention_metadata=metadata_of(
                [sequence.block_ids for sequence, _ in rows], lens, [sequence.num_computed for sequence, _ in rows], num_decodes
            ),
            kv_cache=self.cache,
        )
        logits = self.model.logits(hidden)
        if logits is not None:
            for (sequence, _), part in zip(rows, torch.split(logits, lens), strict=True):
                sequence.logits.append(part)

    def run(self, tokens: list[int], chunk: int | None = None) -> Tensor:
        """All tokens of one sequence in chunks -> logits [len(tokens), V]"""
        return torch.cat(self.compute(tokens, chunk).logits)

    def compute(self, tokens: list[int], chunk: int | None = None) -> Sequence:
        """As `run`, on a rank that may have no logits."""
        sequence = Sequence(list(tokens))
        while sequence.num_computed < len(tokens):
            self.step([(sequence, min(chunk or len(tokens), len(tokens) - sequence.num_computed))])
        self.release(sequence)
        return sequence

    def release(self, sequence: Sequence) -> None:
        self.free_blocks = sequence.block_ids + self.free_blocks
        sequence.block_ids = []

    def greedy(self, prompt: list[int], num_tokens: int, chunk: int | None = None) -> list[int]:
        sequence = Sequence(list(prompt))
        while len(sequence.tokens) < len(prompt) + num_tokens:
            left = len(sequence.tokens) - sequence.num_computed
            self.step([(sequence, min(chunk or left, left))])
            if sequence.num_computed == len(sequence.tokens):
                sequence.tokens.append(int(sequence.logits[-1][-1].argmax()))
        self.release(sequence)
        return sequence.tokens[len(prompt) :]


def metadata_of(block_ids: list[list[int]], query_lens: list[int], kv_lens: list[int], num_decodes: int) -> AttentionMetadata:
    longest = max(len(blocks) for blocks in block_ids)
    return AttentionMetadata(
        query_start=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        kv_lens=torch.tensor(kv_lens, dtype=torch.int32),
        block_tables=torch.tensor([blocks + [0] * (longest - len(blocks)) for blocks in block_ids], dtype=torch.int32),
        query_lens_host=tuple(query_lens),
        kv_lens_host=tuple(kv_lens),
        num_decodes=num_decodes,
    )


def load(
    folder: Path,
    *,
    attention: str = "auto",
    dtype: torch.dtype = torch.float32,
    tensor_parallel: TensorParallel | None = None,
    rope_scaling: str | None = None,
    rope_factor: float | None = None,
    quantize: str | None = None,
    ops: Ops | None = None,
) -> tuple[CausalLM, ModelConfig]:
    config = load_model_config(folder, rope_scaling=rope_scaling, rope_factor=rope_factor)
    model = load_model(
        folder,
        config,
        dtype=dtype,
        device=CPU,
        tensor_parallel=tensor_parallel or TensorParallel.single(),
        attention=choose_attention(attention, device=CPU, dtype=dtype, config=config),
        ops=ops or choose_ops(dtype=dtype, device=CPU, num_threads=1, quantize=quantize),
    )
    return model, config
