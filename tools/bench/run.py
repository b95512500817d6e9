"""One comparison: starts the servers, sends every case to each in turn, repeat by repeat, and writes down what came out.

Servers that fit in memory together run at the same time, so that their cases can alternate (A B A B) and a slow minute of the
machine meets them alike. The idle ones take no part in it but their memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.cases import CASES, Sizes, warm_up
from bench.load import Client, PromptMaker
from bench.servers import Command, Server, ServerError, available_memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

START_TIMEOUT_SECS = 600
MIN_FREE_SHARE = 0.2  # of memory, below which no further server is started


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure."""

    commands: Sequence[Command]
    words: Sequence[str]
    cases: Sequence[str]
    sizes: Sizes
    repeats: int
    seed: int
    folder: Path  # for the rows and the logs


@dataclass
class Comparison:
    """A plan that is carried out, and its rows so far."""

    plan: Plan
    rows: list[dict[str, object]] = field(default_factory=list)

    def run(self) -> None:
        waiting = list(self.plan.commands)
        while waiting:
            running: list[Server] = []
            try:
                waiting = self._start(waiting, running)
                self._measure(running)
            finally:
                for server in running:
                    server.stop()

    def write(self, row: dict[str, object]) -> None:
        """Keeps a row, and appends it to the file at once."""
        self.rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        with (self.plan.folder / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    @property
    def errors(self) -> list[dict[str, object]]:
        return [row for row in self.rows if row["kind"] == "error"]

    def _start(self, waiting: list[Command], running: list[Server]) -> list[Command]:
        """Starts as many as there is memory for; returns the others."""
        while waiting:
            free, total = available_memory()
            if running and free < MIN_FREE_SHARE * total:
                break
            command = waiting.pop(0)
            server = self._start_one(command)
            if server is None:
                continue
            free, _ = available_memory()
            if running and free < MIN_FREE_SHARE * total:
                server.stop()
                return [command, *waiting]
            running.append(server)
        return waiting

    def _start_one(self, command: Command) -> Server | None:
        """Starts it once for each repeat, for the time that it takes, and leaves the last one running."""
        log = self.plan.folder / f"{command.name.replace(':', '-')}.log"
        for repeat in range(self.plan.repeats):
            server = Server(command, log)
            try:
                seconds = server.start(START_TIMEOUT_SECS)
                self._write_case(server, "start", repeat, {"seconds": seconds})
            except (ServerError, OSError) as error:
                self._write_error(command.name, "start", error)
                server.stop()
                return None
            if repeat + 1 < self.plan.repeats:
                server.stop()
        self._write_case(server, "memory", 0, {"idle_mib": server.memory_mib(), **_idle_cpu(server)})
        return server

    def _measure(self, servers: Sequence[Server]) -> None:
        for server in servers:
            self._measure_one(server, "warm-up", 0)
        for repeat in range(self.plan.repeats):
            for case in self.plan.cases:
                for server in servers:
                    self._measure_one(server, case, repeat)
        for server in servers:
            self._write_case(server, "memory", 0, {"loaded_mib": server.memory_mib()})

    def _measure_one(self, server: Server, case: str, repeat: int) -> None:
        # The same prompts for all servers, and other ones in each repeat and case.
        seed = hash((self.plan.seed, repeat, list(CASES).index(case) if case in CASES else -1))
        prompts = PromptMaker(self.plan.words, seed)
        measure = CASES.get(case, warm_up)

        async def send() -> dict[str, float]:
            async with Client(server.url, server.command.served_model) as client:
                return await measure(client, prompts, self.plan.sizes)

        started, client_cpu = time.perf_counter(), time.process_time()
        try:
            values = asyncio.run(send())
        except Exception as error:  # whatever a server does, the others are still measured
            self._write_error(server.command.name, case, error)
            return
        share = (time.process_time() - client_cpu) / (time.perf_counter() - started)
        if values:
            self._write_case(server, case, repeat, values | {"client_cpu": share})

    def _write_case(self, server: Server, case: str, repeat: int, values: dict[str, float]) -> None:
        head = {"kind": "case", "server": server.command.name, "case": case, "repeat": repeat}
        rounded = {name: round(float(value), 4) for name, value in values.items()}
        self.write({**head, **rounded, "load_average": os.getloadavg()[0]})

    def _write_error(self, server: str, case: str, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        self.write({"kind": "error", "server": server, "case": case, "error": f"{type(error).__name__}: {error}"[:600]})


def _idle_cpu(server: Server) -> dict[str, float]:
    """The share of one CPU that it takes without any request."""
    before, seconds = server.cpu_secs(), 1.0
    time.sleep(seconds)
    return {"idle_cpu": (server.cpu_secs() - before) / seconds}
