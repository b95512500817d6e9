"""What was found, as Markdown for `docs/gpu.md`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Measurement:
    name: str
    value: str  # with its unit
    against: str = ""  # what it is compared with, with the share reached


def render(environment: dict[str, str], checks: list[Check], measurements: list[Measurement]) -> str:
    lines = [f"- {name}: {value}" for name, value in environment.items()]
    if checks:
        lines += ["", "| check | result | detail |", "| --- | --- | --- |"]
        lines += [f"| {check.name} | {'passed' if check.passed else '**failed**'} | {check.detail} |" for check in checks]
    if measurements:
        lines += ["", "| measured | value | against |", "| --- | --- | --- |"]
        lines += [f"| {entry.name} | {entry.value} | {entry.against} |" for entry in measurements]
    return "\n".join(lines) + "\n"
