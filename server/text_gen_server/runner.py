"""One step of the model, from `StepPlan` to `StepResult`: the heart of a shard.

A step is launched and then collected, so that the next one can be launched in between: its tokens go from step to step on the
device, and the host waits only to answer, or where a row's choice depends on its history. All ranks run the same plans in the
same order. Rank 0 alone has logits and samples; it broadcasts the tokens, so that every rank's mirrors stay equal. A plan is
checked as a whole before it changes anything.
"""

import torch
from torch import Tensor

from text_gen_server.batch import BatchInputs, Mirror, check_sequences
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.launched import LaunchedStep, Leavings, SampledRows
from text_gen_server.masks import LateMasks, check_masks
from text_gen_server.models.causal_lm import CausalLM
from text_gen_server.plan import PlanLimits, StepPlan, StepResult, check_plan
from text_gen_server.sampling.sampler import Sample, Samples, token_logprobs
from text_gen_server.step_inputs import StepInputs
from text_gen_server.transfers import Transfers

# Log-probabilities of a long prompt are taken in slices whose logits stay below this.
PROMPT_LOGITS_BYTES = 64 * 2**20


class Runner:
    """The model, its KV cache and the mirrors of the sequences that the router wants computed."""

    def __init__(
        self,
        model: CausalLM,
        *,
        kv_cache: KVCache,
        tensor_parallel: TensorParallel,
        limits: PlanLimits,
        transfers: Transfers,
        inputs: StepInputs,
        sample: Sample,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.tensor_parallel = tensor_parallel
        self.limits = limits
        self.transfers = transfers
        self.inputs = inputs
        self.sample = sample
        self.mirrors: dict[int, Mirror] = {}
        self._launched: list[
            LaunchedStep
        ] = []  # not collected yet; the tokens of the last one alone may be unknown to its mirrors

    def step(self, plan: StepPlan, late_masks: LateMasks | None = None) -> StepResult:
        """Computes one step, and waits for it. See `launch`."""
        return self.collect(self.launch(plan, late_masks))

    @torch.inference_mode()
    def launch(self, plan: StepPlan, late_masks: LateMasks | None = None) -> LaunchedStep:
        """Enqueues one step. ValueError, with nothing changed, where `plan` breaks the contract.

        Steps are collected in the order in which they were launched; of those before, one need not be collected yet. Masks that
        the plan does not bring are taken from `late_masks` once the forward is under way.
        """
        check_plan(plan, self.limits)
        check_masks(dict(plan.masks), self.limits.vocab_size)
        added, mirrors = check_sequences(plan, self.mirrors, self.limits)
        self._resolve(self._launched[:-1])
        self._update_mirrors(plan, added, mirrors)
        launched = self._compute(plan, mirrors, late_masks)
        self._launched = [*self._launched[-1:], launched]
        return launched

    def collect(self, launched: LaunchedStep) -> StepResult:
        """Waits for a step, and makes its answer. Rank 0 alone answers with rows."""
        launched.resolve()
        self._launched = [step for step in self._launched if step is not launched]
        return launched.result()

    def forget_all(self) -> None:
        """Drops every mirror: whoever sent the plans is gone. A step that is not collected yet may be, or not."""
        self.inputs.forget(self.mirrors.values())
        self.mirrors.clear()
        self._launched.clear()

    def _compute(self, plan: StepPlan, mirrors: list[Mirror], late_masks: LateMasks | None) -> LaunchedStep:
        if not plan.rows:
            return LaunchedStep(plan, SampledRows(), Leavings(), self.transfers)
        batch = self.inputs.build(plan.rows, mirrors, self._sampled_before())
        hidden = self.model.forward(
            token_ids=batch.token_ids,
            positions=batch.positions,
            slot_mapping=batch.slot_mapping,
            attention_metadata=batch.attention_metadata,
            kv_cache=self.kv_cache,
        )
        prompt_logprobs = self._prompt_logprobs(batch, hidden)
        logits = self.model.logits(hidden[batch.sample_idx]) if batch.samplers else None
        masks = self._masks(plan, batch, late_masks) if logits is not None else {}
        token_ids, samples = self._sample(batch, logits, masks) if batch.samplers else (None, None)
        for row, mirror in zip(plan.rows, mirrors, strict=True):
            mirror.num_computed_tokens += row.num_scheduled_tokens
        # The next plan may build on these tokens before the router, or even this host, has seen them.
        # A row that failed gets token 0, because the router may have planned its next step already.
        positions = [mirror.append_token(-1 - idx) for idx, mirror in enumerate(batch.sampling_rows)]
        sampled = SampledRows(batch.samplers, batch.sampling_rows, positions)
        return LaunchedStep(plan, sampled, Leavings(token_ids, samples, prompt_logprobs), self.transfers)

    def _sampled_before(self) -> Tensor | None:
        """[N] int64, the tokens of the step before, where the mirrors do not know them yet."""
        before = self._launched[-1] if self._launched else None
        return None if before is None or before.is_resolved else before.token_ids

    def _resolve(self, steps: list[LaunchedStep]) -> None:
        for step in steps:
            step.resolve()

    def _update_mirrors(self, plan: StepPlan, added: dict[int, Mirror], mirrors: list[Mirror]) -> None:
        """What the plan drops, adds and gives to the mirrors of its rows."""
        self.inputs.forget([self.mirrors.pop(sequence_id) for sequence_id in plan.forget])
        self.mirrors.update(added)
        for row, mirror in zip(plan.rows, mirrors, strict=True):
            if row.new_block_ids:
                mirror.append_blocks(row.new_block_ids)
                self.kv_cache.expect(row.new_block_ids)

    def _masks(self, plan: StepPlan, batch: BatchInputs, late_masks: LateMasks | None) -> dict[int, bytes]:
        """The masks of this step, by the index of the row among those that sample. Waits for those that are not there yet."""
        masks = dict(plan.masks)
        masked = {plan.rows[n].sequence_id: idx for idx, n in enumerate(batch.samplers) if plan.rows[n].masked}
        missing = masked.keys() - masks.keys()
        if missing:
            assert late_masks is not None, "a plan outside of a stream brings all its masks"
            late = late_masks.take(plan.step_id, missing)
            check_masks(late, self.limits.vocab_size)
            masks.update(late)
        return {idx: masks[sequence_id] for sequence_id, idx in masked.items() if masks[sequence_id]}

    def _sample(self, batch: BatchInputs, logits: Tensor | None, masks: dict[int, bytes]) -> tuple[Tensor, Samples | None]:
        """Tokens of the rows that sample ([N] int64, on every rank), and the rest on rank 0.

        logits: [N, V] float32 on rank 0, where `masks` says what some of the N may sample
        """
        samples = None
        if logits is not None:
            if any(row.reads_history and row.last_token_id < 0 for row in batch.sampling_rows):
                self._resolve(self._launched)
            samples = self.sample(logits, batch.sampling_rows, masks)
        token_ids = samples.token_ids if samples is not None else torch.empty_like(batch.sample_idx)
        self.tensor_parallel.broadcast_from_rank0(token_ids)
        return token_ids, samples

    def _prompt_logprobs(self, batch: BatchInputs, hidden: Tensor) -> tuple[tuple[int, Tensor], ...]:
        """(row index, log-probabilities of its prompt tokens in this step (see `PromptSpan`)), on rank 0."""
        found = []
        rows_at_once = max(1, PROMPT_LOGITS_BYTES // (4 * self.limits.vocab_size))
        for span in batch.prompt_spans:
            parts = []
            for offset in range(0, len(span.targets), rows_at_once):
                targets = span.targets[offset : offset + rows_at_once]
                first = span.first + offset
                logits = self.model.logits(hidden[first : first + len(targets)])
                if logits is not None:
                    parts.append(token_logprobs(logits, targets))
            if parts:
                found.append((span.row_idx, torch.cat(parts)))
        return tuple(found)
