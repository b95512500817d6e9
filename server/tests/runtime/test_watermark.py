"""The watermark: who is green, what it does to logits, and that the detector of `docs/` finds it in what a model says."""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from text_gen_server.plan import SamplingParameters
from text_gen_server.sampling import processors
from text_gen_server.sampling.processors import SamplingRow, process
from text_gen_server.sampling.sampler import sample
from text_gen_server.sampling.watermark import green
from tokenizers import Tokenizer

from runtime.fakes import fake_runner, generate

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "docs" / "detect_watermark.py"
TOKENIZER = ROOT / "router" / "tests" / "data" / "compat"
MARKED = SamplingParameters(do_sample=True, temperature=3.0, watermark_gamma=0.5, watermark_delta=8.0)


@pytest.fixture(scope="module")
def detector() -> ModuleType:
    spec = importlib.util.spec_from_file_location("detect_watermark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(parameters: SamplingParameters, *tokens: int) -> SamplingRow:
    return SamplingRow(parameters, np.array(tokens, dtype=np.int64), 1)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_the_detector_and_the_shard_agree_on_every_pair(detector: ModuleType, gamma: float) -> None:
    previous = [0, 1, 17, 151_935]
    ours = green(torch.tensor(previous), torch.full((4,), gamma, dtype=torch.float64), 3000)
    theirs = [[detector.is_green(token, token_id, gamma) for token_id in range(3000)] for token in previous]
    assert ours.tolist() == theirs


def test_a_share_of_gamma_is_green_whatever_comes_before() -> None:
    gammas = torch.tensor([0.25, 0.25, 0.75], dtype=torch.float64)
    share = green(torch.tensor([3, 4, 3]), gammas, 100_000).double().mean(-1)
    torch.testing.assert_close(share, gammas, atol=0.01, rtol=0)
    both = green(torch.tensor([3, 4]), gammas[:2], 100_000).all(0).double().mean()
    assert abs(both - 0.25**2) < 0.01


def test_a_token_that_is_green_in_a_small_vocabulary_is_green_in_a_padded_one() -> None:
    gamma = torch.tensor([0.5], dtype=torch.float64)
    assert torch.equal(green(torch.tensor([9]), gamma, 100), green(torch.tensor([9]), gamma, 128)[:, :100])


def test_green_logits_are_raised_by_delta_in_the_rows_that_ask_and_by_the_last_token_alone() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    rows = [row(MARKED, 1, 2, 3), row(SamplingParameters(), 3), row(replace(MARKED, watermark_delta=1.5), 9, 3)]
    marks = green(torch.tensor([3]), torch.tensor([0.5], dtype=torch.float64), 50)[0]
    raised = process(logits, rows) - logits
    torch.testing.assert_close(raised[0], marks * 8.0)
    torch.testing.assert_close(raised[2], marks * 1.5)
    assert torch.equal(raised[1], torch.zeros(50))


def test_the_share_of_green_draws_is_that_of_the_raised_distribution() -> None:
    parameters = SamplingParameters(do_sample=True, watermark_gamma=0.25, watermark_delta=2.0)
    rows = [row(replace(parameters, seed=seed), 5) for seed in range(4000)]
    drawn = sample(torch.zeros(4000, 500), rows).token_ids
    marks = green(torch.tensor([5]), torch.tensor([0.25], dtype=torch.float64), 500)[0]
    num_green = int(marks.sum())
    expected = num_green * math.e**2 / (num_green * math.e**2 + 500 - num_green)
    assert abs(marks[drawn].double().mean() - expected) < 0.03


@pytest.mark.parametrize("kind", [MARKED, replace(MARKED, do_sample=False), replace(MARKED, top_p=0.9, top_k=40)])
def test_marked_text_of_a_model_has_a_high_score_and_plain_text_a_low_one(
    detector: ModuleType, babbling_folder: Path, kind: SamplingParameters
) -> None:
    runner = fake_runner(babbling_folder)
    for seed in range(3):
        prompt = [seed, 5, 6]
        plain = replace(kind, seed=seed, watermark_delta=0.0, watermark_gamma=0.0)
        assert detector.detect(generate(runner, prompt, 90, replace(kind, seed=seed)), 0.5)[2] > 6
        assert abs(detector.detect(generate(runner, prompt, 90, plain), 0.5)[2]) < 4


def test_repeated_pairs_are_counted_once(detector: ModuleType) -> None:
    assert detector.detect([1, 2] * 50, 0.5)[0] == 2
    assert detector.detect([7], 0.5) == (0, 0, 0.0)


def run(*arguments: str, text: str = "") -> str:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def test_the_script_reads_token_ids_and_text(detector: ModuleType) -> None:
    text = "def read_file(path): return None if path is None else open(path).read()"
    ids = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    num_pairs, num_green, z = detector.detect(ids, 0.25)
    expected = f"pairs {num_pairs}  green {num_green}  z {z:.2f}\n"
    assert run("--gamma", "0.25", "--tokenizer", str(TOKENIZER), "-", text=text) == expected
    assert run("--gamma", "0.25", "--token-ids", json.dumps(ids)[1:-1]) == expected


def test_rows_in_slices_are_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = SamplingParameters(watermark_gamma=0.3, watermark_delta=2.0)
    rows = [row(marked if n != 2 else SamplingParameters(), n, 7 * n) for n in range(6)]
    logits = torch.randn(6, 50)
    at_once = process(logits, rows)
    monkeypatch.setattr(processors, "WATERMARK_BYTES", 2 * 8 * 50)
    assert torch.equal(process(logits, rows), at_once)
    assert not torch.equal(at_once[5], logits[5])
