"""A watermark that a real server puts into its text is found by `docs/detect_watermark.py`, and not where there is none."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import Server

DETECTOR = Path(__file__).parents[1] / "docs/detect_watermark.py"
SAMPLED = {"do_sample": True, "temperature": 1.0, "max_new_tokens": 200, "seed": 4}


def detected(*arguments: str) -> float:
    """The z that the script prints."""
    output = subprocess.run([sys.executable, DETECTOR, *arguments], capture_output=True, text=True, check=True).stdout
    found = re.search(r"z (-?[0-9.]+)", output)
    assert found, output
    return float(found[1])


@pytest.mark.parametrize("watermark", [True, False])
def test_the_detector_finds_the_watermark_of_a_served_text_and_no_other(server: Server, watermark: bool) -> None:
    token_ids = server.token_ids("import os", watermark=watermark, **SAMPLED)
    z = detected("--token-ids", ",".join(map(str, token_ids)))
    assert (z > 4) == watermark, z


def test_the_watermark_is_found_in_the_text_alone(server: Server, llama_folder: Path, tmp_path: Path) -> None:
    answer = server.generate("import os", watermark=True, **SAMPLED)
    text = tmp_path / "text.txt"
    text.write_text(answer["generated_text"], encoding="utf-8")
    assert detected("--tokenizer", str(llama_folder), str(text)) > 4
