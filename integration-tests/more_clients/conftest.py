"""A server with the demo model for clients that cannot be installed beside the others: they ask for older releases of `openai`.

`make test-clients` makes an environment for them and runs this folder, which `make test-integration` leaves out.
"""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[2] / ".venv" / "bin" / "text-gen-launcher"
PORT = 38471
START_DEADLINE_SECS = 120


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where the server answers."""
    address = f"http://127.0.0.1:{PORT}"
    process = subprocess.Popen([LAUNCHER, "--hostname", "127.0.0.1", "--port", str(PORT)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_DEADLINE_SECS
        while not is_ready(address):
            assert process.poll() is None, f"the server ended with {process.returncode}"
            assert time.monotonic() < deadline, "the server is not ready"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health") as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
