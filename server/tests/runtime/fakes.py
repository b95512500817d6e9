"""A model whose logits are an exact function of the tokens found through the KV cache, and a router of a few lines.

Equal histories give bit-equal logits however they were computed, so what differs in a test is the runtime's fault.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from text_gen_server.attention.metadata import AttentionMetadata
from text_gen_server.config import load_model_config
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.plan import (
    NewSequence,
    PlanLimits,
    Row,
    RowError,
    RowResult,
    SampledToken,
    SamplingParameters,
    StepPlan,
)
from text_gen_server.runner import Runner
from text_gen_server.sampling.rng import uniform
from text_gen_server.sampling.sampler import sample
from text_gen_server.step_inputs import HostInputs, StepInputs
from text_gen_server.transfers import HostTransfers, Transfers
from torch import Tensor

CPU = torch.device("cpu")
VOCABULARY = 97
POISON = 96  # a sequence that holds this token has logits that are not finite


class FakeModel:
    """Hidden state = hash of all tokens up to the position, read back through the block table."""

    def wanted(self):
        return iter(())

    def forward(
        self,
        *,
        token_ids: Tensor,
        positions: Tensor,
        slot_mapping: Tensor,
        attention_metadata: AttentionMetadata,
        kv_cache: KVCache,
    ) -> Tensor:
        keys, values = kv_cache.slots(0)
        keys[slot_mapping], values[slot_mapping] = token_ids.view(-1, 1, 1).float(), positions.view(-1, 1, 1).float()
        hashes = []
        for n, kv_len in enumerate(attention_metadata.kv_lens_host):
            num_blocks = -(-kv_len // kv_cache.block_size)
            blocks = attention_metadata.block_tables[n, :num_blocks].long()
            tokens = kv_cache.keys[0][blocks].flatten()[:kv_len].long()
            assert kv_cache.values[0][blocks].flatten()[:kv_len].tolist() == list(range(kv_len))
            query_len = attention_metadata.query_lens_host[n]
            hashes += [hash_of(tokens[: end + 1].tolist()) for end in range(kv_len - query_len, kv_len)]
        assert attention_metadata.query_start.tolist()[-1] == len(token_ids)
        return torch.tensor(hashes).unsqueeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        seeds = hidden.expand(-1, VOCABULARY)
        logits = uniform(seeds, torch.arange(VOCABULARY).expand_as(seeds)).float() * 8
        logits[:, POISON] = -100  # never sampled
        return logits.masked_fill(hidden < 0, float("nan"))


def hash_of(tokens: list[int]) -> int:
    if POISON in tokens:
        return -1
    value = 1
    for token in tokens:
        value = (value * 1_000_003 + token + 1) % (2**61 - 1)
    return value


def fake_runner(
    babbling_folder: Path,
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    tensor_parallel: TensorParallel | None = None,
    transfers: Transfers | None = None,
    make_inputs: Callable[[PlanLimits, Transfers], StepInputs] = HostInputs,
) -> Runner:
    config = replace(load_model_config(babbling_folder), num_layers=1, num_kv_heads=1, head_dim=1, vocab_size=VOCABULARY)
    tensor_parallel = tensor_parallel or TensorParallel.single()
    kv_cache = KVCache.allocate(
        config=config,
        tensor_parallel=TensorParallel.single(),
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=torch.float32,
        device=CPU,
    )
    limits = PlanLimits(
        vocab_size=VOCABULARY,
        num_blocks=num_blocks,
        block_size=block_size,
        max_total_tokens=100,
        max_batch_size=16,
        max_step_tokens=200,
    )
    transfers = transfers or HostTransfers()
    return Runner(
        FakeModel(),
        kv_cache=kv_cache,
        tensor_parallel=tensor_parallel,
        limits=limits,
        transfers=transfers,
        inputs=make_inputs(limits, transfers),
        sample=sample,
    )


@dataclass
class FakeRouter:
    """Makes correct plans: counts steps, hands out blocks, knows what each sequence has computed."""

    runner: Runner
    step_id: int = 0
    free_blocks: list[int] = field(default_factory=list)
    tables: dict[int, list[int]] = field(default_factory=dict)
    computed: dict[int, int] = field(default_factory=dict)
    to_add: list[NewSequence] = field(default_factory=list)
    to_forget: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Backwards and interleaved, so that no table is a run of neighbours.
        num_blocks = self.runner.limits.num_blocks
        self.free_blocks = [*range(0, num_blocks, 2), *range(1, num_blocks, 2)]

    def add(
        self, sequence_id: int, tokens: list[int], *, prompt_len: int = 0, sampling: SamplingParameters | None = None
    ) -> None:
        self.tables[sequence_id] = []
        self.computed[sequence_id] = 0
        self.to_add.append(
            NewSequence(
                sequence_id=sequence_id,
                token_ids=tuple(tokens),
                prompt_len=prompt_len or len(tokens),
                sampling=sampling or SamplingParameters(),
            )
        )

    def forget(self, sequence_id: int) -> None:
        self.free_blocks += self.tables.pop(sequence_id)
        self.to_forget.append(sequence_id)

    def plan(self, **num_tokens_of_s: int) -> StepPlan:
        """plan(s1=5, s2=1): five tokens of sequence 1 and one of sequence 2."""
        rows = []
        for name, count in num_tokens_of_s.items():
            sequence_id = int(name[1:])
            self.computed[sequence_id] += count
            table, new = self.tables[sequence_id], []
            while (len(table) + len(new)) * self.runner.limits.block_size < self.computed[sequence_id]:
                new.append(self.free_blocks.pop())
            table += new
            rows.append(Row(sequence_id=sequence_id, num_scheduled_tokens=count, new_block_ids=tuple(new)))
        self.step_id += 1
        plan = StepPlan(step_id=self.step_id, forget=tuple(self.to_forget), new_sequences=tuple(self.to_add), rows=tuple(rows))
        self.to_add, self.to_forget = [], []
        return plan

    def step(self, **num_tokens_of_s: int) -> dict[int, RowResult]:
        result = self.runner.step(self.plan(**num_tokens_of_s))
        assert result.step_id == self.step_id
        return {row.sequence_id: row for row in result.rows}


def token_of(result: RowResult) -> int:
    assert isinstance(result.outcome, SampledToken), result
    assert not isinstance(result.outcome, RowError)
    return result.outcome.token_id


def generate(runner: Runner, prompt: list[int], count: int, sampling: SamplingParameters | None = None) -> list[int]:
    """`count` tokens of one sequence that is alone."""
    router = FakeRouter(runner)
    router.add(1, prompt, sampling=sampling)
    tokens = [token_of(router.step(s1=len(prompt))[1])]
    while len(tokens) < count:
        tokens.append(token_of(router.step(s1=1)[1]))
    router.forget(1)
    router.step()
    return tokens
