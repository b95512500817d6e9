"""Model folders and servers that several test files share; everything is made here, nothing is downloaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from serving import Server, serve


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny seeded Llama with tokenizer and chat template."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_models.write_servable_model(folder, "llama", max_position_embeddings=2048)
    return folder


@pytest.fixture(scope="session")
def server(llama_folder: Path) -> Iterator[Server]:
    """One server for all tests that do not need flags of their own."""
    with serve(llama_folder, "--max-concurrent-requests", "128", "--max-best-of", "4") as running:
        yield running
