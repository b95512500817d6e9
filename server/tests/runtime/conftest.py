"""The demo model, written once."""

from pathlib import Path

import pytest
import torch
from text_gen_server.demo_model import write_demo_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "demo"
    write_demo_model(folder)
    return folder
