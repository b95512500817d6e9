"""What the measurements must show, and whether they do. A bar whose servers were not measured says so; it never passes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.limits import Machine
    from bench.model import Shape

OURS = "ours"
MAX_START_SECS = 5.0
MAX_STEP_RATIO = 3.0
BYTES_PER_WEIGHT = {"bfloat16": 2.0, "float16": 2.0, "float32": 4.0, "int8": 1.03, "int4": 0.56, "auto": 2.0}


class Medians:
    """The medians over the repeats, by server, case and value."""

    def __init__(self, rows: Iterable[dict[str, object]]) -> None:
        collected: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for row in rows:
            if row.get("kind") != "case":
                continue
            for name, value in row.items():
                if isinstance(value, float):
                    collected[str(row["server"]), str(row["case"]), name].append(value)
        self._medians = {key: statistics.median(values) for key, values in collected.items()}
        self.servers = list(dict.fromkeys(server for server, _, _ in collected))
        self.cases = list(dict.fromkeys(case for _, case, _ in collected))

    def get(self, server: str, case: str, name: str) -> float | None:
        return self._medians.get((server, case, name))

    def names(self, case: str) -> list[str]:
        return list(dict.fromkeys(name for _, of, name in self._medians if of == case))

    def best(self, case: str, name: str, *, ours: bool, highest: bool) -> tuple[str, float] | None:
        """The best of ours, or of the peers."""
        found = [
            (server, value)
            for server in self.servers
            if (server.partition(":")[0] == OURS) == ours and (value := self.get(server, case, name)) is not None
        ]
        if not found:
            return None
        return (max if highest else min)(found, key=lambda pair: pair[1])


@dataclass(frozen=True)
class Bar:
    """One line of the table. `passed` is `None` where it was not measured."""

    what: str
    wanted: str
    measured: str = "not measured"
    passed: bool | None = None


def judge(medians: Medians, shape: Shape, machine: Machine, prompt_len: int, output_len: int) -> list[Bar]:
    """Every bar, in the order of the table."""
    limit_ms = 1e3 * machine.seconds_per_token(2 * shape.num_parameters)
    bars = [
        _at_most(
            f"1 stream, bf16, ms per token ({limit_ms:.1f} at best)",
            medians.get("ours:bfloat16", "streams-1", "tpot_ms"),
            limit_ms / 0.8,
        ),
        _faster(medians, "1 stream, bf16", "ours:bfloat16", "llama:bf16", 1.4),
        _faster(medians, "1 stream, bf16", "ours:bfloat16", "llama:f16", 1.1),
        _faster(medians, "1 stream, int8", "ours:int8", "llama:q8_0", 1.2),
    ]
    for num_streams, factor in ((8, 2.0), (32, 1.6)):
        case = f"streams-{num_streams}"
        ours = medians.best(case, "tokens_per_s", ours=True, highest=True)
        peer = medians.best(case, "tokens_per_s", ours=False, highest=True)
        bars.append(_ratio(f"{num_streams} streams, tokens/s to the best peer's", ours, peer, factor))
        limit = None
        if ours is not None:
            weight_bytes = shape.num_parameters * BYTES_PER_WEIGHT.get(ours[0].partition(":")[2], 2.0)
            limit = ("limit", machine.tokens_per_s(shape, weight_bytes, num_streams, prompt_len, output_len))
        bars.append(_ratio(f"{num_streams} streams, tokens/s to the limit", ours, limit, 0.65))
    ours = medians.best("long-prompt", "ttft_ms", ours=True, highest=False)
    peer = medians.best("long-prompt", "ttft_ms", ours=False, highest=False)
    bars.append(_ratio("long prompt, best peer's TTFT to ours", peer, ours, 1 / 0.85))
    for server in (name for name in medians.servers if name.startswith(OURS)):
        ratio = medians.get(server, "arrivals", "p99_to_quiet")
        bars.append(_at_most(f"{server}: inter-token p99 to the quiet median, prompts arriving", ratio, MAX_STEP_RATIO))
        bars.append(
            _at_least(f"{server}: shared prefix, cold to warm", medians.get(server, "shared-prefix", "cold_to_warm"), 5)
        )
        apart = medians.get(server, "shared-prefix", "apart_to_warm")
        bars.append(_at_least(f"{server}: shared prefix, nothing in common to warm", apart, 5))
        bars.append(_at_most(f"{server}: start to first token, s", medians.get(server, "start", "seconds"), MAX_START_SECS))
    ours = medians.best("shared-prefix", "warm_ttft_ms", ours=True, highest=False)
    peer = medians.best("shared-prefix", "warm_ttft_ms", ours=False, highest=False)
    bars.append(_ratio("shared prefix warm, best peer's TTFT to ours", peer, ours, 1.0))
    return bars


def _at_most(what: str, value: float | None, most: float) -> Bar:
    wanted = f"at most {most:.3g}"
    return Bar(what, wanted) if value is None else Bar(what, wanted, f"{value:.3g}", value <= most)


def _at_least(what: str, value: float | None, least: float) -> Bar:
    wanted = f"at least {least:.3g}"
    return Bar(what, wanted) if value is None else Bar(what, wanted, f"{value:.3g}", value >= least)


def _faster(medians: Medians, what: str, ours: str, peer: str, factor: float) -> Bar:
    """The peer's time per token to ours."""
    own_ms = medians.get(ours, "streams-1", "tpot_ms")
    peer_ms = medians.get(peer, "streams-1", "tpot_ms")
    times = None if own_ms is None or peer_ms is None else peer_ms / own_ms
    return _at_least(f"{what}, times faster than {peer}", times, factor)


def _ratio(what: str, above: tuple[str, float] | None, below: tuple[str, float] | None, least: float) -> Bar:
    if above is None or below is None:
        return _at_least(what, None, least)
    bar = _at_least(what, above[1] / below[1], least)
    return Bar(bar.what, bar.wanted, f"{bar.measured} ({above[0]} / {below[0]})", bar.passed)
