"""Shows that the router is one step ahead of a real shard: `python -m bench.timeline MODEL_FOLDER`, with `tools` on the path.

Starts a shard and a router without a launcher, lets the router log every step, sends streams, and prints when plans were sent,
when steps began and ended, and how long the shard had nothing to compute in between. With `--arrivals` it prints instead which
steps were late while long prompts came into running streams, and what the scheduler had foreseen.

What the router knows of a step: when it sent the plan, when it had the result, and how long the shard computed. So the time
between two results that was not spent on computing is what the shard stood still, with all of translating and gRPC.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cases import FULL, arrivals, percentile
from bench.load import Client, PromptMaker
from bench.model import SHAPES, words
from bench.servers import LOCAL, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_TIMEOUT_SECS = 120
FILTER = "info,text_gen_router::engine::trace=trace"
NUM_SHOWN_STEPS = 5
NUM_SHOWN_LATE_STEPS = 25


@dataclass(frozen=True)
class Step:
    """One step as the router saw it. Times in milliseconds."""

    decode_rows: int
    prefill_tokens: int
    sent: float
    received: float
    compute: float  # inside the shard
    foreseen: float  # 0: nothing was

    @property
    def began(self) -> float:
        """The earliest it can have begun, by the router's clock."""
        return self.received - self.compute


def idle_times(steps: Sequence[Step]) -> list[float]:
    """Milliseconds between two steps whose plan was there in time."""
    pairs = pairwise(steps)
    return [after.began - before.received for before, after in pairs if after.sent < before.received]


def read_steps(log: Path, skip: int) -> list[Step]:
    """The steps in a router's log, after those that are known already."""
    steps = []
    for line in log.read_text().splitlines():
        with suppress(ValueError):
            fields = json.loads(line).get("fields", {})
            if fields.get("message") == "a step":
                times = [fields[name] / 1e3 for name in ("sent", "received", "compute", "foreseen")]
                steps.append(Step(fields["decode_rows"], fields["prefill_tokens"], *times))
    return steps[skip:]


@contextmanager
def server(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """A shard and a router; their URL and the router's log."""
    socket, log, port = folder / "shard", folder / "router.log", free_port()
    shard = [arguments.server, "serve", "--model-dir", str(arguments.model), "--dtype", arguments.dtype]
    shard += ["--rank", "0", "--world-size", "1", "--socket", str(socket)]
    if arguments.quantize:
        shard += ["--quantize", arguments.quantize]
    router = [arguments.router, "--model-dir", str(arguments.model), "--shard-socket", str(socket)]
    router += ["--hostname", "127.0.0.1", "--port", str(port), "--json-output", "--log-level", FILTER]
    with (folder / "shard.log").open("w") as shard_log, log.open("w") as router_log:
        processes = [subprocess.Popen(shard, stdout=shard_log, stderr=shard_log)]
        try:
            processes.append(subprocess.Popen(router, stdout=router_log, stderr=router_log))
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, processes, folder)
            yield url, log
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(30)


