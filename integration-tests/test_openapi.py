"""The OpenAPI document describes a real server: no request that schemathesis makes from it, good or bad, fails the server
or gets an answer that is not described. Seeded, so that a failure comes back."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Server, serve

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
ANSWER_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
# Others accept more than they describe: streams tell errors in an event, `/chat_tokenize` reads only the conversation.
REJECTING_ROUTES = ("/generate", "/tokenize", "/detokenize", "/v2/models/{model_name}/versions/{model_version}/infer")


@pytest.fixture(scope="module")
def small_server(llama_folder: Path) -> Iterator[Server]:
    """Answers are short, because most of the generated bodies do not say how long they may be."""
    with serve(llama_folder, "--max-input-tokens", "64", "--max-total-tokens", "80") as running:
        yield running


def schemathesis(server: Server, *options: str) -> str:
    """Runs it over the server's document; fails with its report unless every check holds."""
    settings = ["--seed", "1", "--generation-database", "none", "--request-timeout", "60", "--output-sanitize", "false"]
    command = [SCHEMATHESIS, "run", f"{server.url}/api-doc/openapi.json", "--no-color", *settings, *options]
    # It leaves its records in the current folder.
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def test_every_answer_is_described_and_none_is_a_fault_of_the_server(small_server: Server) -> None:
    operations = sum(len(item) for item in small_server.get("/api-doc/openapi.json").json()["paths"].values())
    report = schemathesis(small_server, "--checks", ANSWER_CHECKS, "--phases", "examples,coverage,fuzzing", "--max-time", "60")
    assert f"Tested: {operations}" in report, report
    small_server.wait_until_idle()
    assert small_server.get("/health").status_code == 200


def test_bodies_that_are_not_described_are_refused(small_server: Server) -> None:
    routes = [part for route in REJECTING_ROUTES for part in ("--include-path", route)]
    schemathesis(small_server, "--checks", "negative_data_rejection", "--phases", "coverage", "--mode", "negative", *routes)
