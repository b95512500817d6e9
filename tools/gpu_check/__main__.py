"""Checks the GPU path on the GPU at hand, then measures it: `make gpu-check`. Needs no model and no network; builds
nothing.

python -m gpu_check                                 on a GPU; --only PART,PART for some of it
TRITON_INTERPRET=1 python -m gpu_check --dry-run    on a CPU: the same roads, tiny shapes, and numbers that mean nothing

What was found is written down part by part, so that a run which is cut short leaves what it had.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import triton

from gpu_check.checks import run_checks
from gpu_check.end_to_end import HttpOptions, measure_http
from gpu_check.measures import (
    Machine,
    measure_decodes,
    measure_fp8,
    measure_machine,
    measure_sampler,
    measure_transformers,
)
from gpu_check.report import Check, Measurement, render
from gpu_check.scale import DRY, REAL
from gpu_check.synthetic import free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gpu_check.scale import Scale


@dataclass
class Session:
    """One run, and what it has found so far."""

    scale: Scale
    device: torch.device
    http: HttpOptions
    output: Path | None
    checks: list[Check] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # by part

    @cached_property
    def machine(self) -> Machine:
        return Machine(self.scale, self.device)

    @property
    def failed(self) -> list[str]:
        return [check.name for check in self.checks if not check.passed]

    def run(self, name: str) -> None:
        """One of `PARTS`."""
        started = time.perf_counter()
        with torch.inference_mode():
            for entry in PARTS[name](self):
                self._add(entry)
        free(self.device)
        self.seconds[name] = time.perf_counter() - started
        if self.output is not None:
            self.output.write_text(self.report(), encoding="utf-8")

    def report(self) -> str:
        took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return render({**environment(self.device), "took": took}, self.checks, self.measurements)

    def _add(self, entry: Check | Measurement) -> None:
        if isinstance(entry, Check):
            print(f"{'passed' if entry.passed else 'FAILED'}  {entry.name}: {entry.detail}", file=sys.stderr, flush=True)
            self.checks.append(entry)
        else:
            print(f"{entry.name}: {entry.value} ({entry.against})", file=sys.stderr, flush=True)
            self.measurements.append(entry)


# In this order. What comes after the server may leave something in this process, which the server would lack.
PARTS: dict[str, Callable[[Session], Iterable[Check | Measurement]]] = {
    "checks": lambda session: run_checks(session.scale, session.device),
    "machine": lambda session: measure_machine(session.machine),
    "http": lambda session: measure_http(session.scale, session.device, session.http),
    "sampler": lambda session: measure_sampler(session.machine),
    "decode": lambda session: measure_decodes(session.machine),
    "fp8": lambda session: measure_fp8(session.machine),
    "transformers": lambda session: measure_transformers(session.machine),
}


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    scale, device = (DRY, torch.device("cpu")) if options.dry_run else (REAL, torch.device("cuda", 0))
    http = HttpOptions(options.launcher, tuple(options.launcher_flags.split()), options.work)
    session = Session(scale, device, http, options.output)
    for name in PARTS:
        if name in options.only and not session.failed:
            session.run(name)
    print(session.report())
    if session.failed:
        print(f"nothing was measured: {', '.join(session.failed)} failed", file=sys.stderr)
    return 1 if session.failed else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Checks the GPU path, then measures it.")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes; needs TRITON_INTERPRET=1")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="write the tables here as well, after each part")
    parser.add_argument("--launcher", type=Path, help="of the server (default: beside the interpreter, or target/release)")
    parser.add_argument("--launcher-flags", default="", help="more flags for it, in one string, such as '--quantize fp8'")
    parser.add_argument("--work", type=Path, help="folder for the server's model, 16 GB (default: that of temporary files)")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.dry_run and not triton.knobs.runtime.interpret:
        parser.error("--dry-run needs TRITON_INTERPRET=1")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU; see --dry-run")
    return options


def environment(device: torch.device) -> dict[str, str]:
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": platform.processor() or platform.machine(),
        "versions": f"torch {torch.__version__}, triton {triton.__version__}, Python {platform.python_version()}",
    }
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
        found["device"] = f"{torch.cuda.get_device_name(device)}, driver {driver}, CUDA {torch.version.cuda}"
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
