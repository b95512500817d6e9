"""Builds the shared library of the CPU kernels into the package of the shard, where it is looked for."""

import json
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "server/text_gen_server/native/libtext_gen_kernels.so"


def build_kernels() -> None:
    """RuntimeError where cargo fails; it says why on its own."""
    command = ["cargo", "build", "--locked", "--release", "--package", "text-gen-kernels"]
    command += ["--message-format", "json-render-diagnostics"]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError("the CPU kernels do not build")
    messages = [json.loads(line) for line in result.stdout.splitlines()]
    (library,) = (
        file
        for message in messages
        if message["reason"] == "compiler-artifact" and "cdylib" in message["target"]["kind"]
        for file in message["filenames"]
        if file.endswith((".so", ".dylib"))
    )
    # Under another name first: a running server has the old one mapped.
    unfinished = TARGET.with_suffix(".new")
    shutil.copyfile(library, unfinished)
    unfinished.replace(TARGET)


if __name__ == "__main__":
    build_kernels()
