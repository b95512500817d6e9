"""Greedy output equals `transformers` generate, token for token in float32, however the engine computes it."""

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from serving import Server, serve
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 20
WORDS = ["def", "return", "self", "import", "os", "path", "list", "for", "in", "range", "if", "not", "open", "file", "class"]


def prompts() -> list[str]:
    """64 prompts of 1 to 120 words; every fourth begins like another one, so that the prefix cache has something to find."""
    source = random.Random(7)
    made: list[str] = []
    for number in range(64):
        words = " ".join(source.choices(WORDS, k=source.choice([1, 2, 5, 17, 40, 120])))
        made.append(f"{made[source.randrange(len(made))]} {words}" if number % 4 == 3 else words)
    return made


PROMPTS = prompts()


@dataclass(frozen=True)
class Case:
    """One server of the matrix."""

    family: str
    config: str
    flags: tuple[str, ...]
    expects_preemption: bool = False

    def __str__(self) -> str:
        return f"{self.family}-{self.config}{''.join(self.flags)}"


@dataclass
class Reference:
    """What `transformers` generates, and the folder it was loaded from."""

    folder: Path
    token_ids: list[list[int]] = field(default_factory=list)


CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "plain": {},
        "llama3-rope-tied": {
            "tie_word_embeddings": True,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    },
    "mistral": {"plain": {"sliding_window": None}, "window": {"sliding_window": 32}},
    "qwen2": {
        "plain": {},
        "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    },
    "qwen3": {"plain": {}, "wide-head": {"head_dim": 32, "attention_bias": True}},
}
SMALL_CHUNKS = ("--max-batch-prefill-tokens", "16", "--prefix-caching", "true")
LARGE_CHUNKS = ("--max-batch-prefill-tokens", "4096", "--prefix-caching", "false")
SMALL_CACHE = ("--max-total-tokens", "512", "--max-batch-total-tokens", "768", "--max-batch-prefill-tokens", "256")
TWO_SHARDS = ("--num-shard", "2", "--max-batch-prefill-tokens", "64")


def matrix() -> list[Case]:
    """Every family and configuration with small and with large chunks; every family starved of KV blocks and on two shards."""
    cases = []
    for family, configs in CONFIGS.items():
        plain, variant = configs
        cases += [Case(family, plain, SMALL_CHUNKS), Case(family, plain, LARGE_CHUNKS), Case(family, variant, SMALL_CHUNKS)]
        cases += [Case(family, plain, SMALL_CACHE, expects_preemption=True), Case(family, variant, TWO_SHARDS)]
    return cases


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Model folder and expected tokens of a configuration, made at first use."""

    @cache
    def reference(family: str, config: str) -> Reference:
        folder = tmp_path_factory.mktemp(f"{family}-{config}")
        tiny_models.write_servable_model(folder, family, **CONFIGS[family][config])
        return Reference(folder, generate_with_transformers(folder))

    return reference


def generate_with_transformers(folder: Path) -> list[list[int]]:
    """Greedy continuations of all prompts, one at a time, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    continuations = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        continuations.append(output[0, inputs.input_ids.shape[1] :].tolist())
    return continuations


def assert_equal(server: Server, expected: list[list[int]], got: list[list[int]]) -> None:
    wrong = [index for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)) if ours != theirs]
    details = [(PROMPTS[index][:40], got[index], expected[index]) for index in wrong[:2]]
    assert not wrong, f"{len(wrong)} of {len(PROMPTS)} prompts differ at {server.url}: {details}"


@pytest.mark.parametrize("case", matrix(), ids=str)
def test_greedy_output_equals_transformers(case: Case, references: Any) -> None:
    reference: Reference = references(case.family, case.config)
    with serve(reference.folder, "--dtype", "float32", "--max-concurrent-requests", "256", *case.flags) as server:
        together = server.token_ids_together(PROMPTS, max_new_tokens=NEW_TOKENS)
        assert_equal(server, reference.token_ids, together)
        alone = [server.token_ids(prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]
        assert_equal(server, reference.token_ids, alone)
        if case.expects_preemption:
            assert server.metric("text_gen_preemptions_total") > 0
        if "--prefix-caching" in case.flags:
            hits = server.metric("text_gen_prefix_cache_hit_tokens_total")
            assert hits > 0 if case.flags[-1] == "true" else hits == 0
        server.wait_until_idle()
