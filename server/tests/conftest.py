"""Triton's kernels run in its interpreter in these tests, which need no GPU; and the babbling model, written once."""

import os
from pathlib import Path

import pytest
from babbling_model import write_babbling_model

# Read when Triton is imported, which transformers does as well: so before any test is.
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def babbling_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_babbling_model(tmp_path_factory.mktemp("models") / "babbling")
