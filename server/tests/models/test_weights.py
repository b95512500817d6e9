"""Weights that do not fit are refused with one list of everything that is wrong; what fits is read from where it is."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from models.driver import Driver, load

TOKENS = list(range(5, 25))


@pytest.fixture
def folder(model_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


@pytest.fixture
def sharded(model_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("llama", max_shard_size="200KB"), tmp_path / "sharded"))


def problems_of(folder: Path) -> str:
    with pytest.raises(ValueError, match="model") as caught:
        load(folder)
    return str(caught.value)


def test_every_mismatch_is_in_one_list(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:-1].contiguous()
    tensors["model.norm.weight"] = torch.zeros(64, dtype=torch.int8)
    tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors")
    assert problems_of(folder).splitlines() == [
        "the weights do not fit the model (4 problems):",
        "  model.safetensors: model.layers.0.mlp.up_proj.weight has shape [111, 64], expected [112, 64]",
        "  model.layers.1.self_attn.k_proj.weight is missing, expected with shape [32, 64]",
        "  model.safetensors: model.norm.weight has dtype I8, supported are F32, BF16, F16",
        "  model.safetensors: model.layers.7.mlp.up_proj.weight is unexpected, the model has no such tensor",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "truncated: .* bytes, the header describes"),
        (lambda data: data[:100], "truncated: the header should have"),
        (lambda data: data[:5], "truncated: 5 bytes"),
        (lambda data: data[:0], "truncated: 0 bytes"),
        (lambda data: data + b"x", "corrupt: .* the header describes only"),
        (lambda data: b"\xff" * 8 + data[8:], "corrupt header: it claims"),
        (lambda data: data[:8] + b"#" + data[9:], "corrupt header: not JSON"),
        (lambda data: data.replace(b'"shape"', b'"shame"', 1), "needs dtype, shape and two data_offsets"),
        (lambda data: data.replace(b"F32", b"F16", 1), "cannot take"),
        (lambda data: struct.pack("<Q", 2) + b"[]" + data[:0], "corrupt header: not a JSON object"),
    ],
)
def test_a_damaged_file_is_named(damage: Callable[[bytes], bytes], message: str, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"(?s)model.safetensors: .*{message}"):
        load(folder)


def test_all_damaged_files_are_listed_and_their_tensors_are_not_called_missing(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    problems = problems_of(sharded).splitlines()
    assert len(problems) == 3
    assert f"{first.name}: the file is missing" in problems[1]
    assert f"{second.name}: truncated" in problems[2]


def test_a_tensor_that_is_not_where_the_index_says_is_listed(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = content["weight_map"]["model.embed_tokens.weight"]
    index.write_text(json.dumps(content))
    assert "model.norm.weight is missing, although" in problems_of(sharded)


def test_an_index_cannot_lead_out_of_the_folder(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../other.safetensors"
    index.write_text(json.dumps(content))
    assert "not the name of a safetensors file" in problems_of(sharded)


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin cannot be used: only safetensors" in problems_of(folder)


def test_no_data_is_read_before_the_headers_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    monkeypatch.setattr("mmap.mmap", lambda *_, **__: pytest.fail("data was read"))
    assert "model.norm.weight is missing" in problems_of(folder)


def test_leftovers_of_old_exporters_are_ignored(folder: Path) -> None:
    expected = Driver(*load(folder)).run(TOKENS)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file(tensors, folder / "model.safetensors")
    assert torch.equal(Driver(*load(folder)).run(TOKENS), expected)


def test_a_second_copy_of_tied_embeddings_is_ignored(model_folder: Callable[..., Path], tmp_path: Path) -> None:
    tied = Path(shutil.copytree(model_folder("llama", tie_word_embeddings=True), tmp_path / "tied"))
    expected = Driver(*load(tied)).run(TOKENS)
    tensors = load_file(tied / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = torch.zeros(2048, 64)
    save_file(tensors, tied / "model.safetensors")
    assert torch.equal(Driver(*load(tied)).run(TOKENS), expected)


def test_half_precision_weights_are_converted_as_they_are_read(folder: Path) -> None:
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model, _ = load(folder)
    gate = tensors["model.layers.0.mlp.gate_proj.weight"]
    up = tensors["model.layers.0.mlp.up_proj.weight"]
    hidden = torch.randn(2, 64)
    expected = F.silu(F.linear(hidden, gate.float())) * F.linear(hidden, up.float())
    torch.testing.assert_close(model.layers[0].mlp.gate_up(hidden), expected)
