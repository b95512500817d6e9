"""The demo model as a part of the package: whole, found wherever the package lies, read only, refused once it is damaged."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import text_gen_server
from text_gen_server.demo import CHECKSUMS, FOLDER, check_demo_model
from text_gen_server.hub import check_model_folder

MAX_WEIGHT_BYTES = 12_000_000


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Path]:
    """The package at another place, of which nothing can be written."""
    site = tmp_path / "site-packages"
    shutil.copytree(Path(text_gen_server.__file__).parent, site / "text_gen_server", ignore=shutil.ignore_patterns("*.pyc"))
    for entry in [site, *site.rglob("*")]:
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    yield site
    for entry in [site, *site.rglob("*")]:
        entry.chmod(0o755)


def demo_model(site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-m", "text_gen_server.cli", "demo-model", "--json-output"]
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": "/nowhere"}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment, cwd="/")


def test_the_demo_model_is_whole_and_a_model_that_can_be_served() -> None:
    assert check_demo_model() == FOLDER
    check_model_folder(FOLDER)
    assert sum(file.stat().st_size for file in FOLDER.glob("*.safetensors")) <= MAX_WEIGHT_BYTES
    listed = {line.split()[1] for line in (FOLDER / CHECKSUMS).read_text().splitlines()}
    assert listed == {file.name for file in FOLDER.iterdir()} - {CHECKSUMS, "README.md"}


def test_it_is_found_within_a_second_where_the_package_is_installed(installed: Path) -> None:
    started = time.monotonic()
    result = demo_model(installed)
    assert time.monotonic() - started < 1
    assert (result.returncode, result.stderr) == (0, "")
    folder = installed / "text_gen_server" / "demo_model"
    assert json.loads(result.stdout) == {"model_dir": str(folder), "model_id": "text-gen-demo", "revision": None}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_one_changed_bit_is_one_line_with_the_name_of_its_file(installed: Path, name: str) -> None:
    file = installed / "text_gen_server" / "demo_model" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    result = demo_model(installed)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    message = json.loads(line)["fields"]["message"]
    assert message.endswith(f"is damaged ({name}): install text-gen again")


@pytest.mark.parametrize("name", ["model.safetensors", CHECKSUMS, "."])
def test_what_is_missing_is_one_line_that_says_what_to_do(installed: Path, name: str) -> None:
    folder = installed / "text_gen_server" / "demo_model"
    folder.chmod(0o755)
    folder.parent.chmod(0o755)
    if name == ".":
        shutil.rmtree(folder)
    else:
        (folder / name).unlink()
    result = demo_model(installed)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert "install text-gen again" in json.loads(line)["fields"]["message"]


@pytest.mark.parametrize("content", ["", "no checksum\n", "\n", "one two three\n"])
def test_checksums_that_say_nothing_are_no_checksums(tmp_path: Path, content: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "model")
    (tmp_path / "model" / CHECKSUMS).write_text(content)
    with pytest.raises(ValueError, match="install text-gen again"):
        check_demo_model(tmp_path / "model")
