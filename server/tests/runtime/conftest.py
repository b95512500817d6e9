"""The babbling model, written once."""

from pathlib import Path

import pytest
import torch
from babbling_model import write_babbling_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def babbling_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_babbling_model(tmp_path_factory.mktemp("models") / "babbling")
