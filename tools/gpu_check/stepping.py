"""Steps through the whole `Runner`, as the service drives it: one at a time, or one ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from text_gen_server.cuda_graphs import CudaCapture, GraphedModel, GraphLimits
from text_gen_server.distributed import TensorParallel
from text_gen_server.plan import NewSequence, PlanLimits, Row, SampledToken, SamplingParameters, StepPlan, StepResult
from text_gen_server.runner import Runner
from text_gen_server.sampling import fused
from text_gen_server.step_inputs import DeviceInputs, choose_fill
from text_gen_server.transfers import choose_transfers

from gpu_check.synthetic import EagerCapture, make_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from text_gen_server.config import ModelConfig
    from text_gen_server.models.causal_lm import CausalLM

    from gpu_check.scale import Scale


class Stepper:
    """Decodes of `batch` sequences, each with its own blocks, in a runner of their own."""

    def __init__(
        self,
        model: CausalLM,
        config: ModelConfig,
        scale: Scale,
        device: torch.device,
        *,
        batch: int,
        longest: int,
        block_size: int,
    ) -> None:
        """longest: tokens of a sequence in the end"""
        self.batch = batch
        self.num_blocks = -(-longest // block_size)
        self.cache = make_cache(config, scale.dtype, device, batch * self.num_blocks, block_size)
        self.limits = PlanLimits(
            vocab_size=config.vocab_size,
            num_blocks=self.cache.num_blocks,
            block_size=block_size,
            max_total_tokens=longest,
            max_batch_size=batch,
            max_step_tokens=batch * longest,
        )
        self.device = device
        self.model = model
        self.runner = self._runner(model, None)
        self.step_id = 0

    def with_graphs(self) -> Stepper:
        """Replays decode steps from now on."""
        graphed = GraphedModel(
            self.model,
            kv_cache=self.cache,
            limits=GraphLimits(sizes=(self.batch,), max_total_tokens=self.limits.max_total_tokens),
            capture=CudaCapture() if self.device.type == "cuda" else EagerCapture,
            device=self.device,
        )
        graphed.capture_all()
        self.runner = self._runner(graphed, graphed)
        return self

    def begin(self, prompt_len: int, kinds: tuple[SamplingParameters, ...], *, is_computed: bool = False) -> StepPlan:
        """The plan that adds all sequences and computes their prompts; of computed ones the last token alone."""
        num_computed = prompt_len - 1 if is_computed else 0
        new = tuple(
            NewSequence(
                sequence_id=n,
                token_ids=tuple((n + 7 * position) % self.limits.vocab_size for position in range(prompt_len)),
                prompt_len=prompt_len,
                num_computed_tokens=num_computed,
                sampling=kinds[n % len(kinds)],
            )
            for n in range(self.batch)
        )
        rows = tuple(
            Row(
                sequence_id=n,
                num_scheduled_tokens=prompt_len - num_computed,
                new_block_ids=tuple(range(n * self.num_blocks, (n + 1) * self.num_blocks)),
            )
            for n in range(self.batch)
        )
        forget = tuple(self.runner.mirrors)
        return StepPlan(step_id=0, forget=forget, new_sequences=new, rows=rows)

    def decode(self) -> StepPlan:
        self.step_id += 1
        return StepPlan(step_id=self.step_id, rows=tuple(Row(sequence_id=n, num_scheduled_tokens=1) for n in range(self.batch)))

    def one_at_a_time(self, plans: list[StepPlan]) -> list[StepResult]:
        return [self.runner.step(plan) for plan in plans]

    def one_ahead(self, plans: list[StepPlan]) -> list[StepResult]:
        return list(self._one_ahead(plans))

    def _one_ahead(self, plans: list[StepPlan]) -> Iterator[StepResult]:
        before = None
        for plan in plans:
            launched = self.runner.launch(plan)
            if before is not None:
                yield self.runner.collect(before)
            before = launched
        if before is not None:
            yield self.runner.collect(before)

    def _runner(self, model: CausalLM, graphed: GraphedModel | None) -> Runner:
        transfers = choose_transfers(self.device)
        return Runner(
            model,
            kv_cache=self.cache,
            tensor_parallel=TensorParallel.single(),
            limits=self.limits,
            transfers=transfers,
            inputs=DeviceInputs(self.limits, transfers, self.device, graphed=graphed, fill=choose_fill()),
            sample=fused.sample,
        )


def tokens_of(results: list[StepResult]) -> list[list[int]]:
    """The tokens of each step; -1 for a row that failed."""
    return [
        [row.outcome.token_id if isinstance(row.outcome, SampledToken) else -1 for row in result.rows] for result in results
    ]
