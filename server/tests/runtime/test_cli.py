"""The command line: mistakes are one clear line and exit code 2, at once; what works prints one line of JSON."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from text_gen_server.hub import check_model_folder, resolve_model


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-m", "text_gen_server.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})


def copied(babbling_folder: Path, tmp_path: Path, *, without: str = "", **config: Any) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(babbling_folder, folder)
    if without:
        (folder / without).unlink()
    content = json.loads((folder / "config.json").read_text()) if without != "config.json" else {}
    if config:
        (folder / "config.json").write_text(json.dumps({**content, **config}))
    return folder


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no config": ({"without": "config.json"}, "config.json"),
    "no tokenizer": ({"without": "tokenizer.json"}, "has no tokenizer.json; write one with transformers"),
    "no weights": ({"without": "model.safetensors"}, r"no \*.safetensors file; only safetensors are accepted"),
    "unknown architecture": ({"model_type": "mamba"}, "mamba.*supported are llama"),
    "tokenizer larger than the embedding": (
        {"vocab_size": 4000},
        "highest token id is 4095, vocab_size in config.json is 4000",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_folder_that_cannot_be_served_is_named_in_one_line(
    babbling_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = copied(babbling_folder, tmp_path, **change)
    started = time.monotonic()
    result = run("resolve", "--model-id", str(folder), "--json-output")
    assert time.monotonic() - started < 3
    assert result.returncode == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert json.loads(line)["level"] == "ERROR"
    assert re.search(message, json.loads(line)["fields"]["message"])


def test_pickled_weights_are_named_and_refused(babbling_folder: Path, tmp_path: Path) -> None:
    folder = copied(babbling_folder, tmp_path, without="model.safetensors")
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"it has pytorch_model.bin\); only safetensors are accepted"):
        check_model_folder(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": 5}}', '{"model": {"vocab": {"a": "b"}}}'])
def test_a_tokenizer_that_is_none_is_refused(babbling_folder: Path, tmp_path: Path, content: str) -> None:
    folder = copied(babbling_folder, tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match="is not a tokenizer"):
        check_model_folder(folder)


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown flag": (("serve", "--bogus"), "No such option '--bogus'"),
    "no socket": (("serve", "--model-dir", "."), "Missing option '--socket'"),
    "no such folder": (("serve", "--model-dir", "/nowhere", "--socket", "s"), "Directory '/nowhere' does not exist"),
    "rank beyond the world": (
        ("serve", "--model-dir", ".", "--socket", "s", "--rank", "2", "--world-size", "2"),
        "--rank 2 must be below --world-size 2",
    ),
    "bad choice": (("serve", "--model-dir", ".", "--socket", "s", "--dtype", "int3"), "'int3' is not one of"),
    "sizes that are none": (
        ("serve", "--model-dir", ".", "--socket", "s", "--cuda-graphs", "1,x"),
        "'1,x': give batch sizes with commas between them",
    ),
    "unknown command": (("sevre",), "No such command 'sevre'"),
    "no such model folder": (("resolve", "--model-id", "./nowhere"), "there is no model folder ./nowhere"),
    "impossible name": (("resolve", "--model-id", "a/b/c"), "a/b/c"),
    "folder without config": (("serve", "--model-dir", "/usr", "--socket", "s"), "config.json"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2_within_3_seconds(arguments: tuple[str, ...], message: str) -> None:
    started = time.monotonic()
    result = run(*arguments)
    assert time.monotonic() - started < 3
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ERROR text_gen_server: ", line)
    assert message in line


def test_an_attention_that_is_unknown_is_a_mistake_too(babbling_folder: Path, tmp_path: Path) -> None:
    result = run("serve", "--model-dir", str(babbling_folder), "--socket", str(tmp_path / "s"), "--attention", "bogus")
    assert result.returncode == 2
    assert "bogus" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_socket_of_a_running_process_is_not_taken_over(babbling_folder: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        result = run("serve", "--model-dir", str(babbling_folder), "--socket", str(tmp_path / "s"))
    assert result.returncode == 2
    assert "another process listens on" in result.stderr


def test_a_local_folder_is_resolved_to_one_line_of_json_within_a_second(babbling_folder: Path) -> None:
    started = time.monotonic()
    result = run("resolve", "--model-id", str(babbling_folder))
    assert time.monotonic() - started < 1
    [line] = result.stdout.splitlines()
    assert json.loads(line) == {"model_dir": str(babbling_folder), "model_id": str(babbling_folder), "revision": None}
    assert result.stderr == ""


def test_nothing_heavy_is_imported_to_check_a_folder(babbling_folder: Path) -> None:
    code = (
        "import sys; from text_gen_server import cli, demo, hub; from pathlib import Path;"
        f"hub.check_model_folder(Path({str(babbling_folder)!r}));"
        "print(sorted({'torch', 'transformers', 'grpc', 'huggingface_hub', 'tokenizers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_shard_that_is_ready_on_a_cpu_has_not_imported_what_it_does_not_need(babbling_folder: Path, dtype: str) -> None:
    """PyTorch's compiler alone would be half of the start."""
    code = (
        "import sys; import text_gen_server.service; from pathlib import Path;"
        "from text_gen_server.config import load_model_config;"
        "from text_gen_server.shard import PrepareParameters, Shard, ShardOptions;"
        f"folder = Path({str(babbling_folder)!r});"
        f"shard = Shard(ShardOptions(model_dir=folder, device='cpu', dtype={dtype!r}), load_model_config(folder));"
        "shard.prepare(PrepareParameters(max_batch_prefill_tokens=40, max_batch_size=8, max_batch_total_tokens=2048));"
        "heavy = {'transformers', 'huggingface_hub', 'tokenizers', 'torchvision', 'pandas', 'torch._dynamo', 'sympy'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def hub_cache(tmp_path: Path, babbling_folder: Path) -> tuple[Path, str]:
    """A cache as huggingface_hub leaves it, with the babbling model in it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "hub" / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(babbling_folder, folder / "snapshots" / commit)
    return tmp_path / "hub", commit


def test_a_model_in_the_cache_is_found_offline_with_its_commit(babbling_folder: Path, tmp_path: Path) -> None:
    cache, commit = hub_cache(tmp_path, babbling_folder)
    result = run("resolve", "--model-id", "some/model", "--cache-dir", str(cache), HF_HUB_OFFLINE="1")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["model_id"], answer["revision"]) == ("some/model", commit)
    assert Path(answer["model_dir"]) == cache / "models--some--model" / "snapshots" / commit


def test_a_model_that_is_not_in_the_cache_offline_is_one_line(tmp_path: Path) -> None:
    result = run("resolve", "--model-id", "some/other", "--cache-dir", str(tmp_path), HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "some/other is not in the local cache as a whole, and HF_HUB_OFFLINE is set" in line


def test_a_hub_that_fails_for_a_while_is_asked_again(
    babbling_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from text_gen_server import hub

    snapshot, waits = tmp_path / "snapshots" / "c0ffee", []
    shutil.copytree(babbling_folder, snapshot)
    answers = iter([ConnectionError("reset"), TimeoutError("slow"), snapshot])

    def answer(*_: Any) -> Path:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(hub, "_snapshot", answer)
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    assert resolve_model("some/model").revision == "c0ffee"
    assert waits == [1.0, 2.0]


def test_a_hub_that_stays_down_is_given_up_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from text_gen_server import hub

    waits: list[float] = []

    def fail(*_: Any) -> Path:
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(hub, "_snapshot", fail)
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    with pytest.raises(
        ValueError, match=r"some/model is not a local folder, and cannot be downloaded: no route to host; check"
    ):
        resolve_model("some/model")
    assert waits == [1.0, 2.0, 4.0]


def test_a_full_disk_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from text_gen_server import hub

    def fail(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "_snapshot", fail)
    monkeypatch.setattr(hub.time, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(ValueError, match="No space left on device"):
        resolve_model("some/model")
