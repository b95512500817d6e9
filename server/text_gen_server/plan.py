"""What the router and a shard tell each other, as plain data: `StepPlan` down, `StepResult` up.

`proto/shard.proto` is the same contract on the wire. Everything here that needs no memory of earlier plans is checked here;
what depends on the sequences a shard holds is checked in `batch.py`. Must never import protobuf or torch.
"""

import enum
import math
from dataclasses import dataclass

LARGEST_BIAS = 1e6  # beyond it a bias could push float32 logits to infinity


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How the next token is chosen. The defaults are greedy, with nothing penalised and no extras."""

    do_sample: bool = False  # False: the most likely token; temperature and the filters are then unused
    temperature: float = 1.0  # > 0
    top_k: int = 0  # 0 = off; above the vocabulary = off
    top_p: float = 1.0  # 1 = off
    typical_p: float = 1.0  # 1 = off
    min_p: float = 0.0  # 0 = off
    seed: int = 0  # unsigned, 64 bits; the draw is a function of (seed, position)
    repetition_penalty: float = 1.0  # 1 = off; over prompt and generated tokens
    frequency_penalty: float = 0.0  # 0 = off; over generated tokens
    presence_penalty: float = 0.0  # 0 = off; over generated tokens
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    min_new_tokens: int = 0  # until then end_token_ids cannot be sampled
    end_token_ids: tuple[int, ...] = ()
    num_top_tokens: int = 0  # alternatives returned with each token
    prompt_logprobs: bool = False  # return the log-probability of every prompt token
    watermark_gamma: float = 0.0  # share of the vocabulary that is green, in (0, 1) where there is a watermark
    watermark_delta: float = 0.0  # added to the logits of green tokens; 0 = no watermark


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSequence:
    """A sequence in full, which the shard does not know yet or knows no longer."""

    sequence_id: int
    token_ids: tuple[int, ...]  # the prompt, and what was generated before a preemption
    prompt_len: int  # leading token_ids that are prompt
    num_computed_tokens: int = 0  # leading tokens whose K/V is in the blocks of its first row (prefix cache)
    sampling: SamplingParameters = SamplingParameters()


@dataclass(slots=True, kw_only=True)
class Row:
    """One sequence's part of a step. Not frozen, nor is what else there is for each token: it would take thrice as long."""

    sequence_id: int
    num_scheduled_tokens: int
    new_block_ids: tuple[int, ...] = ()
    masked: bool = False  # the token sampled in this step is chosen under a mask


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One schedule, one forward on all ranks."""

    step_id: int
    forget: tuple[int, ...] = ()  # dropped before anything else
    new_sequences: tuple[NewSequence, ...] = ()
    rows: tuple[Row, ...] = ()  # in batch order, new sequences included
    # Of masked rows: (sequence id, one bit for each token it may sample; empty: any). Others follow while the step computes.
    masks: tuple[tuple[int, bytes], ...] = ()


@dataclass(slots=True)
class SampledToken:
    token_id: int
    logprob: float  # log_softmax of the raw logits
    top_tokens: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


class RowError(enum.Enum):
    """Why one row could not be sampled while the others were."""

    NUMERICAL = 1  # the logits held NaN or infinity


@dataclass(slots=True)
class RowResult:
    """A row that sampled a token, failed, or computed prompt log-probabilities."""

    sequence_id: int
    outcome: SampledToken | RowError | None
    prompt_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    step_id: int
    rows: tuple[RowResult, ...] = ()  # in row order; empty on every rank but 0


@dataclass(frozen=True, kw_only=True)
class PlanLimits:
    """What a plan may ask of a prepared shard."""

    vocab_size: int
    num_blocks: int
    block_size: int  # in tokens
    max_total_tokens: int  # longest sequence
    max_batch_size: int  # most rows of one step
    max_step_tokens: int  # most tokens of one step, prefill and decode together


def check_plan(plan: StepPlan, limits: PlanLimits) -> None:
    """ValueError for the first number of `plan` that is out of range by itself. Ids of sequences are left to the mirrors."""
    if len(plan.rows) > limits.max_batch_size:
        raise ValueError(f"step {plan.step_id} has {len(plan.rows)} rows, the limit is {limits.max_batch_size}")
    num_tokens = sum(row.num_scheduled_tokens for row in plan.rows)
    if num_tokens > limits.max_step_tokens:
        raise ValueError(f"step {plan.step_id} schedules {num_tokens} tokens, the limit is {limits.max_step_tokens}")
    for sequence in plan.new_sequences:
        _check_new_sequence(sequence, limits)
    for row in plan.rows:
        if row.num_scheduled_tokens < 1:
            raise ValueError(f"sequence {row.sequence_id}: num_scheduled_tokens is {row.num_scheduled_tokens}, the least is 1")
        for block_id in row.new_block_ids:
            if not 0 <= block_id < limits.num_blocks:
                raise ValueError(f"sequence {row.sequence_id}: block id {block_id} is not below {limits.num_blocks}")


def _check_new_sequence(sequence: NewSequence, limits: PlanLimits) -> None:
    name = f"sequence {sequence.sequence_id}"
    num_tokens = len(sequence.token_ids)
    if not 1 <= num_tokens <= limits.max_total_tokens:
        raise ValueError(f"{name} has {num_tokens} tokens, it needs 1 to {limits.max_total_tokens}")
    if not 1 <= sequence.prompt_len <= num_tokens:
        raise ValueError(f"{name}: prompt_len is {sequence.prompt_len}, it needs 1 to {num_tokens}")
    if not 0 <= sequence.num_computed_tokens < num_tokens:
        raise ValueError(f"{name}: num_computed_tokens is {sequence.num_computed_tokens}, it must be below {num_tokens}")
    _check_token_ids(name, sequence.token_ids, limits.vocab_size)
    _check_sampling(name, sequence.sampling, limits.vocab_size)


def _check_token_ids(name: str, token_ids: tuple[int, ...], vocab_size: int) -> None:
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise ValueError(f"{name}: token id {wrong} is not below the vocabulary's {vocab_size}")


def _check_sampling(name: str, sampling: SamplingParameters, vocab_size: int) -> None:
    ranges = (
        ("temperature", sampling.temperature, sampling.temperature > 0, "above 0"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "at least 0"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "in (0, 1]"),
        ("typical_p", sampling.typical_p, 0 < sampling.typical_p <= 1, "in (0, 1]"),
        ("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "in [0, 1]"),
        ("seed", sampling.seed, 0 <= sampling.seed < 2**64, "of 64 bits"),
        ("repetition_penalty", sampling.repetition_penalty, sampling.repetition_penalty > 0, "above 0"),
        ("frequency_penalty", sampling.frequency_penalty, abs(sampling.frequency_penalty) <= LARGEST_BIAS, "within 1e6"),
        ("presence_penalty", sampling.presence_penalty, abs(sampling.presence_penalty) <= LARGEST_BIAS, "within 1e6"),
        ("min_new_tokens", sampling.min_new_tokens, sampling.min_new_tokens >= 0, "at least 0"),
        ("num_top_tokens", sampling.num_top_tokens, 0 <= sampling.num_top_tokens <= vocab_size, f"at most {vocab_size}"),
    )
    for field, value, is_in_range, wanted in (*ranges, *_watermark_ranges(sampling)):
        if not (is_in_range and math.isfinite(value)):
            raise ValueError(f"{name}: {field} is {value}, it must be finite and {wanted}")
    for token_id, bias in sampling.logit_bias:
        if not abs(bias) <= LARGEST_BIAS:
            raise ValueError(f"{name}: logit_bias of token {token_id} is {bias}, it must be finite and within 1e6")
    named = (*sampling.end_token_ids, *(token_id for token_id, _ in sampling.logit_bias))
    if named:
        _check_token_ids(name, named, vocab_size)


def _watermark_ranges(sampling: SamplingParameters) -> tuple[tuple[str, float, bool, str], ...]:
    gamma, delta = sampling.watermark_gamma, sampling.watermark_delta
    return (
        ("watermark_gamma", gamma, 0 <= gamma < 1 and (gamma > 0 or delta == 0), "in (0, 1) where watermark_delta is not 0"),
        ("watermark_delta", delta, abs(delta) <= LARGEST_BIAS, "within 1e6"),
    )
