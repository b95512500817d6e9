"""Tiny model folders, written once for all tests that ask for the same one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from text_gen_server.config import ModelConfig, load_model_config
from tiny_models import write_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """model_folder(family, **config) -> a folder that tests must not change"""
    written: dict[str, Path] = {}

    def folder(family: str, **config: Any) -> Path:
        key = json.dumps([family, config], sort_keys=True)
        if key not in written:
            written[key] = write_model(tmp_path_factory.mktemp(family), family, **config)
        return written[key]

    return folder


@pytest.fixture
def llama_config(model_folder: Callable[..., Path]) -> ModelConfig:
    return load_model_config(model_folder("llama"))
