"""Our runner beside the continuous batching of `transformers`: the same random weights and prompts, greedy, in one process.

Neither has a router before it. What is compared is how fast a batch of prompts is answered, and whether with the same tokens.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import torch
from text_gen_server.cuda_graphs import CudaCapture, GraphedModel, GraphLimits
from text_gen_server.distributed import TensorParallel
from text_gen_server.plan import NewSequence, PlanLimits, Row, SampledToken, StepPlan
from text_gen_server.runner import Runner
from text_gen_server.sampling import fused
from text_gen_server.step_inputs import DeviceInputs, choose_fill
from text_gen_server.transfers import choose_transfers

from gpu_check.report import Measurement
from gpu_check.synthetic import EagerCapture, make_cache, make_model
from gpu_check.timing import synchronize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from text_gen_server.attention.interface import Attention
    from text_gen_server.config import ModelConfig
    from text_gen_server.launched import LaunchedStep
    from text_gen_server.models.causal_lm import CausalLM
    from text_gen_server.ops.interface import Ops

    from gpu_check.scale import Scale

Answers = list[list[int]]
PEER_PAGE_SIZE = 256  # its default, which its fastest attention needs


def measure_peer(scale: Scale, device: torch.device, ops: Ops, attention: Attention) -> list[Measurement]:
    """Both answer the prompts twice: what is compiled or captured once is not counted."""
    generator = torch.Generator().manual_seed(2)
    shape = (scale.peer_prompts, scale.peer_prompt_len)
    prompts: Answers = torch.randint(scale.model.vocab_size, shape, generator=generator).tolist()
    theirs = _make_peer(scale.model, scale.dtype, device)
    model = make_model(scale.model, ops, device, attention, also=dict(theirs.named_parameters()))
    runner = _make_runner(model, attention, scale, device)
    num_tokens = len(prompts) * scale.peer_new_tokens
    found: list[Answers] = []
    measurements: list[Measurement] = []
    answers: dict[str, Callable[[], Answers]] = {
        "transformers": lambda: _answer_by_peer(theirs, prompts, scale),
        f"ours, {attention.name}": lambda: _answer_by_runner(runner, prompts, scale.peer_new_tokens),
    }
    for name, answer in answers.items():
        answer()
        synchronize(device)
        begin = time.perf_counter()
        found.append(answer())
        seconds = time.perf_counter() - begin
        if any(len(tokens) != scale.peer_new_tokens for tokens in found[-1]):
            return [*measurements, Measurement(f"answers, {name}", "failed", "not every answer is whole; see the log above")]
        against = f"{len(prompts)} prompts of {scale.peer_prompt_len} tokens, {scale.peer_new_tokens} new ones each"
        measurements.append(Measurement(f"answers, {name}", f"{num_tokens / seconds:.4g} tokens/s", against))
        theirs.destroy_cached_continuous_batching_manager()
        gc.collect()
    first = sum(mine[0] == other[0] for mine, other in zip(*found, strict=True))
    whole = sum(mine == other for mine, other in zip(*found, strict=True))
    detail = "random weights: the first token that rounding turns changes all that follow"
    measurements.append(Measurement("same first token, same answer", f"{first}, {whole} of {len(prompts)}", detail))
    return measurements


def _make_peer(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_model_len,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        tie_word_embeddings=False,
    )
    # Its own thread runs it without inference mode, where tensors that were made in that mode cannot be used.
    with torch.inference_mode(False), torch.device(device):
        model = LlamaForCausalLM._from_config(theirs, dtype=dtype, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    return model.eval()


def _answer_by_peer(model: Any, prompts: Answers, scale: Scale) -> Answers:
    """With room for all prompts at once and steps as large as ours; everything else as it chooses itself."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=scale.peer_new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    blocks_each = -(-(scale.peer_prompt_len + scale.peer_new_tokens) // PEER_PAGE_SIZE) + 1
    batching = ContinuousBatchingConfig(
        page_size=PEER_PAGE_SIZE,
        num_blocks=blocks_each * len(prompts),
        max_batch_tokens=max(scale.prefill_len, scale.peer_prompt_len),
        allow_block_sharing=False,  # or the second time there would be no prefill
    )
    with torch.inference_mode(False):
        outputs = model.generate_batch(
            prompts,
            generation_config=config,
            continuous_batching_config=batching,
            persistent_manager=True,  # or its graphs would be captured again the second time
        )
    by_prompt = {tuple(output.prompt_ids): list(output.generated_tokens) for output in outputs.values()}
    return [by_prompt.get(tuple(prompt), []) for prompt in prompts]


def _make_runner(model: CausalLM, attention: Attention, scale: Scale, device: torch.device) -> Runner:
    """As a shard has it, with one graph, for all sequences at once."""
    block_size, longest = attention.default_block_size, scale.peer_prompt_len + scale.peer_new_tokens
    num_blocks = scale.peer_prompts * -(-longest // block_size)
    cache = make_cache(scale.model, scale.dtype, device, num_blocks, block_size)
    limits = PlanLimits(
        vocab_size=scale.model.vocab_size,
        num_blocks=num_blocks,
        block_size=block_size,
        max_total_tokens=longest,
        max_batch_size=scale.peer_prompts,
        max_step_tokens=max(scale.prefill_len, scale.peer_prompt_len),
    )
    capture = CudaCapture() if device.type == "cuda" else EagerCapture
    graph_limits = GraphLimits(sizes=(scale.peer_prompts,), max_total_tokens=longest)
    graphed = GraphedModel(model, kv_cache=cache, limits=graph_limits, capture=capture, device=device)
    transfers = choose_transfers(device)
    return Runner(
        graphed,
        kv_cache=cache,
        tensor_parallel=TensorParallel.single(),
        limits=limits,
        transfers=transfers,
        inputs=DeviceInputs(limits, transfers, device, graphed=graphed, fill=choose_fill()),
        sample=fused.sample,
    )


def _answer_by_runner(runner: Runner, prompts: Answers, num_tokens: int) -> Answers:
    """Launched one step ahead, as the service does."""
    answers: Answers = [[] for _ in prompts]

    def take(launched: LaunchedStep) -> None:
        for row in runner.collect(launched).rows:
            assert isinstance(row.outcome, SampledToken), "random weights give finite logits"
            answers[row.sequence_id].append(row.outcome.token_id)

    runner.forget_all()
    before = None
    for plan in _plans(runner.limits, prompts, num_tokens):
        launched = runner.launch(plan)
        if before is not None:
            take(before)
        before = launched
    if before is not None:
        take(before)
    return answers


def _plans(limits: PlanLimits, prompts: Answers, num_tokens: int) -> Iterator[StepPlan]:
    """Prompts in steps of as many tokens as fit, then all sequences in each step."""
    count, prompt_len = len(prompts), len(prompts[0])
    blocks = limits.num_blocks // count
    at_once = limits.max_step_tokens // prompt_len
    for first in range(0, count, at_once):
        ids = range(first, min(first + at_once, count))
        new = tuple(NewSequence(sequence_id=n, token_ids=tuple(prompts[n]), prompt_len=prompt_len) for n in ids)
        own = {n: tuple(range(n * blocks, (n + 1) * blocks)) for n in ids}
        rows = tuple(Row(sequence_id=n, num_scheduled_tokens=prompt_len, new_block_ids=own[n]) for n in ids)
        yield StepPlan(step_id=first, new_sequences=new, rows=rows)
    rows = tuple(Row(sequence_id=n, num_scheduled_tokens=1) for n in range(count))
    for n in range(1, num_tokens):
        yield StepPlan(step_id=count + n, rows=rows)
