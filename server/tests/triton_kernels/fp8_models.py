"""Tiny checkpoints whose linear layers are in fp8, as the tools of the field write them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import make_model
from torch import Tensor

INPUT_SCALE = 0.02  # activations of tiny models stay below 448 times this


def compressed_tensors(strategy: str, *, is_dynamic: bool) -> dict[str, Any]:
    """The `quantization_config` of llm-compressor."""
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True, "dynamic": False}
    inputs = {**weights, "strategy": "token" if is_dynamic else "tensor", "dynamic": is_dynamic}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": ["lm_head"],
    }


def write_fp8_model(folder: Path, family: str, quantization: dict[str, Any], **config: Any) -> dict[str, Tensor]:
    """Writes the checkpoint, and gives back the tensors that it stands for, in float32 under their usual names."""
    model = make_model(family, **config)
    written: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    group = quantization.get("config_groups", {}).get("group_0")
    is_static = quantization.get("activation_scheme") == "static" or (group and not group["input_activations"]["dynamic"])
    for name, tensor in model.state_dict().items():
        if "_proj.weight" not in name:
            written[name] = meant[name] = tensor.clone()
            continue
        is_channel = group is not None and group["weights"]["strategy"] == "channel"
        largest = tensor.abs().amax(1, keepdim=True) if is_channel else tensor.abs().max().view(1)
        scale = largest / 448
        written[name] = (tensor / scale).to(torch.float8_e4m3fn)
        written[f"{name}_scale"] = scale
        meant[name] = written[name].float() * scale
        if is_static:
            # Layers that share an input have scales of their own in many checkpoints.
            factor = 1.5 if "k_proj" in name else 1.0
            written[name.replace(".weight", ".input_scale")] = torch.tensor([INPUT_SCALE * factor])
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "quantization_config": quantization}))
    save_file(written, folder / "model.safetensors")
    return meant


def write_meant_model(folder: Path, fp8_folder: Path, meant: dict[str, Tensor]) -> Path:
    """The same model in full precision. Returns `folder`."""
    folder.mkdir(exist_ok=True)
    content = json.loads((fp8_folder / "config.json").read_text())
    del content["quantization_config"]
    (folder / "config.json").write_text(json.dumps(content))
    save_file(meant, folder / "model.safetensors")
    return folder
