"""Reads weights from safetensors files into the tensors of the layers: only the part a rank needs, straight into its final
place and dtype. The headers are compared with the whole model before a byte of data is read; nothing is ever unpickled.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from text_gen_server.checkpoint import TensorEntry, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Left in by old exporters; computed from the configuration.
HARMLESS_SUFFIXES = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True)
class WantedTensor:
    """A tensor of the checkpoint that a layer needs, and where this rank's part of it goes."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor in the checkpoint
    target: Tensor  # of this rank's part, in its final dtype and place; the part is broadcast to its shape
    part: tuple[slice, ...]  # of the leading dimensions; () = the whole tensor


def load_weights(folder: Path, wanted: Iterable[WantedTensor], *, ignored: frozenset[str] = frozenset()) -> None:
    """Fills the targets of all `wanted` tensors from the safetensors files of `folder`.

    ignored: names that may be there and are not read (a second copy of tied embeddings)
    ValueError lists every mismatch: missing or unexpected tensors, wrong shapes and dtypes, damaged files.
    """
    wanted = list(wanted)
    checkpoint = read_checkpoint(folder)
    problems = checkpoint.problems + _mismatches(checkpoint.tensors, wanted, ignored, complete=not checkpoint.problems)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"the weights do not fit the model ({len(problems)} problems):\n{listed}")
    by_file: dict[Path, list[tuple[TensorEntry, WantedTensor]]] = {}
    for tensor in wanted:
        entry = checkpoint.tensors[tensor.name]
        by_file.setdefault(entry.file, []).append((entry, tensor))
    for file, pairs in by_file.items():
        _read_file(file, sorted(pairs, key=lambda pair: pair[0].begin))


def _mismatches(
    found: dict[str, TensorEntry], wanted: list[WantedTensor], ignored: frozenset[str], *, complete: bool
) -> list[str]:
    """One line each. Missing tensors are only known if all files could be read (`complete`)."""
    problems = []
    for tensor in wanted:
        entry = found.get(tensor.name)
        if entry is None:
            if complete:
                problems.append(f"{tensor.name} is missing, expected with shape {list(tensor.shape)}")
            continue
        where = f"{entry.file.name}: {tensor.name}"
        if entry.shape != tensor.shape:
            problems.append(f"{where} has shape {list(entry.shape)}, expected {list(tensor.shape)}")
        if entry.dtype not in DTYPES:
            problems.append(f"{where} has dtype {entry.dtype}, supported are {', '.join(DTYPES)}")
    expected = {tensor.name for tensor in wanted} | ignored
    problems += [
        f"{entry.file.name}: {name} is unexpected, the model has no such tensor"
        for name, entry in found.items()
        if name not in expected and not name.endswith(HARMLESS_SUFFIXES)
    ]
    return problems


def _read_file(file: Path, pairs: list[tuple[TensorEntry, WantedTensor]]) -> None:
    """`pairs` in the order of the file, so that the disk is read ahead."""
    with file.open("rb") as stream:
        # Private and never written; torch warns about read-only memory. Unmapped when the last view is gone.
        memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    for entry, tensor in pairs:
        dtype = DTYPES[entry.dtype]
        count = (entry.end - entry.begin) // dtype.itemsize
        if count > 0:
            source = torch.frombuffer(memory, dtype=dtype, count=count, offset=entry.begin).view(entry.shape)
            tensor.target.copy_(source[tensor.part])
