"""Writes the models that are measured: Llama shapes with seeded random weights, and a tokenizer that is built, not trained.

Nothing is downloaded, and the same shape gives the same files everywhere, as long as a CPU draws them. Greedy answers are made
of whole words and never end by themselves, so that every token is an event that a client can see. The text means nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
BOS, EOS, PAD = range(3)
SPACE = "\u0120"  # how byte-level tokenizers write it
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxz" for vowel in "aeiou"]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@dataclass(frozen=True)
class Shape:
    """A Llama architecture; sizes as in its `config.json`."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int = 8192
    tie_word_embeddings: bool = True  # embedding and output head are one matrix

    @property
    def num_body_parameters(self) -> int:
        """Parameters that every token passes: those of the layers."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """What a step that decodes reads: all but the norms, and but the embedding where the head is a matrix of its own."""
        return self.num_body_parameters + self.vocab_size * self.hidden_size


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 16, 176, 2048),
    "135m": Shape(576, 30, 9, 3, 64, 1536, 49152),
    "1b": Shape(2048, 16, 32, 8, 64, 8192, 128256),
    "8b": Shape(4096, 32, 32, 8, 128, 14336, 128256, tie_word_embeddings=False),
}


def write_model(folder: Path, shape: Shape, *, seed: int = 0, device: str = "cpu") -> Path:
    """Writes a folder that any Hugging Face server loads, in bfloat16; a folder that is complete is left alone. Returns it.

    device: where the weights are drawn; a GPU takes seconds where a CPU takes minutes
    """
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(folder, shape)
    save_file(_weights(shape, seed, device), folder / "model.safetensors", metadata={"format": "pt"})
    # Last, so that a folder that has it is complete.
    (folder / "config.json").write_text(json.dumps(_config(shape), indent=2))
    return folder


def words(shape: Shape) -> list[str]:
    """Words that are exactly one token each, with their leading space."""
    pairs = (f" {first}{second}" for first in SYLLABLES for second in SYLLABLES)
    return list(islice(pairs, shape.vocab_size - _num_short_tokens()))


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }


def _weights(shape: Shape, seed: int, device: str) -> dict[str, torch.Tensor]:
    """By name, in bfloat16 on the CPU. Every matrix keeps the scale of what it is multiplied with."""
    generator = torch.Generator(device).manual_seed(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        normal = torch.randn(rows, columns, generator=generator, device=device)
        return normal.mul_(scale / math.sqrt(columns)).to(torch.bfloat16).cpu()

    hidden = shape.hidden_size
    ones = torch.ones(hidden, dtype=torch.bfloat16)
    weights = {"model.embed_tokens.weight": matrix(shape.vocab_size, hidden, scale=4.0), "model.norm.weight": ones.clone()}
    head = "model.embed_tokens.weight"
    if not shape.tie_word_embeddings:
        head = "lm_head.weight"
        weights[head] = matrix(shape.vocab_size, hidden, scale=4.0)
    # Never the likeliest: half a character is no event in a stream, and the end of text ends it.
    weights[head][: _num_byte_tokens()] *= 0.01
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    for layer in range(shape.num_layers):
        weights |= {
            f"model.layers.{layer}.{name}.weight": weight
            for name, weight in {
                "self_attn.q_proj": matrix(queries, hidden),
                "self_attn.k_proj": matrix(keys, hidden),
                "self_attn.v_proj": matrix(keys, hidden),
                "self_attn.o_proj": matrix(hidden, queries),
                "mlp.gate_proj": matrix(shape.intermediate_size, hidden),
                "mlp.up_proj": matrix(shape.intermediate_size, hidden),
                "mlp.down_proj": matrix(hidden, shape.intermediate_size),
                "input_layernorm": ones.clone(),
                "post_attention_layernorm": ones.clone(),
            }.items()
        }
    return weights


def _num_byte_tokens() -> int:
    return len(SPECIAL_TOKENS) + 256


def _num_short_tokens() -> int:
    """Those before the words: special ones, bytes, syllables, and syllables after a space."""
    return _num_byte_tokens() + 2 * len(SYLLABLES)


def _merges() -> Iterator[tuple[str, str]]:
    """Letters to syllables, a space and a syllable to the beginning of a word, and so on to longer and longer words."""
    yield from ((syllable[0], syllable[1]) for syllable in SYLLABLES)
    beginnings = [SPACE]
    while True:
        yield from ((beginning, syllable) for beginning in beginnings for syllable in SYLLABLES)
        beginnings = [beginning + syllable for beginning in beginnings for syllable in SYLLABLES]


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    """A byte-level BPE with exactly `vocab_size` tokens."""
    names = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = list(islice(_merges(), shape.vocab_size - len(names)))
    names += [left + right for left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab={name: token_id for token_id, name in enumerate(names)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[EOS],
        "pad_token": SPECIAL_TOKENS[PAD],
        "add_bos_token": False,
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": shape.max_positions,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
