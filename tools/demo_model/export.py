"""Writes the folder that is served: weights, tokenizer, template, configuration, and the card that says how it was made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from demo_model.chat import PAD
from demo_model.evaluate import answer_all, shown
from demo_model.model import checkpoint_config
from demo_model.tokenizer import end_ids, tokenizer_config

if TYPE_CHECKING:
    from demo_model.train import Training

MAX_WEIGHT_BYTES = 12_000_000
WEIGHTS, CARD, CHECKSUMS = "model.safetensors", "README.md", "SHA256SUMS"


def write_model(training: Training, folder: Path, *, grammatical: int | None = None) -> None:
    """`grammatical` is how many answers of the card are good English, as judged by reading them; it stands in the card.

    ValueError if the weights are too large to come with the server.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape, tokenizer = training.recipe.shape, training.tokenizer
    ends, pad = end_ids(tokenizer), tokenizer.token_to_id(PAD)
    weights = {
        name: parameter.detach().to("cpu", torch.bfloat16).contiguous() for name, parameter in training.model.named_parameters()
    }
    size = sum(weight.nbytes for weight in weights.values())
    if size > MAX_WEIGHT_BYTES:
        raise ValueError(f"the weights have {size} bytes, over {MAX_WEIGHT_BYTES}")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    # The library lets only the owner read it, and the folder becomes a part of a package.
    (folder / WEIGHTS).chmod(0o644)
    _write_json(folder / "config.json", checkpoint_config(shape, bos=ends[1], eos=ends, pad=pad))
    _write_json(folder / "generation_config.json", {"eos_token_id": ends, "bos_token_id": ends[1], "pad_token_id": pad})
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, shape.positions))
    _write_checksums(folder)
    (folder / CARD).write_text(_card(training, folder, grammatical), encoding="utf-8")


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_checksums(folder: Path) -> None:
    """Of all but the card, in the form that `sha256sum --check` reads."""
    files = sorted(file for file in folder.iterdir() if file.name not in (CARD, CHECKSUMS))
    lines = [f"{_checksum(file)}  {file.name}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _card(training: Training, folder: Path, grammatical: int | None) -> str:
    recipe, shape = training.recipe, training.recipe.shape
    answers = answer_all(folder)
    values = dataclasses.asdict(shape) | {
        "parameters": f"{sum(parameter.numel() for parameter in training.model.parameters()):,}",
        "length": f"{max(recipe.lengths):,}",
        "step": f"{training.step:,}",
        "steps": f"{recipe.steps:,}",
        "steps_plain": recipe.steps,
        "seed": recipe.seed,
        "falling_part": recipe.falling_part,
        "tokens": f"{training.step * recipe.tokens:,}",
        "minutes": f"{training.seconds / 60:.0f}",
        "device": f"{torch.get_num_threads()} CPU threads" if training.device == "cpu" else training.device,
        "torch": torch.__version__,
        "weights_checksum": _checksum(folder / WEIGHTS),
        "good": sum(answer.good for answer in answers),
        "grammatical": f"| grammatical | {grammatical} of these, as judged by reading them |\n" if grammatical else "",
        "prompts": len(answers),
        "losses": "\n".join(f"| {loss.step} | {loss.answers:.4f} | {loss.all:.4f} |" for loss in _some(training.losses)),
        "samples": "\n".join(f"**{shown(answer.prompt)}**\n\n```text\n{answer.text}\n```\n" for answer in answers),
    }
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    return re.sub(r"\{(\w+)\}", lambda slot: str(values[slot[1]]), template)


def _some(losses: list[Any]) -> list[Any]:
    """At most a dozen, the last among them."""
    every = max(1, len(losses) // 12)
    return losses[(len(losses) - 1) % every :: every]
