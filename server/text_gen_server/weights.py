"""Reads weights from safetensors files into the tensors of the layers: only the part a rank needs, straight into its final
place and dtype. The headers are compared with the whole model before a byte of data is read; nothing is ever unpickled.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from text_gen_server.checkpoint import TensorEntry, read_checkpoint
from text_gen_server.file_copies import Target, copy_tensors
from text_gen_server.fp8_config import KEY_SCALES, VALUE_SCALES, KVScales

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from torch import Tensor

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
FP8_DTYPES = {"F8_E4M3": torch.float8_e4m3fn}  # of a target in fp8, and of no other
# Left in by old exporters and computed from the configuration, or read by `read_kv_scales` where they are wanted.
HARMLESS_SUFFIXES = (
    ".rotary_emb.inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    *(f".self_attn.{name}" for name in ("q_scale", *KEY_SCALES, *VALUE_SCALES)),
)


@dataclass(frozen=True)
class WantedTensor:
    """A tensor of the checkpoint that a layer needs, and where this rank's part of it goes."""

    name: str
    shape: tuple[int, ...]  # of the whole tensor in the checkpoint
    target: Target  # of this rank's part, in its final form and place; the part is broadcast to its shape
    part: tuple[slice, ...]  # of the leading dimensions; () = the whole tensor
    is_scale: bool = False  # dimensions of 1 do not count, and one number may stand for all

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether the checkpoint's tensor of this shape will do."""
        if not self.is_scale:
            return shape == self.shape
        return _without_ones(shape) in ((), _without_ones(self.shape))

    @property
    def source_dtypes(self) -> dict[str, torch.dtype]:
        """Those the checkpoint's tensor may have, by their names there."""
        is_fp8 = isinstance(self.target, torch.Tensor) and self.target.dtype in FP8_DTYPES.values()
        return FP8_DTYPES if is_fp8 else DTYPES


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
    pairs = _pairs([(checkpoint.tensors[tensor.name], tensor) for tensor in wanted])
    devices = {tensor.target.device for tensor in wanted}
    assert len(devices) == 1, "a rank has one device"
    copy_tensors(pairs, devices.pop())


def read_kv_scales(folder: Path, num_layers: int) -> tuple[KVScales, ...]:
    """Of each layer; 1 where the checkpoint has none. ValueError for what is no scale."""
    tensors = read_checkpoint(folder).tensors

    def scale(layer: int, names: tuple[str, ...]) -> float:
        found = (tensors.get(f"model.layers.{layer}.self_attn.{name}") for name in names)
        return next((_read_scale(entry) for entry in found if entry is not None), 1.0)

    return tuple(KVScales(scale(layer, KEY_SCALES), scale(layer, VALUE_SCALES)) for layer in range(num_layers))


def _read_scale(entry: TensorEntry) -> float:
    where = f"{entry.file.name}: {entry.name}"
    dtype = DTYPES.get(entry.dtype)
    if dtype is None or entry.end - entry.begin != dtype.itemsize:
        raise ValueError(f"{where} has dtype {entry.dtype} and shape {list(entry.shape)}, a scale is one number")
    with entry.file.open("rb") as stream:
        stream.seek(entry.begin)
        scale = float(torch.frombuffer(bytearray(stream.read(dtype.itemsize)), dtype=dtype)[0])
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{where} is {scale}, a scale is above 0")
    return scale


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
        if not tensor.fits(entry.shape):
            problems.append(f"{where} has shape {list(entry.shape)}, expected {list(tensor.shape)}")
        if entry.dtype not in tensor.source_dtypes:
            problems.append(f"{where} has dtype {entry.dtype}, supported are {', '.join(tensor.source_dtypes)}")
    expected = {tensor.name for tensor in wanted} | ignored
    problems += [
        f"{entry.file.name}: {name} is unexpected, the model has no such tensor"
        for name, entry in found.items()
        if name not in expected and not name.endswith(HARMLESS_SUFFIXES)
    ]
    return problems


def _pairs(wanted: list[tuple[TensorEntry, WantedTensor]]) -> Iterator[tuple[Tensor, Target]]:
    """What is in the files beside where it goes, in the order of the files, so that the disk is read ahead."""
    memory: dict[Path, mmap.mmap] = {}
    for entry, tensor in sorted(wanted, key=lambda pair: (pair[0].file, pair[0].begin)):
        if entry.file not in memory:
            memory = {entry.file: _map(entry.file)}
        dtype = tensor.source_dtypes[entry.dtype]
        count = (entry.end - entry.begin) // dtype.itemsize
        if count > 0:
            source = torch.frombuffer(memory[entry.file], dtype=dtype, count=count, offset=entry.begin)
            is_one_for_all = tensor.is_scale and count == 1
            yield source[0] if is_one_for_all else source.view(tensor.shape)[tensor.part], tensor.target


def _map(file: Path) -> mmap.mmap:
    """ValueError where it can no longer be read."""
    try:
        with file.open("rb") as stream:
            # Private and never written; torch warns about read-only memory. Unmapped when the last view is gone.
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise ValueError(f"{file.name}: cannot be read: {error.strerror}") from error


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
