"""Measures text-gen beside llama.cpp and vLLM on one machine in one run: `make bench`, or `cd tools && python -m bench
--help`.

Makes the model itself, starts every server that is installed, sends all of them the same prompts, and leaves rows (JSON
lines), tables (Markdown) and a plot (SVG) in a folder. The exit status is 1 when a measurement failed, not when a bar was
missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bars import Medians, judge
from bench.cases import CASES, FULL, QUICK
from bench.limits import measure_machine
from bench.model import SHAPES, words, write_model
from bench.peers import CACHE_TOKENS, Peers, own_command
from bench.plot import draw
from bench.report import tables
from bench.run import Comparison, Plan

if TYPE_CHECKING:
    from bench.servers import Command

OUR_SERVERS = ["ours:bfloat16", "ours:int8", "ours:float32"]
PROGRAMS = ("ours", "llama", "vllm")
QUICK_SERVERS = ["ours:float32"]


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    shape = SHAPES[arguments.shape]
    model = write_model(arguments.work / "models" / arguments.shape, shape).resolve()
    folder: Path = arguments.out or Path("bench-results") / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    peers = Peers(arguments.work / "peers")
    names = arguments.servers or (QUICK_SERVERS if arguments.quick else OUR_SERVERS + peers.installed())
    commands, failures = [], []
    for name in names:
        try:
            commands.append(_command(name, model, peers, arguments))
        except (subprocess.CalledProcessError, OSError) as error:
            failures.append({"kind": "error", "server": name, "case": "prepare", "error": str(error)[:300]})
    sizes = QUICK if arguments.quick else FULL
    plan = Plan(
        commands=commands,
        words=words(shape),
        cases=arguments.cases,
        sizes=sizes,
        repeats=arguments.repeats,
        seed=arguments.seed,
        folder=folder,
    )
    comparison = Comparison(plan)
    for failure in failures:
        comparison.write(failure)
    # Of a model that is not a model, no figure means anything.
    machine = None if arguments.quick else measure_machine()
    if machine is not None:
        comparison.write(machine.as_row() | {"model": arguments.shape, "parameters": shape.num_parameters})
    comparison.run()

    medians = Medians(comparison.rows)
    bars = [] if machine is None else judge(medians, shape, machine, sizes.prompt_len, sizes.output_len)
    report = tables(medians, bars, comparison.errors)
    (folder / "report.md").write_text(report)
    (folder / "plot.svg").write_text(draw(medians))
    print(f"\n{report}\n{folder} holds results.jsonl, report.md, plot.svg and the logs of the servers")
    return 1 if comparison.errors else 0


def _command(name: str, model: Path, peers: Peers, arguments: argparse.Namespace) -> Command:
    if name.startswith("ours:"):
        return own_command(name, model, arguments.launcher, arguments.launcher_args.split())
    return peers.command(name, model, arguments.threads)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = _listed
    parser.add_argument("--quick", action="store_true", help="the tiny model, few requests, ours alone: shows that all works")
    parser.add_argument("--shape", choices=SHAPES, help="the model (default: 135m)")
    parser.add_argument("--servers", type=listed, help="such as ours:bfloat16,ours:int8,llama:f16 (default: all installed)")
    parser.add_argument("--cases", type=listed, default=list(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--repeats", type=int, help="of every case; medians are reported (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the peers")
    parser.add_argument("--launcher", default=str(Path(sys.executable).parent / "text-gen-launcher"), help="ours")
    cache = f"--max-batch-total-tokens {CACHE_TOKENS}"
    parser.add_argument("--launcher-args", default=cache, help="more flags for ours, in one string (default: %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path(".bench"), help="folder of the models and the peers (default: .bench)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: bench-results/TIME)")
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if unknown := {name for name in arguments.servers or () if name.partition(":")[0] not in PROGRAMS}:
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    arguments.shape = arguments.shape or ("tiny" if arguments.quick else "135m")
    arguments.repeats = arguments.repeats or (1 if arguments.quick else 3)
    return arguments


def _listed(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


if __name__ == "__main__":
    sys.exit(main())
