"""Qwen3 is Llama with one difference in code: every query and key head is normalized before it is rotated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from text_gen_server.layers.norm import QueryKeyNorm
from text_gen_server.models.llama import Llama, LlamaAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from text_gen_server.attention.interface import Attention
    from text_gen_server.config import ModelConfig
    from text_gen_server.layers.placement import Placement
    from text_gen_server.ops.interface import HeadNorm
    from text_gen_server.weights import WantedTensor


class Qwen3(Llama):
    """See `Llama`."""

    def __init__(self, config: ModelConfig, placement: Placement, attention: Attention) -> None:
        super().__init__(config, placement, attention, make_self_attention=Qwen3Attention)


class Qwen3Attention(LlamaAttention):
    def __init__(self, layer: int, config: ModelConfig, placement: Placement) -> None:
        super().__init__(layer, config, placement)
        self.norm = QueryKeyNorm(
            f"model.layers.{layer}.self_attn",
            self.qkv.num_heads,
            self.qkv.num_kv_heads,
            head_dim=config.head_dim,
            epsilon=config.rms_norm_eps,
            placement=placement,
        )

    def wanted(self) -> Iterator[WantedTensor]:
        yield from super().wanted()
        yield from self.norm.wanted()

    def pack(self) -> None:
        super().pack()
        self.norm.pack()

    def head_norm(self) -> HeadNorm:
        return self.norm.packed
