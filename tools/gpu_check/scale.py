"""How large the checks and measurements are: the shape of an 8B Llama on a GPU, or on a CPU something tiny that takes the same
roads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from text_gen_server.config import ModelConfig
from text_gen_server.rope_config import RopeConfig


@dataclass(frozen=True, kw_only=True)
class HttpLoad:
    """What is sent to a whole server."""

    shape: str  # of `bench.model`
    prompt_len: int  # in tokens
    output_len: int  # in tokens
    num_requests: dict[int, int]  # by the number of streams at once
    num_at_once: int  # requests that are all sent at the beginning
    num_processes: int  # of clients
    num_starts: int  # of the server; the first may compile


@dataclass(frozen=True, kw_only=True)
class Scale:
    model: ModelConfig
    dtype: torch.dtype
    num_check_layers: int  # of the model whose logits are compared with float64
    decode_batches: tuple[int, ...]
    decode_contexts: tuple[int, ...]  # in tokens
    prefill_len: int  # in tokens
    copy_bytes: int
    matrix_size: int
    num_repeats: int  # of each measurement
    peer_prompts: int  # answered by us and by transformers
    peer_prompt_len: int  # in tokens
    peer_new_tokens: int  # of each answer
    http: HttpLoad

    def checked_model(self) -> ModelConfig:
        return replace(
            self.model,
            num_layers=self.num_check_layers,
            sliding_windows=self.model.sliding_windows[: self.num_check_layers],
        )


def llama(
    *, hidden_size: int, num_layers: int, heads: tuple[int, int, int], intermediate_size: int, vocab_size: int
) -> ModelConfig:
    """heads: query heads, KV heads, head size"""
    num_heads, num_kv_heads, head_dim = heads
    max_model_len = 32768
    return ModelConfig(
        architecture="llama",
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        rms_norm_eps=1e-5,
        rope=RopeConfig(kind="default", theta=500000.0, max_position_embeddings=max_model_len, max_model_len=max_model_len),
        tie_word_embeddings=False,
        qkv_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm=False,
        sliding_windows=(None,) * num_layers,
        eos_token_ids=(),
        torch_dtype="bfloat16",
    )


REAL = Scale(
    model=llama(hidden_size=4096, num_layers=32, heads=(32, 8, 128), intermediate_size=14336, vocab_size=128256),
    dtype=torch.bfloat16,
    num_check_layers=4,
    decode_batches=(1, 32, 256),
    decode_contexts=(1024, 8192),
    prefill_len=8192,
    copy_bytes=4 * 2**30,
    matrix_size=8192,
    num_repeats=20,
    peer_prompts=256,
    peer_prompt_len=512,
    peer_new_tokens=128,
    http=HttpLoad(
        shape="8b",
        prompt_len=1000,
        output_len=1000,
        num_requests={1: 3, 32: 64, 128: 256, 256: 512},
        num_at_once=1000,
        num_processes=8,
        num_starts=2,
    ),
)
DRY = Scale(
    model=replace(
        llama(hidden_size=64, num_layers=2, heads=(4, 2, 16), intermediate_size=112, vocab_size=256), torch_dtype="float32"
    ),
    dtype=torch.float32,
    num_check_layers=1,
    decode_batches=(1, 3),
    decode_contexts=(20, 40),
    prefill_len=48,
    copy_bytes=2**20,
    matrix_size=64,
    num_repeats=2,
    peer_prompts=3,
    peer_prompt_len=9,
    peer_new_tokens=4,
    http=HttpLoad(
        shape="tiny",
        prompt_len=16,
        output_len=4,
        num_requests={1: 1, 2: 3},
        num_at_once=4,
        num_processes=2,
        num_starts=1,
    ),
)