def _wait_for(url: str, processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    started = time.perf_counter()
    while time.perf_counter() - started < START_TIMEOUT_SECS:
        if any(process.poll() is not None for process in processes):
            break
        with suppress(OSError, urllib.error.HTTPError), LOCAL.open(f"{url}/health", timeout=5):
            return
        time.sleep(0.1)
    logs = "".join(path.read_text()[-600:] for path in folder.glob("*.log"))
    raise SystemExit(f"the server does not start:\n{logs}")


def print_overlap(num_streams: int, steps: Sequence[Step]) -> None:
    """A row of the table, for steps that only decode, for most of the streams."""
    full = [step for step in steps if 2 * step.decode_rows > num_streams and step.prefill_tokens == 0]
    pairs = list(pairwise(full))
    leads = [before.received - after.sent for before, after in pairs]
    idle = idle_times(full)
    if not idle_times(full):
        print(f"| {num_streams} | too few |", flush=True)
        return
    share = sum(lead > 0 for lead in leads) / len(leads)
    compute = statistics.median(step.compute for step in full)
    print(
        f"| {num_streams} | {len(full)} | {compute:.2f} | {statistics.median(leads):.2f} | {100 * share:.1f} % "
        f"| {statistics.median(idle):.2f} | {percentile(idle, 99):.2f} | {100 * statistics.mean(idle) / compute:.1f} % |",
        flush=True,
    )


def print_example(steps: Sequence[Step]) -> None:
    """Some steps in a row, in milliseconds from the first result."""
    middle = len(steps) // 2
    zero = steps[middle].received
    for before, after in pairwise(steps[middle : middle + NUM_SHOWN_STEPS]):
        moments = {"plan sent": after.sent, "step before ended": before.received, "began": after.began, "ended": after.received}
        print("  " + " | ".join(f"{what} {moment - zero:8.2f}" for what, moment in moments.items()))


def print_late(steps: Sequence[Step]) -> None:
    """Those that took longest, beside the median step that only decodes."""
    running = [step for step in steps if step.decode_rows >= FULL.num_running - 1]
    usual = statistics.median(step.compute for step in running if step.prefill_tokens == 0)
    mixed = [step for step in running if step.prefill_tokens > 0]
    print(f"{len(running)} steps, the usual one takes {usual:.1f} ms; {len(mixed)} have prefill. The longest of them:")
    print("| step | decode rows | prefill tokens | foreseen, ms | took, ms | to the usual |")
    print("| --- | --- | --- | --- | --- | --- |")
    for step in sorted(running, key=lambda step: -step.compute)[:NUM_SHOWN_LATE_STEPS]:
        ratio = step.compute / usual
        idx = steps.index(step)
        print(
            f"| {idx} | {step.decode_rows} | {step.prefill_tokens} | {step.foreseen:.1f} | {step.compute:.1f} | {ratio:.1f} |"
        )


async def send_streams(url: str, prompts: PromptMaker, num_streams: int, num_tokens: int) -> None:
    async with Client(url, "model") as client:
        await client.closed_loop(prompts.jobs(num_streams, FULL.prompt_len, num_tokens), num_streams)


async def send_arrivals(url: str, prompts: PromptMaker) -> dict[str, float]:
    async with Client(url, "model") as client:
        return await arrivals(client, prompts, FULL)


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the programs are stopped
    vocabulary = words(SHAPES["135m"])
    with tempfile.TemporaryDirectory() as name, server(arguments, Path(name)) as (url, log):
        asyncio.run(send_streams(url, PromptMaker(vocabulary, 1), 2, 20))
        known = len(read_steps(log, 0))
        if arguments.arrivals:
            for seed in range(arguments.repeats):
                print(asyncio.run(send_arrivals(url, PromptMaker(vocabulary, seed))))
                steps = read_steps(log, known)
                known += len(steps)
                print_late(steps)
            return
        print("| streams | steps | step, ms | plan ahead, ms | ahead | shard idle between steps, ms | p99 | of a step |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        examples = {}
        for num_streams in arguments.streams:
            asyncio.run(send_streams(url, PromptMaker(vocabulary, num_streams), num_streams, arguments.tokens))
            steps = examples[num_streams] = read_steps(log, known)
            known += len(steps)
            print_overlap(num_streams, steps)
        for num_streams, steps in examples.items():
            print(f"{num_streams} streams, ms:")
            print_example(steps)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.timeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    programs = Path(sys.executable).parent
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--dtype", default="auto", help="of the weights (default: auto)")
    parser.add_argument("--quantize", help="the weights (default: as they are)")
    parser.add_argument("--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=200, help="that each stream generates (default: 200)")
    parser.add_argument("--arrivals", action="store_true", help="long prompts into running streams: print the late steps")
    parser.add_argument("--repeats", type=int, default=1, help="of the arrivals")
    parser.add_argument("--server", default=str(programs / "text-gen-server"), help="the shard's program")
    parser.add_argument("--router", default=str(programs / "text-gen-router"), help="the router's program")
    return parser.parse_args()


if __name__ == "__main__":
    main()
