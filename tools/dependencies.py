"""Prints the requirements of `pyproject.toml`, one a line: `dependencies.py [build] [runtime] [dev]`.

So that `make` can install them before, and apart from, the project itself. Needs nothing but Python.
"""

import sys
import tomllib
from pathlib import Path

with (Path(__file__).resolve().parent.parent / "pyproject.toml").open("rb") as file:
    pyproject = tomllib.load(file)
groups = {
    "build": pyproject["build-system"]["requires"],
    "runtime": pyproject["project"]["dependencies"],
    "dev": pyproject["project"]["optional-dependencies"]["dev"],
}
for name in sys.argv[1:]:
    print("\n".join(f'"{requirement}"' for requirement in groups[name]))
