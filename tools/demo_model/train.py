"""Trains the demo model: `python -m demo_model.train --help`. Can be stopped at any time and goes on where it was.

With the same recipe, torch and number of threads the result is the same, however often it was stopped.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from demo_model.batches import Batch, Batches, held_out
from demo_model.chat import ANSWER_WEIGHT
from demo_model.documents import document
from demo_model.model import LlamaModel, Shape, new_model
from demo_model.tokenizer import text_without_marks, train_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """All that the weights depend on. The learning rate rises, stays, and falls as a cosine over the last part."""

    seed: int = 0
    steps: int = 4200
    tokens: int = 6144
    lengths: tuple[int, ...] = (512, 512, 512, 1024)
    learning_rate: float = 5e-3
    warmup: int = 100
    falling_part: float = 0.5
    weight_decay: float = 0.1
    shape: Shape = dataclasses.field(default_factory=Shape)
    tokenizer_documents: int = 20_000

    def rate(self, step: int) -> float:
        falling_from = self.steps * (1 - self.falling_part)
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if step < falling_from:
            return self.learning_rate
        progress = (step - falling_from) / (self.steps - falling_from)
        return self.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


@dataclass
class HeldOutLoss:
    step: int
    answers: float
    all: float


class Training:
    """The state of a training, which lies in `folder/checkpoint.pt` between the calls."""

    def __init__(self, recipe: Recipe, folder: Path, *, device: str, bfloat16: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe, self.device, self.bfloat16 = recipe, device, bfloat16
        self.checkpoint_file = folder / "checkpoint.pt"
        self.tokenizer = _tokenizer(recipe, folder / "tokenizer.json")
        self.batches = Batches(self.tokenizer, seed=recipe.seed, tokens=recipe.tokens, lengths=recipe.lengths)
        self.held_out = held_out(self.tokenizer, windows=16, length=max(recipe.lengths))
        self.model = new_model(recipe.shape, recipe.seed).to(device)
        self.optimizers = _optimizers(self.model, recipe)
        self.step = 0
        self.seconds = 0.0
        self.losses: list[HeldOutLoss] = []
        if self.checkpoint_file.is_file():
            self._load()

    def run(self, minutes: float, report_every: int) -> None:
        """Until the recipe is done or the minutes are over; the checkpoint is written in both cases."""
        measured_at = time.monotonic()
        deadline = measured_at + minutes * 60
        shown_at, shown_step = measured_at, self.step
        while self.step < self.recipe.steps and time.monotonic() < deadline:
            loss = self.train_step()
            now = time.monotonic()
            self.seconds, measured_at = self.seconds + now - measured_at, now
            if self.step % 20 == 0:
                rate = (self.step - shown_step) * self.recipe.tokens / (now - shown_at)
                print(f"step {self.step}/{self.recipe.steps} loss {loss:.3f} tokens/s {rate:.0f}", flush=True)
                shown_at, shown_step = now, self.step
            if self.step % report_every == 0 and self.step < self.recipe.steps:
                self.measure()
                self.save()
        if not self.losses or self.losses[-1].step != self.step:
            self.measure()
        self.save()

    def train_step(self) -> float:
        batch = self.batches.batch(self.step)
        rate = self.recipe.rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
        loss = self._loss(batch, batch.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def measure(self) -> None:
        answers = (self.held_out.weights == ANSWER_WEIGHT).float()
        everything = torch.ones_like(answers)
        measured = HeldOutLoss(
            self.step, self._loss(self.held_out, answers).item(), self._loss(self.held_out, everything).item()
        )
        self.losses.append(measured)
        print(f"step {self.step} held-out loss: answers {measured.answers:.4f}, all {measured.all:.4f}", flush=True)

    def _loss(self, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(batch.token_ids.to(self.device))
        each = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten().to(self.device), reduction="none")
        flat = weights.flatten().to(self.device)
        return (each * flat).sum() / flat.sum()

    def save(self) -> None:
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "losses": [dataclasses.asdict(loss) for loss in self.losses],
        }
        unfinished = self.checkpoint_file.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.rename(self.checkpoint_file)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint_file, map_location=self.device, weights_only=True)
        mine, its = dataclasses.asdict(self.recipe), state["recipe"]
        free = ("steps", "falling_part") if state["step"] <= self._rising() else ()
        other = [key for key in mine if mine[key] != its[key] and key not in free]
        if other:
            raise ValueError(f"{self.checkpoint_file} is of another recipe ({', '.join(other)}); give another --work folder")
        self.model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = [HeldOutLoss(**loss) for loss in state["losses"]]

    def _rising(self) -> float:
        """Until here the rate does not depend on the number of steps and on where it falls, which may still be changed."""
        return self.recipe.steps * (1 - self.recipe.falling_part)


def _optimizers(model: LlamaModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers (https://kellerjordan.github.io/posts/muon/), AdamW for the rest.

    Muon needs a few matrix products more in a step, and far fewer steps than AdamW: see README.md.
    """
    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if parameter.dim() == 2 and "embed" not in name]
    others = [parameter for name, parameter in named if parameter.dim() == 1 or "embed" in name]
    return [
        torch.optim.Muon(
            [{"params": matrices, "scale": 1.0}],
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW([{"params": others, "scale": 1.6}], lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _tokenizer(recipe: Recipe, file: Path) -> Tokenizer:
    if not file.is_file():
        print("training the tokenizer", flush=True)
        texts = (text_without_marks(document(recipe.seed, index)) for index in range(recipe.tokenizer_documents))
        tokenizer = train_tokenizer(texts, recipe.shape.vocabulary)
        if tokenizer.get_vocab_size() != recipe.shape.vocabulary:
            raise ValueError(f"the text gives only {tokenizer.get_vocab_size()} tokens, not {recipe.shape.vocabulary}")
        tokenizer.save(str(file))
    return Tokenizer.from_file(str(file))
