"""Checks the GPU path on the GPU at hand, then measures it: `make gpu-check`. Needs no model, no network and no built router.

python -m gpu_check                         on a GPU
TRITON_INTERPRET=1 python -m gpu_check --dry-run    on a CPU: the same roads, tiny shapes, and numbers that mean nothing
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
from pathlib import Path

import torch
import triton

from gpu_check.checks import run_checks
from gpu_check.measures import run_measures
from gpu_check.report import Check, Measurement, render
from gpu_check.scale import DRY, REAL


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description="Checks the GPU path, then measures it.")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes; needs TRITON_INTERPRET=1")
    parser.add_argument("--output", type=Path, help="write the tables here as well")
    options = parser.parse_args(arguments)
    if options.dry_run and not triton.knobs.runtime.interpret:
        parser.error("--dry-run needs TRITON_INTERPRET=1")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU; see --dry-run")
    scale, device = (DRY, torch.device("cpu")) if options.dry_run else (REAL, torch.device("cuda", 0))
    checks: list[Check] = []
    with torch.inference_mode():
        for check in run_checks(scale, device):
            print(f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.detail}", file=sys.stderr, flush=True)
            checks.append(check)
    failed = [check.name for check in checks if not check.passed]
    measurements: list[Measurement] = []
    for entry in run_measures(scale, device) if not failed else ():
        print(f"{entry.name}: {entry.value} ({entry.against})", file=sys.stderr, flush=True)
        measurements.append(entry)
    report = render(environment(device), checks, measurements)
    print(report)
    if options.output is not None:
        options.output.write_text(report, encoding="utf-8")
    if failed:
        print(f"nothing was measured: {', '.join(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


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
