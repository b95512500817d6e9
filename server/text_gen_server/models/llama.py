"""Llama, top to bottom: embedding, layers of attention and MLP around a residual stream, norm, head.

Mistral and Qwen2 are this code with another configuration, and Qwen3 brings its own attention. What a rank holds is the
layers' business; nothing here asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

from text_gen_server.layers.embedding import Embedding, LanguageModelHead, VocabularyWeight
from text_gen_server.layers.linear import GateUpLinear, QkvLinear, RowLinear
from text_gen_server.layers.norm import RMSNorm
from text_gen_server.layers.rotary import RotaryEmbedding
from text_gen_server.models.causal_lm import LayerInputs
from text_gen_server.ops.interface import StepPositions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from text_gen_server.attention.interface import Attention
    from text_gen_server.attention.metadata import AttentionMetadata
    from text_gen_server.config import ModelConfig
    from text_gen_server.kv_cache import KVCache
    from text_gen_server.layers.placement import Placement
    from text_gen_server.ops.interface import Fp8Ops, HeadNorm, Written
    from text_gen_server.weights import WantedTensor


class SelfAttention(Protocol):
    """The attention part of a layer."""

    @property
    def qkv(self) -> QkvLinear:
        """Who reads the hidden states."""

    def wanted(self) -> Iterator[WantedTensor]: ...

    def pack(self) -> None: ...

    def __call__(self, hidden: Written, inputs: LayerInputs) -> Tensor:
        """hidden: [T, hidden] -> [T, hidden]"""


class MakeSelfAttention(Protocol):
    def __call__(self, layer: int, config: ModelConfig, placement: Placement) -> SelfAttention: ...


class Llama:
    """See `CausalLM`."""

    def __init__(
        self,
        config: ModelConfig,
        placement: Placement,
        attention: Attention,
        make_self_attention: MakeSelfAttention | None = None,
    ) -> None:
        self.attention = attention
        embedding = VocabularyWeight("model.embed_tokens", config.vocab_size, config.hidden_size, placement)
        head = embedding
        if not config.tie_word_embeddings:
            head = VocabularyWeight("lm_head", config.vocab_size, config.hidden_size, placement)
        self.vocabulary_weights = [embedding] if head is embedding else [embedding, head]
        self.embed = Embedding(embedding, placement)
        rotary = RotaryEmbedding(config.rope, config.head_dim, placement.device)
        self.rotation = placement.ops.rotation(rotary.cos_sin, num_positions=config.max_model_len, head_dim=config.head_dim)
        make_self_attention = make_self_attention or LlamaAttention
        self.layers = [LlamaLayer(layer, config, placement, make_self_attention) for layer in range(config.num_layers)]
        self.norm = RMSNorm("model.norm", config.hidden_size, epsilon=config.rms_norm_eps, placement=placement, reader=None)
        self.head = LanguageModelHead(head, placement)

    def wanted(self) -> Iterator[WantedTensor]:
        for weight in self.vocabulary_weights:
            yield from weight.wanted()
        for layer in self.layers:
            yield from layer.wanted()
        yield from self.norm.wanted()

    def pack(self) -> None:
        for weight in self.vocabulary_weights:
            weight.pack()
        for layer in self.layers:
            layer.pack()
        self.norm.pack()

    def forward(
        self,
        *,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        attention_metadata: AttentionMetadata,
        kv_cache: KVCache,
    ) -> Tensor:
        cos, sin = self.rotation(positions)
        attention = self.attention.prepare(attention_metadata, kv_cache)
        inputs = LayerInputs(StepPositions(cos, sin, slot_mapping), kv_cache, attention)
        hidden, residual = self.embed(token_ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, inputs)
        normalized: Tensor = self.norm(hidden, residual)[0]
        return normalized

    def logits(self, hidden: Tensor) -> Tensor | None:
        return self.head(hidden)


class LlamaLayer:
    def __init__(self, layer: int, config: ModelConfig, placement: Placement, make: MakeSelfAttention) -> None:
        name, size, epsilon = f"model.layers.{layer}", config.hidden_size, config.rms_norm_eps
        self.self_attention = make(layer, config, placement)
        self.input_norm = RMSNorm(
            f"{name}.input_layernorm", size, epsilon=epsilon, placement=placement, reader=self.self_attention.qkv
        )
        self.mlp = LlamaMlp(f"{name}.mlp", config, placement)
        self.mlp_norm = RMSNorm(
            f"{name}.post_attention_layernorm", size, epsilon=epsilon, placement=placement, reader=self.mlp.gate_up
        )

    def wanted(self) -> Iterator[WantedTensor]:
        for part in (self.input_norm, self.self_attention, self.mlp_norm, self.mlp):
            yield from part.wanted()

    def pack(self) -> None:
        for part in (self.self_attention, self.input_norm, self.mlp, self.mlp_norm):  # readers first
            part.pack()

    def __call__(self, hidden: Tensor, residual: Tensor | None, inputs: LayerInputs) -> tuple[Tensor, Tensor]:
        """hidden: [T, hidden], what the layer before adds to residual: [T, hidden] -> the same for the next layer"""
        hidden, residual = self.input_norm(hidden, residual)
        hidden = self.self_attention(hidden, inputs)
        hidden, residual = self.mlp_norm(hidden, residual)
        return self.mlp(hidden), residual


class LlamaAttention:
    def __init__(self, layer: int, config: ModelConfig, placement: Placement) -> None:
        name = f"model.layers.{layer}.self_attn"
        self.layer = layer
        self.ops = placement.ops
        self.fp8_ops = cast("Fp8Ops", placement.ops)  # which they are wherever the KV cache is in fp8
        self.head_dim = config.head_dim
        self.sliding_window = config.sliding_windows[layer]
        self.qkv = QkvLinear(name, config, placement)
        self.output = RowLinear(
            f"{name}.o_proj",
            config.num_heads * config.head_dim,
            config.hidden_size,
            bias=config.attention_output_bias,
            placement=placement,
            what="attention features",
        )

    def wanted(self) -> Iterator[WantedTensor]:
        yield from self.qkv.wanted()
        yield from self.output.wanted()

    def pack(self) -> None:
        self.qkv.pack()
        self.output.pack()

    def __call__(self, hidden: Written, inputs: LayerInputs) -> Tensor:
        heads = self.qkv(hidden).unflatten(1, (-1, self.head_dim))  # [T, H + 2 KH, D]
        slots, scales = inputs.kv_cache.slots(self.layer), inputs.kv_cache.scales
        if scales is None:
            query = self.ops.rotate_and_write(heads, inputs.positions, *slots, self.head_norm())
        else:
            query = self.fp8_ops.rotate_and_write_fp8(heads, inputs.positions, slots, scales[self.layer], self.head_norm())
        attended = inputs.attention.attend(self.layer, query, self.sliding_window)
        return self.output(attended.flatten(1))

    def head_norm(self) -> HeadNorm | None:
        """What a family does to query and key heads before their rotation."""
        return None


class LlamaMlp:
    def __init__(self, name: str, config: ModelConfig, placement: Placement) -> None:
        self.down = RowLinear(
            f"{name}.down_proj",
            config.intermediate_size,
            config.hidden_size,
            bias=config.mlp_bias,
            placement=placement,
            what="MLP features",
        )
        self.gate_up = GateUpLinear(name, config, placement, reader=self.down)

    def wanted(self) -> Iterator[WantedTensor]:
        yield from self.gate_up.wanted()
        yield from self.down.wanted()

    def pack(self) -> None:
        self.down.pack()
        self.gate_up.pack()

    def __call__(self, hidden: Written) -> Tensor:
        return self.down(self.gate_up(hidden))
