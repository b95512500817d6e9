"""`make gpu-check` runs as far as a CPU can, says what failed, and computes its rooflines right."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpu_check import __main__ as gpu_check
from gpu_check import checks
from gpu_check.end_to_end import HttpOptions, find_launcher
from gpu_check.report import Check, Measurement, render
from gpu_check.rooflines import StepCost, decode_cost, layer_parameters, least_seconds, prefill_cost
from gpu_check.scale import DRY, REAL
from text_gen_server.attention.reference import PreparedReference
from torch import Tensor

CPU = torch.device("cpu")


def test_a_dry_run_checks_and_measures_everything_within_the_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(DRY, decode_batches=(2,), decode_contexts=(18,), prefill_len=20, num_repeats=1)
    monkeypatch.setattr(gpu_check, "DRY", small)
    parts = ",".join(part for part in gpu_check.PARTS if part != "http")
    assert gpu_check.main(["--dry-run", "--only", parts, "--output", str(tmp_path / "report.md")]) == 0
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert report in capsys.readouterr().out
    assert "**failed**" not in report
    for expected in (
        "| paged attention, head size 64, 4 splits | passed |",
        "| attention triton | passed | largest error",
        "| attention torch-varlen | passed | not here: attention 'torch-varlen' needs an NVIDIA GPU",
        "| quantize_rows | passed |",
        "| add_rms_norm_fp8 | passed |",
        "| silu_mul_fp8 | passed |",
        "| fill_decode_rows | passed |",
        "| logits with cpu against float64 | passed |",
        "| logits with cpu and fp8 weights against float64 | passed |",
        "| greedy tokens of graphs and of eager steps | passed |",
        "| steps of the runner with graphs and without | passed |",
        "| steps of the runner one ahead and one at a time | passed |",
        "| copy |",
        "| decode, batch 2, context 18, triton |",
        "| decode, batch 2, context 18, triton, fp8 weights |",
        "| prefill of 20 tokens, triton |",
        "| host, batch 2, context 18, triton |",
        "| sampler, 2 rows, top_p 0.9 |",
        "| answers, transformers |",
        "| answers, ours, triton |",
        "| same first token, same answer | 3, 3 of 3 |",
    ):
        assert expected in report


def test_nothing_is_measured_where_a_check_failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> Iterator[Check]:
        yield Check("logits", False, "they differ")

    monkeypatch.setattr(gpu_check, "run_checks", failing)
    for part in set(gpu_check.PARTS) - {"checks"}:
        monkeypatch.setitem(gpu_check.PARTS, part, lambda _: pytest.fail("measured"))
    assert gpu_check.main(["--dry-run"]) == 1
    captured = capsys.readouterr()
    assert "| logits | **failed** | they differ |" in captured.out
    assert "nothing was measured: logits failed" in captured.err


def only_http(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The report of a dry run of the server alone."""
    assert gpu_check.main(["--dry-run", "--only", "http", *arguments]) == 0
    return capsys.readouterr().out


def test_a_dry_run_measures_the_real_programs_over_http(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert find_launcher(HttpOptions()) is not None, "`make install` comes first, as in `make test-python`"
    report = only_http(capsys, "--work", str(tmp_path), "--launcher-flags", "--dtype float32")
    assert "| http, start 1 to first token |" in report
    for num_streams, num_requests in ((1, 1), (2, 3), (4, 4)):
        name, value, against = next(line for line in report.splitlines() if f"| http, {num_streams} streams," in line).split(
            " | "
        )
        assert name.endswith("--dtype float32")
        assert re.fullmatch(
            r"[\d.e+]+ tokens/s; TTFT p50 [\d.]+ ms, p99 [\d.]+ ms; inter-token p50 [\d.]+ ms, p99 [\d.]+ ms", value
        )
        assert f"{num_requests} prompts of 16 tokens, 4 new ones each" in against
    assert list(tmp_path.iterdir()) == [], "the model is deleted"


def test_without_a_launcher_the_report_says_how_to_get_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = only_http(capsys, "--launcher", str(tmp_path / "missing"))
    assert "| http | not measured | no launcher: `make install` or `cargo build --release`, or --launcher PATH |" in report


def test_a_server_that_does_not_start_is_a_line_of_the_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\necho 'no | device'\nexit 3\n", encoding="utf-8")
    launcher.chmod(0o700)
    assert "| http | failed | exit code 3: no / device |" in only_http(capsys, "--launcher", str(launcher))


def test_what_was_found_is_written_even_if_the_run_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(_: object) -> Iterator[Measurement]:
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu_check.PARTS, "sampler", cut_short)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main(["--dry-run", "--only", "machine,sampler", "--output", str(tmp_path / "report.md")])
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| matrix product |" in report
    assert "passed" not in report, "nobody asked for the checks"


def test_a_part_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--dry-run", "--only", "checks,network"])
    assert "no such part: network" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [lambda output: output + 0.1, lambda output: output * float("nan")])
def test_an_implementation_that_differs_is_found(spoil: object, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = PreparedReference.attend

    def wrong(self: PreparedReference, layer: int, query: Tensor, window: int | None) -> Tensor:
        output: Tensor = spoil(attend(self, layer, query, window))  # type: ignore[operator]
        return output

    monkeypatch.setattr(PreparedReference, "attend", wrong)
    monkeypatch.setattr(checks, "IMPLEMENTATIONS", ("reference",))
    assert [check.passed for check in checks.check_implementations(DRY, CPU)] == [False]


def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "there is no GPU; see --dry-run" in capsys.readouterr().err


def test_the_roofline_of_an_8b_llama_is_that_of_its_published_sizes() -> None:
    embedding = REAL.model.vocab_size * REAL.model.hidden_size
    norms = (2 * REAL.model.num_layers + 1) * REAL.model.hidden_size
    assert REAL.model.num_layers * layer_parameters(REAL.model) + 2 * embedding + norms == 8_030_261_248
    cost = decode_cost(REAL.model, batch=1, context=1024, element_bytes=2)
    assert cost.moved_bytes == 2 * (8_030_261_248 - embedding - norms) + 1024 * 131072
    in_fp8 = decode_cost(REAL.model, batch=1, context=1024, element_bytes=2, layer_weight_bytes=1)
    assert cost.moved_bytes - in_fp8.moved_bytes == REAL.model.num_layers * layer_parameters(REAL.model)
    assert decode_cost(REAL.model, batch=256, context=8192, element_bytes=2).moved_bytes > 256 * 8192 * 131072
    assert prefill_cost(REAL.model, num_tokens=8192, element_bytes=2).flops == pytest.approx(
        2 * 6.98e9 * 8192 + 17.6e12, rel=0.01
    )


def test_a_step_takes_as_long_as_the_slower_of_moving_and_computing() -> None:
    cost = StepCost(moved_bytes=100, flops=1000)
    assert least_seconds(cost, bytes_per_second=10, flops_per_second=1000) == 10
    assert least_seconds(cost, bytes_per_second=1000, flops_per_second=10) == 100


def test_the_report_is_a_table() -> None:
    report = render({"device": "none"}, [Check("a", True, "b")], [Measurement("copy", "4 TB/s", "x")])
    assert report.splitlines()[0] == "- device: none"
    assert "| a | passed | b |" in report
    assert "| copy | 4 TB/s | x |" in report
