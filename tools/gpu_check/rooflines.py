"""The least time that a step can take, from what it must move and compute. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from text_gen_server.config import ModelConfig


@dataclass(frozen=True)
class StepCost:
    """What one step needs at least."""

    moved_bytes: int
    flops: int


def layer_parameters(config: ModelConfig) -> int:
    """Weights of one layer that are multiplied with every token."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return attention + 3 * config.hidden_size * config.intermediate_size


def decode_cost(
    config: ModelConfig, *, batch: int, context: int, element_bytes: int, layer_weight_bytes: int | None = None
) -> StepCost:
    """A decode step reads all weights but the embedding once, and the keys and values of each row's context.

    layer_weight_bytes: of a weight of the layers, where that is not `element_bytes`
    """
    layers = config.num_layers * layer_parameters(config)
    head = config.hidden_size * config.vocab_size
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim * context * batch
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * context * batch
    moved_bytes = layers * (layer_weight_bytes or element_bytes) + (head + kv) * element_bytes
    return StepCost(moved_bytes, 2 * (layers + head) * batch + attention)


def prefill_cost(config: ModelConfig, *, num_tokens: int, element_bytes: int) -> StepCost:
    """A prompt at once; of its logits only the last token's. Causal attention is half of the square."""
    parameters = config.num_layers * layer_parameters(config)
    head = config.hidden_size * config.vocab_size
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * num_tokens * (num_tokens + 1) // 2
    return StepCost((parameters + head) * element_bytes, 2 * parameters * num_tokens + 2 * head + attention)


def least_seconds(cost: StepCost, *, bytes_per_second: float, flops_per_second: float) -> float:
    """Whatever takes longer: moving or computing."""
    return max(cost.moved_bytes / bytes_per_second, cost.flops / flops_per_second)
