"""The whole server over HTTP: launcher, router and shard as they are shipped, with a model that is written for it.

Builds nothing: the launcher is taken from where it is. The load generator is that of `bench`.
"""

from __future__ import annotations

import asyncio
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import text_gen_server
from bench.cases import percentile
from bench.load import LoadError, PromptMaker
from bench.model import SHAPES, words, write_model
from bench.peers import own_command
from bench.servers import Server, ServerError
from bench.spread import Spread, spread_loop

from gpu_check.report import Measurement
from gpu_check.synthetic import free

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from bench.servers import Command

    from gpu_check.scale import HttpLoad, Scale

LAUNCHER = "text-gen-launcher"
START_TIMEOUT_SECS = 300


@dataclass(frozen=True)
class HttpOptions:
    launcher: Path | None = None  # None: wherever it is found
    launcher_flags: tuple[str, ...] = ()  # more of them
    work: Path | None = None  # folder for the model and the log; None: that of temporary files


def measure_http(scale: Scale, device: torch.device, options: HttpOptions) -> Iterator[Measurement]:
    """Start-up, then every load. What goes wrong is a line of the report, and the end of this part."""
    launcher = find_launcher(options)
    if launcher is None:
        yield Measurement("http", "not measured", "no launcher: `make install` or `cargo build --release`, or --launcher PATH")
        return
    load = scale.http
    with tempfile.TemporaryDirectory(prefix="gpu-check-", dir=options.work) as name:
        folder = Path(name)
        model, written = _write_model(folder, load, device)
        yield written
        server = Server(_command(folder, model, launcher, load, options, device), folder / "log")
        try:
            for n in range(load.num_starts):
                server.stop()
                seconds = server.start(START_TIMEOUT_SECS)
                yield Measurement(f"http, start {n + 1} to first token", f"{seconds:.3g} s", "files in page cache; goal: 10 s")
            yield from _loads(server, load, " ".join(options.launcher_flags))
        except (ServerError, LoadError, OSError) as error:
            yield Measurement("http", "failed", " ".join(str(error).replace("|", "/").split()))
        finally:
            server.stop()


def find_launcher(options: HttpOptions) -> Path | None:
    """The one asked for, or else beside the interpreter, or where cargo leaves it."""
    repository = Path(__file__).resolve().parents[2]
    places = (Path(sys.executable).parent / LAUNCHER, repository / "target" / "release" / LAUNCHER)
    candidates = places if options.launcher is None else (options.launcher,)
    return next((path.absolute() for path in candidates if path.is_file()), None)


def _write_model(folder: Path, load: HttpLoad, device: torch.device) -> tuple[Path, Measurement]:
    started = time.perf_counter()
    model = write_model(folder / "model", SHAPES[load.shape], device=device.type)
    free(device)  # the shard sizes its KV cache by what is left
    num_bytes = (model / "model.safetensors").stat().st_size
    seconds = time.perf_counter() - started
    return model, Measurement("http, model written", f"{seconds:.3g} s", f"{num_bytes / 1e9:.3g} GB, shape {load.shape}")


def _command(folder: Path, model: Path, launcher: Path, load: HttpLoad, options: HttpOptions, device: torch.device) -> Command:
    """The shard is the package that is imported here, whatever is installed beside the launcher."""
    package = Path(text_gen_server.__path__[0]).resolve().parent
    shard = folder / "text-gen-server"
    run = f'PYTHONPATH={shlex.quote(str(package))} exec {shlex.quote(sys.executable)} -m text_gen_server.cli "$@"'
    shard.write_text(f"#!/bin/sh\n{run}\n", encoding="utf-8")
    shard.chmod(0o700)
    flags = ["--server-program", str(shard), "--device", device.type]
    flags += [] if "--num-shard" in options.launcher_flags else ["--num-shard", "1"]
    flags += ["--max-total-tokens", str(load.prompt_len + load.output_len)]
    flags += ["--max-concurrent-requests", str(max(load.num_at_once, *load.num_requests) + 1)]
    return own_command("ours:auto", model, str(launcher), [*flags, *options.launcher_flags])


def _loads(server: Server, load: HttpLoad, flags: str) -> Iterator[Measurement]:
    """First some answers that do not count, so that nothing is done for the first time while it is measured."""
    # Another seed each time, so that no prompt is in the prefix cache.
    seed = 0
    num_warm = max(load.num_requests)
    _send(server, load, seed, num_streams=num_warm, num_requests=num_warm, output_len=2)
    everything = [*load.num_requests.items(), (load.num_at_once, load.num_at_once)]
    for num_streams, num_requests in everything:
        seed += 1
        spread = _send(server, load, seed, num_streams=num_streams, num_requests=num_requests, output_len=load.output_len)
        yield Measurement(
            f"http, {num_streams} streams{f', {flags}' if flags else ''}",
            _summary(spread),
            f"{num_requests} prompts of {load.prompt_len} tokens, {load.output_len} new ones each; "
            f"the client took {spread.client_cpu:.0%} of a core",
        )


def _send(server: Server, load: HttpLoad, seed: int, *, num_streams: int, num_requests: int, output_len: int) -> Spread:
    jobs = PromptMaker(words(SHAPES[load.shape]), seed).jobs(num_requests, load.prompt_len, output_len)
    return asyncio.run(
        spread_loop(server.url, server.command.served_model, jobs, num_clients=num_streams, num_processes=load.num_processes)
    )


def _summary(spread: Spread) -> str:
    tokens_per_second = sum(stream.num_tokens for stream in spread.streams) / spread.seconds
    ttft = [1e3 * stream.ttft for stream in spread.streams]
    gaps = [1e3 * gap for stream in spread.streams for gap in stream.gaps()]
    return (
        f"{tokens_per_second:.4g} tokens/s; TTFT p50 {statistics.median(ttft):.3g} ms, p99 {percentile(ttft, 99):.3g} ms; "
        f"inter-token p50 {statistics.median(gaps):.3g} ms, p99 {percentile(gaps, 99):.3g} ms"
    )
