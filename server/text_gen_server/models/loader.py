"""Builds the model of a configuration and fills it from its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from text_gen_server.layers.placement import Placement
from text_gen_server.models.llama import Llama
from text_gen_server.models.mistral import Mistral
from text_gen_server.models.qwen2 import Qwen2
from text_gen_server.models.qwen3 import Qwen3
from text_gen_server.weights import load_weights

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from text_gen_server.attention.interface import Attention
    from text_gen_server.config import ModelConfig
    from text_gen_server.distributed import TensorParallel
    from text_gen_server.ops.interface import Ops

FAMILIES = {"llama": Llama, "mistral": Mistral, "qwen2": Qwen2, "qwen3": Qwen3}


def load_model(
    folder: Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    tensor_parallel: TensorParallel,
    attention: Attention,
    ops: Ops,
) -> Llama:
    """This rank's part of the model in `folder`, in `dtype` on `device`, ready to run.

    ValueError if the model cannot be split over the ranks, and one with every mismatch if the weights do not fit it.
    """
    placement = Placement(tensor_parallel, dtype, device, ops, config.fp8)
    model: Llama = FAMILIES[config.architecture](config, placement, attention)
    # A second copy of tied embeddings is often left in the files.
    ignored = frozenset({"lm_head.weight"}) if config.tie_word_embeddings else frozenset()
    load_weights(folder, model.wanted(), ignored=ignored)
    model.pack()
    return model
