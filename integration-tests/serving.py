"""Starts the real launcher on a free port of the loopback, talks to it over HTTP, and ends it. Used by every test here."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

LAUNCHER = Path(sys.executable).parent / "text-gen-launcher"
START_DEADLINE_SECS = 120
STOP_DEADLINE_SECS = 30


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """The environment without variables that are flags of the launcher, and with one thread where threads do not matter."""
    flags = ("MODEL_ID", "PORT", "HOSTNAME", "NUM_SHARD", "DTYPE", "API_KEY", "LOG_LEVEL")
    kept = {name: value for name, value in os.environ.items() if name not in flags}
    return kept | {"HF_HUB_OFFLINE": "1"}


def launch(*flags: str, port: int, **extra_environment: str) -> subprocess.Popen[str]:
    """The launcher as a child process, logs in JSON on its standard output."""
    return subprocess.Popen(
        [LAUNCHER, "--hostname", "127.0.0.1", "--port", str(port), "--json-output", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean_environment() | extra_environment,
    )


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **options)

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def generate(self, prompt: str, **parameters: Any) -> dict[str, Any]:
        """`/generate` with details; the body of the answer."""
        response = self.post("/generate", {"inputs": prompt, "parameters": {"details": True} | parameters})
        assert response.status_code == 200, response.text
        return dict(response.json())

    def token_ids(self, prompt: str, **parameters: Any) -> list[int]:
        """The ids of the generated tokens."""
        return [token["id"] for token in self.generate(prompt, **parameters)["details"]["tokens"]]

    def token_ids_together(self, prompts: list[str], **parameters: Any) -> list[list[int]]:
        """The same for many prompts at once, in their order."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda prompt: self.token_ids(prompt, **parameters), prompts))

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of `/metrics`."""
        for sample, value in re.findall(r"^(\S+?(?:\{.*\})?) (\S+)$", self.get("/metrics").text, re.MULTILINE):
            if sample.split("{")[0] == name and all(f'{key}="{value_}"' in sample for key, value_ in labels.items()):
                return float(value)
        raise AssertionError(f"no metric {name} {labels}")

    def wait_until_idle(self) -> None:
        """Returns when no sequence waits or runs and no KV block is held by one."""
        deadline = time.monotonic() + 30
        state: dict[str, float] = {}
        while time.monotonic() < deadline:
            state = {
                "queue": self.metric("tgi_queue_size"),
                "batch": self.metric("tgi_batch_current_size"),
                "used blocks": self.metric("text_gen_kv_blocks", state="used"),
            }
            if not any(state.values()):
                return
            time.sleep(0.02)
        raise AssertionError(f"still busy: {state}")


def descendants(pid: int) -> list[int]:
    """Process ids of all children of a process, and theirs."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # ended meanwhile
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        if state != "Z":
            parents.setdefault(int(parent), []).append(int(text.split()[0]))
    found: list[int] = []
    frontier = [pid]
    while frontier:
        children = parents.get(frontier.pop(), [])
        found += children
        frontier += children
    return found


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pids: list[int], within_secs: float) -> None:
    """Returns when none of the processes is left."""
    deadline = time.monotonic() + within_secs
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still running after {within_secs} s: {left}"
        time.sleep(0.01)


def wait_ready(server: Server) -> None:
    """Returns when `/health` answers 200; fails with the log when the launcher ends before."""
    deadline = time.monotonic() + START_DEADLINE_SECS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            if server.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"not ready, exit code {server.process.poll()}:\n" + "\n".join(server.log))


@contextmanager
def serve(model: Path | str | None, *flags: str, **environment: str) -> Iterator[Server]:
    """A ready server; afterwards it is stopped, must exit with 0, and must leave no process behind."""
    port = free_port()
    model_flags = () if model is None else ("--model-id", str(model))
    process = launch(*model_flags, *flags, port=port, **environment)
    server = Server(process, port)
    reader = threading.Thread(target=lambda: server.log.extend(process.stdout or ()), daemon=True)
    reader.start()
    try:
        wait_ready(server)
        yield server
        children = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        code = process.wait(STOP_DEADLINE_SECS)
        assert code == 0, f"exit code {code}:\n" + "\n".join(server.log)
        wait_gone(children, within_secs=2)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_DEADLINE_SECS)
        reader.join(5)


def run_to_end(*flags: str, port: int | None = None, **environment: str) -> tuple[int, list[dict[str, Any]], float]:
    """Runs a launcher that is expected to give up: exit code, log records, seconds it took."""
    started = time.monotonic()
    process = launch(*flags, port=port or free_port(), **environment)
    try:
        output, _ = process.communicate(timeout=START_DEADLINE_SECS)
    finally:
        process.kill()
    return (
        process.returncode,
        [parse_log_line(line) for line in output.splitlines() if line.strip()],
        time.monotonic() - started,
    )


def parse_log_line(line: str) -> dict[str, Any]:
    """A log record; a line that is not JSON becomes one without a level."""
    try:
        record = json.loads(line)
    except ValueError:
        return {"level": None, "fields": {"message": line}}
    return dict(record)
