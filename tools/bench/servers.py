"""Starts, watches and ends the servers that are measured. Each has a process group of its own, and none outlives the
measurement.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STOP_DEADLINE_SECS = 20
POLL_SECS = 0.02
LOADING = (429, 502, 503)
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names


class ServerError(Exception):
    """A server that did not start, or not in time."""


@dataclass(frozen=True)
class Command:
    """How a server is started. `{port}` in an argument becomes its port."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    served_model: str = "model"


class Server:
    """A running server."""

    def __init__(self, command: Command, log_path: Path) -> None:
        self.command = command
        self._log_path = log_path
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self, timeout_secs: float) -> float:
        """Returns the seconds from the start of the process to the first token over HTTP."""
        arguments = [argument.replace("{port}", str(self._port)) for argument in self.command.arguments]
        started = time.perf_counter()
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.command.environment},
                start_new_session=True,
            )
        while not self._answers(timeout_secs):
            if self._process.poll() is not None:
                raise ServerError(f"exit code {self._process.returncode}: {self._last_words()}")
            if time.perf_counter() - started > timeout_secs:
                raise ServerError(f"no token within {timeout_secs} s: {self._last_words()}")
            time.sleep(POLL_SECS)
        return time.perf_counter() - started

    def memory_mib(self) -> float:
        """Of all its processes, pages that several of them share counted once."""
        total_kib = 0
        for pid in self._pids():
            with suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total_kib += sum(int(kib) for kib in re.findall(r"^Pss:\s+(\d+)", rollup, re.MULTILINE))
        return total_kib / 1024

    def cpu_secs(self) -> float:
        """CPU time of all its processes since they started."""
        ticks = 0
        for pid in self._pids():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ends it and whatever it started."""
        process = self._process
        if process is None:
            return
        pids = self._pids()
        for ending, patience in ((signal.SIGTERM, STOP_DEADLINE_SECS), (signal.SIGKILL, 5)):
            with suppress(ProcessLookupError):
                process.send_signal(ending)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                break
        for pid in pids:
            if pid != process.pid and _session(pid) == process.pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process = None

    def _answers(self, timeout_secs: float) -> bool:
        body = {"model": self.command.served_model, "prompt": " baba", "max_tokens": 1, "temperature": 0}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with LOCAL.open(request, timeout=timeout_secs) as answer:
                answer.read()
            return True
        except urllib.error.HTTPError as error:
            if error.code in LOADING:
                return False
            raise ServerError(f"status {error.code}: {error.read()[:200]!r}") from error
        except OSError:
            return False

    def _last_words(self) -> str:
        return self._log_path.read_text(errors="replace")[-600:]

    def _pids(self) -> list[int]:
        """The processes of its session."""
        if self._process is None:
            return []
        pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        return [pid for pid in pids if _session(pid) == self._process.pid]


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def available_memory() -> tuple[int, int]:
    """MiB that programs can still take, and MiB there are."""
    text = Path("/proc/meminfo").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return kib["MemAvailable"] // 1024, kib["MemTotal"] // 1024


def _session(pid: int) -> int | None:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
    return None
