"""The interpreter accepts more than the compiler: every kernel is also compiled to machine code, which needs no GPU, and before
any request needs it.
"""

import os
import subprocess
import sys
from pathlib import Path

from tiny_models import write_model


def test_every_kernel_compiles_for_an_h200() -> None:
    run_compiler("compile_all.py")


def test_no_request_waits_for_the_compiler(tmp_path: Path) -> None:
    write_model(tmp_path, "qwen3", num_hidden_layers=1, vocab_size=300, max_position_embeddings=4096)
    run_compiler("launch_all.py", str(tmp_path))


def run_compiler(program: str, *arguments: str) -> None:
    """In a process that does not interpret kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    script = Path(__file__).with_name(program)
    result = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
