"""Fetching from a hub, which here is a small HTTP server that has the babbling model and a file nobody may have."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    folder: Path
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = urlparse(self.path).path
        self.asked.append(path)
        files = {file.name: file.read_bytes() for file in self.folder.iterdir()} | {"pytorch_model.bin": b"pickle"}
        if path == "/api/models/some/model/revision/main":
            body = json.dumps({"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}).encode()
        elif path == f"/api/models/some/model/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files.items()
            ]
            body = json.dumps(entries).encode()
        elif path.startswith(f"/some/model/resolve/{COMMIT}/"):
            body = files[path.rsplit("/", 1)[1]]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@pytest.fixture
def hub(babbling_folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths it was asked for."""
    asked: list[str] = []
    handler = type("BabblingHub", (Hub,), {"folder": babbling_folder, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def resolve(name: str, cache: Path, address: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "text_gen_server.cli", "resolve", "--model-id", name, "--cache-dir", str(cache)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_what_is_needed_is_fetched_once_and_nothing_pickled(
    hub: tuple[str, list[str]], babbling_folder: Path, tmp_path: Path
) -> None:
    address, asked = hub
    result = resolve("some/model", tmp_path, address)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["model_id"], answer["revision"]) == ("some/model", COMMIT)
    fetched = {file.name for file in Path(answer["model_dir"]).iterdir()}
    assert fetched == {file.name for file in babbling_folder.iterdir()}
    assert not any("pytorch_model.bin" in path for path in asked)
    assert all(" text_gen_server: " in line for line in result.stderr.splitlines()), result.stderr
    asked.clear()
    assert resolve("some/model", tmp_path, address).stdout == result.stdout
    assert not any(path.endswith(".safetensors") for path in asked)


def test_a_name_that_the_hub_does_not_know_is_one_line(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    result = resolve("some/nothing", tmp_path, hub[0])
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "some/nothing is neither a local folder nor a model on the hub" in line
    assert "Traceback" not in result.stderr
