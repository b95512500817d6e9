"""Which safetensors files a model folder has, and what their headers say; never the data, never pickle.

A file that is damaged does not raise by itself: its faults are collected in `Checkpoint.problems`, so that whoever compares
the headers with a model can report everything at once. Must not import torch.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100 * 1024 * 1024
# Of the safetensors format; 4-bit and smaller types have no whole number of bytes and are not listed.
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a header. `begin` and `end` count bytes from the start of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a model folder by name, and what is wrong with its files, one line each."""

    tensors: dict[str, TensorEntry]
    problems: list[str]


def read_checkpoint(folder: Path) -> Checkpoint:
    """The headers of all weight files of `folder`. ValueError where there are no safetensors files or no usable index."""
    files, placed = _weight_files(folder)
    tensors: dict[str, TensorEntry] = {}
    problems: list[str] = []
    for file in files:
        try:
            entries = _read_entries(file)
        except (OSError, ValueError) as error:
            problems.append(f"{file.name}: {_reason(error)}")
            placed = {name: place for name, place in placed.items() if place != file.name}
            continue
        for entry in entries:
            if entry.name in tensors:
                problems.append(f"{file.name}: {entry.name} is in {tensors[entry.name].file.name} too")
            tensors[entry.name] = entry
    for name, place in placed.items():
        if name not in tensors or tensors[name].file.name != place:
            problems.append(f"{place}: {name} is missing, although {INDEX_FILE} names this file for it")
    return Checkpoint(tensors, problems)


def header_bytes(folder: Path) -> list[tuple[str, bytes]]:
    """(file name, raw JSON header) of every weight file, sorted by name. ValueError for a file that has none."""
    headers = []
    for file in _weight_files(folder)[0]:
        try:
            headers.append((file.name, _read_header(file)))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file.name}: {_reason(error)}") from error
    return headers


def read_json_object(path: Path) -> dict[str, Any]:
    """ValueError with the file's name where it is missing, is not JSON or is not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: is not a JSON object")
    return content


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files, sorted by name, and where the index puts each tensor (empty without an index)."""
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE], {}
    if not (folder / INDEX_FILE).exists():
        others = sorted(file.name for file in folder.glob("*.bin"))
        found = f"; {', '.join(others)} cannot be used: only safetensors weights are read" if others else ""
        raise ValueError(f"no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is in the model folder{found}")
    placed = read_json_object(folder / INDEX_FILE).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{INDEX_FILE}: weight_map is not an object with tensor names and files")
    for name, place in placed.items():
        if not isinstance(place, str) or place != Path(place).name or not place.endswith(".safetensors"):
            raise ValueError(f"{INDEX_FILE}: {name} is placed in {place!r}, which is not the name of a safetensors file")
    return [folder / place for place in sorted(set(placed.values()))], placed


def _read_header(file: Path) -> bytes:
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ValueError(f"truncated: {len(prefix)} bytes, and the length of the header alone takes 8")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"corrupt header: it claims {length} bytes, the limit is {MAX_HEADER_BYTES}")
        header = stream.read(length)
    if len(header) < length:
        raise ValueError(f"truncated: the header should have {length} bytes, {len(header)} are there")
    return header


def _read_entries(file: Path) -> list[TensorEntry]:
    header = _read_header(file)
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ValueError("corrupt header: not JSON") from error
    if not isinstance(content, dict):
        raise ValueError("corrupt header: not a JSON object")
    data_start = 8 + len(header)
    content.pop("__metadata__", None)
    entries = [_parse_entry(file, name, content[name], data_start) for name in content]
    expected = max((entry.end for entry in entries), default=data_start)
    size = file.stat().st_size
    if size < expected:
        raise ValueError(f"truncated: {size} bytes, the header describes {expected}")
    if size > expected:
        raise ValueError(f"corrupt: {size} bytes, the header describes only {expected}")
    return entries


def _parse_entry(file: Path, name: str, description: object, data_start: int) -> TensorEntry:
    if not isinstance(description, dict):
        raise ValueError(f"corrupt header: {name} is not an object")
    dtype, shape, offsets = description.get("dtype"), description.get("shape"), description.get("data_offsets")
    if not isinstance(dtype, str) or not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"corrupt header: {name} needs dtype, shape and two data_offsets")
    begin, end = offsets
    item_bytes = ITEM_BYTES.get(dtype)
    if begin > end or (item_bytes is not None and end - begin != math.prod(shape) * item_bytes):
        raise ValueError(f"corrupt header: {name} of {dtype} {shape} cannot take {end - begin} bytes")
    return TensorEntry(file, name, dtype, tuple(shape), data_start + begin, data_start + end)


def _is_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "is not valid JSON"
    return str(error)
