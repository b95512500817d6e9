"""Turns the measured rows into tables in Markdown: the medians, their ratios to the first server, and the bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.bars import Bar, Medians

NOT_SHOWN = ("load_average",)
NOT_COMPARED = ("client_cpu", "idle_cpu", "prompt_tokens")
NOT_MEASURED = "-"
VERDICTS = {True: "pass", False: "FAIL", None: NOT_MEASURED}


def tables(medians: Medians, bars: Sequence[Bar], errors: Sequence[dict[str, object]]) -> str:
    """The whole report."""
    parts = [_case_table(medians, case) for case in medians.cases]
    if bars:
        parts.append(_table(["bar", "wanted", "measured", ""], [_bar_row(bar) for bar in bars]))
    if errors:
        parts.append("\n".join(f"- {row['server']}, {row['case']}: {row['error']}" for row in errors))
    return "\n\n".join(parts) + "\n"


def _case_table(medians: Medians, case: str) -> str:
    names = [name for name in medians.names(case) if name not in NOT_SHOWN]
    rows = [[server, *(_cell(medians, server, case, name) for name in names)] for server in medians.servers]
    return _table([case, *names], [row for row in rows if set(row[1:]) != {NOT_MEASURED}])


def _cell(medians: Medians, server: str, case: str, name: str) -> str:
    """A value and, beside another server's, how it compares with the first one's."""
    value = medians.get(server, case, name)
    if value is None:
        return NOT_MEASURED
    text = f"{value:.1f}" if value >= 10 else f"{value:.2f}"
    first = medians.get(medians.servers[0], case, name)
    if server == medians.servers[0] or not first or name in NOT_COMPARED:
        return text
    return f"{text} (x{value / first:.2f})"


def _bar_row(bar: Bar) -> list[str]:
    return [bar.what, bar.wanted, bar.measured, VERDICTS[bar.passed]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
