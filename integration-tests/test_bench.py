"""`make bench` in its quick form: every case against a real server, and everything that it leaves behind."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from serving import LAUNCHER, clean_environment

TOOLS = Path(__file__).parent.parent / "tools"
CASES = {"start", "memory", "streams-1", "streams-8", "streams-32", "long-prompt", "arrivals", "shared-prefix"}


def bench(work: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--quick", "--launcher", str(LAUNCHER), "--work", str(work / "work"), "--out", str(work / "out"), *more]
    environment = clean_environment() | {"PYTHONPATH": os.pathsep.join([str(TOOLS), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, env=environment)


def rows(work: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (work / "out" / "results.jsonl").read_text().splitlines()]


def test_the_quick_form_measures_every_case_and_leaves_rows_tables_and_a_plot(tmp_path: Path) -> None:
    done = bench(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = rows(tmp_path)
    assert {row["kind"] for row in measured} == {"case"}
    assert {row["case"] for row in measured} == CASES
    by_case = {row["case"]: row for row in measured if row["case"] != "memory"}
    assert by_case["streams-8"]["prompt_tokens"] == 16
    assert by_case["long-prompt"]["prompt_tokens"] == 200
    assert all(isinstance(value, str) or value >= 0 for row in measured for value in row.values())
    assert "| streams-32 |" in (tmp_path / "out" / "report.md").read_text()
    ElementTree.parse(tmp_path / "out" / "plot.svg")


def test_a_server_that_does_not_start_is_reported_and_the_others_are_measured(tmp_path: Path) -> None:
    done = bench(tmp_path, "--servers", "ours:nonsense,llama:f16,ours:float32", "--cases", "streams-1")
    assert done.returncode == 1, done.stdout + done.stderr
    measured = rows(tmp_path)
    errors = [row for row in measured if row["kind"] == "error"]
    # That peer is not installed, so its model cannot be converted.
    assert [(row["server"], row["case"]) for row in errors] == [("llama:f16", "prepare"), ("ours:nonsense", "start")]
    assert "nonsense" in str(errors[1]["error"])
    assert [row["server"] for row in measured if row.get("case") == "streams-1"] == ["ours:float32"]
