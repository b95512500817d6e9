"""The demo model, which comes with the package and is served from where it was installed: that folder is never written to.

Imports neither torch nor anything else that is heavy.
"""

import hashlib
from pathlib import Path

NAME = "text-gen-demo"
FOLDER = Path(__file__).with_name("demo_model")
CHECKSUMS = "SHA256SUMS"  # lines of `sha256sum`


def check_demo_model(folder: Path = FOLDER) -> Path:
    """`folder`, once each of its files was found as it was made. ValueError where one is missing or damaged."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
        wrong = [name for digest, name in map(str.split, lines) if _digest(folder / name) != digest]
    except (OSError, ValueError) as error:
        raise ValueError(f"the demo model cannot be read, install text-gen again: {error}") from error
    if wrong or not lines:
        damaged = ", ".join(wrong) or CHECKSUMS
        raise ValueError(f"the demo model in {folder} is damaged ({damaged}): install text-gen again")
    return folder


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
