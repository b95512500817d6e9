"""A closed loop whose clients are spread over several processes, for servers that send more than one process should read.

Every process is a `python -m bench.spread` that reads its part of the jobs as JSON and writes its streams. Their times can be
compared, because all processes of a machine share one monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.load import Client, Job, LoadError, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Spread:
    """What all processes have measured."""

    streams: list[Stream]
    client_cpu: float  # of one core, taken by the busiest process; near 1 it is the client that was measured

    @property
    def seconds(self) -> float:
        """From the first request to the last token."""
        return max(stream.event_at[-1] for stream in self.streams) - min(stream.sent_at for stream in self.streams)


async def spread_loop(url: str, model: str, jobs: Sequence[Job], *, num_clients: int, num_processes: int) -> Spread:
    """All answers, `num_clients` at a time. LoadError where one is not as asked."""
    num_processes = min(num_processes, num_clients, len(jobs))
    parts = [
        {
            "url": url,
            "model": model,
            "num_clients": num_clients // num_processes + (n < num_clients % num_processes),
            "jobs": [asdict(job) for job in jobs[n::num_processes]],
        }
        for n in range(num_processes)
    ]
    found = await asyncio.gather(*(_run(part) for part in parts))
    streams = [Stream(**stream) for part in found for stream in part["streams"]]
    return Spread(streams, max(part["client_cpu"] for part in found))


async def _run(part: dict[str, Any]) -> dict[str, Any]:
    """The answer of a process of its own."""
    pipe = asyncio.subprocess.PIPE
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.spread"),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        output, errors = await process.communicate(json.dumps(part).encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise LoadError(errors.decode(errors="replace").strip().rpartition("\n")[2])
    answer: dict[str, Any] = json.loads(output)
    return answer


async def _answer(part: dict[str, Any]) -> dict[str, Any]:
    jobs = [Job(**job) for job in part["jobs"]]
    started, cpu = time.perf_counter(), time.process_time()
    async with Client(part["url"], part["model"]) as client:
        streams = await client.closed_loop(jobs, part["num_clients"])
    share = (time.process_time() - cpu) / (time.perf_counter() - started)
    return {"streams": [asdict(stream) for stream in streams], "client_cpu": share}


def main() -> int:
    try:
        answer = asyncio.run(_answer(json.load(sys.stdin)))
    except Exception as error:  # whatever it is, the one who asked says it
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
