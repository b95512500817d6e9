"""Whole models by the Triton operations, interpreted, give what PyTorch gives, on one rank and on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from models.driver import CPU, Driver, Sequence, load
from text_gen_server.distributed import TensorParallel
from text_gen_server.ops import choose
from text_gen_server.ops.choose import choose_ops
from text_gen_server.ops.interface import Ops, StepPositions
from text_gen_server.ops.pytorch import PyTorchOps
from text_gen_server.ops.triton import TritonOps
from tiny_models import write_model
from torch import Tensor

PROMPT = [(7 * i * i + 3 * i + 11) % 500 for i in range(19)]
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral with a window": ("mistral", {"sliding_window": 6}),
    "qwen2 with biases": ("qwen2", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen3 with head norms": ("qwen3", {"head_dim": 24}),
}
# Of logits with a deviation of 4. Both sides round; the interpreter cuts bfloat16 where a GPU rounds it.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.06, torch.bfloat16: 0.8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: write_model(tmp_path_factory.mktemp("model"), family, vocab_size=500, num_hidden_layers=2, **config)
        for name, (family, config) in FAMILIES.items()
    }


def logits_of(folder: Path, ops: Ops, tensor_parallel: TensorParallel | None = None) -> Tensor | None:
    """Of a prompt in chunks beside another sequence that is being decoded."""
    dtype = ops.activation_dtype
    attention = "reference" if isinstance(ops, PyTorchOps) else "triton"
    model, config = load(folder, attention=attention, dtype=dtype, ops=ops, tensor_parallel=tensor_parallel)
    driver = Driver(model, config, dtype=dtype, tensor_parallel=tensor_parallel)
    prompt, other = Sequence(PROMPT), Sequence(PROMPT[::-1])
    driver.step([(prompt, 11)])
    driver.step([(prompt, 1), (other, 7)])
    driver.step([(other, 1), (prompt, 7)])
    return torch.cat(prompt.logits + other.logits) if prompt.logits else None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_gives_the_logits_of_pytorch(family: str, dtype: torch.dtype, folders: dict[str, Path]) -> None:
    expected = logits_of(folders[family], PyTorchOps(dtype))
    found = logits_of(folders[family], TritonOps(dtype))
    torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype], rtol=0)


def _run_rank(rank: int, folders: dict[str, Path], work: Path) -> None:
    torch.set_num_threads(1)
    parallel = TensorParallel.init(rank=rank, world_size=2, rendezvous=work / "rendezvous", device=CPU)
    results = {family: logits_of(folder, TritonOps(torch.float32), parallel) for family, folder in folders.items()}
    torch.save(results, work / f"rank{rank}.pt")


def test_two_ranks_give_the_logits_of_one(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_run_rank, (folders, tmp_path), nprocs=2)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for family, folder in folders.items():
        torch.testing.assert_close(results[0][family], logits_of(folder, PyTorchOps(torch.float32)), atol=1e-4, rtol=1e-4)
        assert results[1][family] is None, "only rank 0 has logits"


def test_the_norm_leaves_what_it_was_given_before_the_first_layer() -> None:
    hidden = torch.randn(3, 8)
    before = hidden.clone()
    _, residual = TritonOps(torch.float32).norm(torch.ones(8), 1e-5, None)(hidden, None)
    assert torch.equal(residual, before)


def test_what_is_not_kept_is_written_nowhere() -> None:
    """PyTorch writes it to the last slot; the kernel writes nothing."""
    slots = [torch.full((5, 1, 8), 7.0) for _ in range(2)]
    step = StepPositions(torch.ones(2, 1, 8), torch.zeros(2, 1, 8), torch.tensor([-1, 3]))
    TritonOps(torch.float32).rotate_and_write(torch.randn(2, 3, 8), step, slots[0], slots[1], None)
    for written in slots:
        assert (written[[0, 1, 2, 4]] == 7).all()
        assert (written[3] != 7).all()


@pytest.mark.parametrize(("has_triton", "name"), [(True, "triton"), (False, "pytorch")])
def test_a_gpu_gets_triton_where_it_is_installed(has_triton: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose.importlib.util, "find_spec", lambda _: object() if has_triton else None)
    ops = choose_ops(dtype=torch.bfloat16, device=torch.device("cuda", 0), num_threads=1)
    assert (ops.name, ops.activation_dtype) == (name, torch.bfloat16)


def test_a_cpu_keeps_its_own_operations() -> None:
    assert choose_ops(dtype=torch.float32, device=CPU, num_threads=1).name == "pytorch"
