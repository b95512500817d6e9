"""One step of the model, from `StepPlan` to `StepResult`: the heart of a shard, and the only place that waits for the device.

All ranks run the same plans in the same order. Rank 0 alone has logits and samples; it broadcasts the tokens, so that every
rank's mirrors stay equal. A plan is checked as a whole before it changes anything.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from text_gen_server.batch import BatchInputs, Mirror, build_batch, check_sequences
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.masks import StepMasks, check_masks
from text_gen_server.models.causal_lm import CausalLM
from text_gen_server.ops.interface import Ops
from text_gen_server.plan import PlanLimits, RowError, RowResult, SampledToken, StepPlan, StepResult, check_plan
from text_gen_server.sampling.sampler import Samples, sample, token_logprobs

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
        device: torch.device,
        ops: Ops,
    ) -> None:
        self.model = model
        self.kv_cache = kv_cache
        self.tensor_parallel = tensor_parallel
        self.limits = limits
        self.device = device
        self.ops = ops
        self.mirrors: dict[int, Mirror] = {}

    @torch.inference_mode()
    def step(self, plan: StepPlan, late_masks: StepMasks | None = None) -> StepResult:
        """Computes one step. ValueError, with nothing changed, where `plan` breaks the contract.

        Masks that the plan does not bring are taken from `late_masks` once the forward is under way.
        """
        check_plan(plan, self.limits)
        check_masks(dict(plan.masks), self.limits.vocab_size)
        added = check_sequences(plan, self.mirrors, self.limits)
        mirrors = self._update_mirrors(plan, added)
        if not plan.rows:
            return StepResult(plan.step_id)
        batch = build_batch(plan.rows, mirrors, block_size=self.limits.block_size, device=self.device)
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
        outcomes = self._sample(batch, logits, masks, [mirrors[n] for n in batch.samplers])
        for row, mirror in zip(plan.rows, mirrors, strict=True):
            mirror.num_computed_tokens += row.num_scheduled_tokens
        if self.tensor_parallel.rank != 0:
            return StepResult(plan.step_id)
        return StepResult(plan.step_id, tuple(_row_results(plan, outcomes, prompt_logprobs)))

    def forget_all(self) -> None:
        """Drops every mirror: whoever sent the plans is gone."""
        self.mirrors.clear()

    def _update_mirrors(self, plan: StepPlan, added: dict[int, Mirror]) -> list[Mirror]:
        """The mirrors of the plan's rows, after what the plan drops, adds and gives to them."""
        for sequence_id in plan.forget:
            del self.mirrors[sequence_id]
        self.mirrors.update(added)
        mirrors = [self.mirrors[row.sequence_id] for row in plan.rows]
        for row, mirror in zip(plan.rows, mirrors, strict=True):
            mirror.append_blocks(row.new_block_ids)
        return mirrors

    def _masks(self, plan: StepPlan, batch: BatchInputs, late_masks: StepMasks | None) -> dict[int, bytes]:
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

    def _sample(
        self, batch: BatchInputs, logits: Tensor | None, masks: dict[int, bytes], mirrors: list[Mirror]
    ) -> dict[int, SampledToken | RowError]:
        """Samples, and appends the tokens to `mirrors` (those of the rows that sample). Row index -> outcome, on rank 0.

        logits: [N, V] float32 on rank 0, where `masks` says what some of the N may sample
        """
        if not mirrors:
            return {}
        samples = sample(logits, batch.sampling_rows, masks, self.ops.summarize, self.ops.draw) if logits is not None else None
        token_ids = samples.token_ids if samples is not None else torch.empty_like(batch.sample_idx)
        self.tensor_parallel.broadcast_from_rank0(token_ids)
        # Device sync: the next plan may build on these tokens before the router has seen them.
        # A row that failed gets token 0, because the router may have planned its next step already.
        for mirror, token_id in zip(mirrors, token_ids.tolist(), strict=True):
            mirror.append_token(token_id)
        return _outcomes(batch, samples) if samples is not None else {}

    def _prompt_logprobs(self, batch: BatchInputs, hidden: Tensor) -> dict[int, tuple[float, ...]]:
        """Row index -> log-probabilities of its prompt tokens in this step (see `PromptSpan`), on rank 0."""
        found: dict[int, tuple[float, ...]] = {}
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
                # Device sync: the answer leaves the device. Only for requests that ask for it.
                found[span.row_idx] = tuple(torch.cat(parts).tolist())
        return found


def _row_results(
    plan: StepPlan, outcomes: dict[int, SampledToken | RowError], prompt_logprobs: dict[int, tuple[float, ...]]
) -> Iterator[RowResult]:
    for n, row in enumerate(plan.rows):
        logprobs = prompt_logprobs.get(n, ())
        if not all(math.isfinite(logprob) for logprob in logprobs):
            yield RowResult(row.sequence_id, RowError.NUMERICAL)
        elif n in outcomes or logprobs:
            yield RowResult(row.sequence_id, outcomes.get(n), logprobs)


def _outcomes(batch: BatchInputs, samples: Samples) -> dict[int, SampledToken | RowError]:
    # Device sync: the answer leaves the device, after the broadcast waited for it already.
    token_ids, logprobs, is_finite = samples.token_ids.tolist(), samples.logprobs.tolist(), samples.is_finite.tolist()
    top_token_ids, top_logprobs = samples.top_token_ids.tolist(), samples.top_logprobs.tolist()
    outcomes: dict[int, SampledToken | RowError] = {}
    for i, (n, row) in enumerate(zip(batch.samplers, batch.sampling_rows, strict=True)):
        if not is_finite[i]:
            outcomes[n] = RowError.NUMERICAL
            continue
        count = row.parameters.num_top_tokens
        top = zip(top_token_ids[i][:count], top_logprobs[i][:count], strict=True)
        top_tokens = tuple((token_id, logprob) for token_id, logprob in top if logprob > -math.inf)
        outcomes[n] = SampledToken(token_ids[i], logprobs[i], top_tokens)
    return outcomes
