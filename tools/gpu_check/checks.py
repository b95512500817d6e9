"""What must hold before anything is measured: kernels equal their plain forms on this device, attention implementations agree,
logits are those of float64, and graphs give the tokens of eager steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from text_gen_server.attention.choose import choose_attention
from text_gen_server.attention.reference import ReferenceAttention
from text_gen_server.cuda_graphs import Capture, CudaCapture, GraphedModel, GraphLimits
from text_gen_server.decode_rows import DecodeDeltas, DecodeRows, pack_deltas
from text_gen_server.ops.pytorch import PyTorchOps
from text_gen_server.plan import SamplingParameters
from text_gen_server.sampling import fused, sampler
from text_gen_server.sampling.processors import SamplingRow
from text_gen_server.triton_kernels import activation, decode_rows, norm, paged_attention, plain, quantize, rotary
from text_gen_server.triton_kernels.paged_attention import PagedKV, PagedRows, Scores

from gpu_check.report import Check
from gpu_check.stepping import Stepper, tokens_of
from gpu_check.synthetic import EagerCapture, decode_step, make_cache, make_model, served_ops, step_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from text_gen_server.attention.interface import Attention
    from text_gen_server.config import ModelConfig
    from text_gen_server.models.causal_lm import CausalLM
    from text_gen_server.plan import StepPlan, StepResult
    from torch import Tensor

    from gpu_check.scale import Scale

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
LOGIT_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03}  # root mean square, in standard deviations of the logits
FP8_LOGIT_TOLERANCE = 0.25  # rounding alone makes 0.17 in four layers of random weights
IMPLEMENTATIONS = ("reference", "flash-attn", "torch-varlen", "triton")
PROMPT_LEN = 11
KINDS = (
    SamplingParameters(num_top_tokens=2),
    SamplingParameters(do_sample=True, seed=1, top_p=0.9),
    SamplingParameters(do_sample=True, seed=2, temperature=1.5, top_k=20),
    SamplingParameters(repetition_penalty=1.2),
)
ROWS = ((1, 1), (1, 33), (1, 300), (5, 70), (40, 40))  # tokens of the step, tokens in the KV cache


def run_checks(scale: Scale, device: torch.device) -> Iterator[Check]:
    torch.manual_seed(0)
    yield from check_attention_kernel(scale, device)
    yield from check_fused_kernels(scale, device)
    yield check_decode_rows(device)
    yield check_sampler(scale, device)
    yield from check_implementations(scale, device)
    yield from check_logits(scale, device)
    yield check_graphs(scale, device)
    yield from check_runner(scale, device)


def check_attention_kernel(scale: Scale, device: torch.device) -> Iterator[Check]:
    small = device.type == "cpu"
    for head_dim in (64,) if small else (64, 96, 128, 256):
        for num_splits, scores in ((1, Scores(0.1)), (4, Scores(0.1, sliding_window=37, soft_cap=20.0))):
            query, kv, rows = _paged_case(head_dim, 16, scale.dtype, device)
            expected = plain.paged_attention(query, kv, rows, scores)
            output = paged_attention.paged_attention(query, kv, rows, scores, num_splits=num_splits)
            yield _compare(f"paged attention, head size {head_dim}, {num_splits} splits", output, expected)
    query, kv, rows = _paged_case(64, 16, scale.dtype, device)
    kv = PagedKV(kv.key.to(torch.float8_e4m3fn), kv.value.to(torch.float8_e4m3fn), key_scale=0.5, value_scale=2.0)
    expected = plain.paged_attention(query, kv, rows, Scores(0.1))
    yield _compare("paged attention, fp8 KV", paged_attention.paged_attention(query, kv, rows, Scores(0.1)), expected)


def check_fused_kernels(scale: Scale, device: torch.device) -> Iterator[Check]:
    config = scale.model
    hidden, residual = (torch.randn(7, config.hidden_size, device=device).to(scale.dtype) for _ in range(2))
    weight = torch.randn(config.hidden_size, device=device).to(scale.dtype)
    expected = plain.add_rms_norm(hidden, residual.clone(), weight, 1e-5)
    yield _compare("add_rms_norm", norm.add_rms_norm(hidden, residual, weight, 1e-5), expected)
    gate_up = torch.randn(7, 2 * config.intermediate_size, device=device).to(scale.dtype)
    yield _compare("silu_mul", activation.silu_mul(gate_up), plain.silu_mul(gate_up))
    roundings = (
        ("quantize_rows", quantize.quantize_rows(hidden), plain.quantize_rows(hidden)),
        (
            "add_rms_norm_fp8",
            norm.add_rms_norm_fp8(hidden, residual.clone(), weight, 1e-5, None),
            plain.quantize_rows(plain.add_rms_norm(hidden, residual.clone(), weight, 1e-5)),
        ),
        ("silu_mul_fp8", activation.silu_mul_fp8(gate_up, None), plain.quantize_rows(plain.silu_mul(gate_up))),
    )
    yield from (_compare_rounded(*rounding) for rounding in roundings)
    num_heads = config.num_heads + 2 * config.num_kv_heads
    heads = torch.randn(7, num_heads, config.head_dim, device=device).to(scale.dtype)
    cos, sin = (torch.rand(7, 1, config.head_dim, device=device).to(scale.dtype) for _ in range(2))
    places = rotary.TokenPlaces(cos, sin, torch.tensor([3, -1, 9, 30, 17, 0, 1], device=device))
    results = []
    for function in (rotary.rotate_and_write_kv, plain.rotate_and_write_kv):
        shape = (2, 16, config.num_kv_heads, config.head_dim)
        key, value = (torch.zeros(shape, dtype=scale.dtype, device=device) for _ in range(2))
        kv = PagedKV(key, value)
        query = function(heads.clone(), places, kv)
        results.append(torch.cat([tensor.flatten() for tensor in (query, kv.key, kv.value)]))
    yield _compare("rotate_and_write_kv", *results)


def _compare_rounded(name: str, found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Check:
    (values, scales), (expected, expected_scales) = found, wanted
    off = ((values.float() - expected.float()).abs() > expected.float().abs() / 8 + 2**-9).float().mean()
    # Where the two divide differently a number may fall to the other side; the interpreter gets more of them wrong.
    passed = bool(off < 0.03) and torch.allclose(scales, expected_scales, rtol=1e-2)
    return Check(name, passed, f"{float(off):.2g} of the numbers are further off than by one step")


def check_decode_rows(device: torch.device) -> Check:
    """Rows at all places of their blocks, some of which are new, beside empty ones: all that is written must be equal."""
    num_rows, size, block_size, width = (5, 8, 16, 1100) if device.type == "cpu" else (250, 256, 16, 8192)
    positions = [(n * n * 7 + n) % (width * block_size) for n in range(num_rows)]
    num_used = [position // block_size + 1 for position in positions]
    num_known = [max(0, used - n % 3) for n, used in enumerate(num_used)]
    num_new = [used - known for used, known in zip(num_used, num_known, strict=True)]
    first_new = [sum(num_new[:n]) for n in range(num_rows)]
    token_ids = [n if n % 2 else -1 - n for n in range(num_rows)]
    fields = (token_ids, positions, range(num_rows - 1, -1, -1), num_known, first_new)
    deltas = DecodeDeltas(torch.from_numpy(pack_deltas(fields, range(sum(num_new)))).to(device), num_rows)
    tables = torch.randint(2**30, (num_rows, width), dtype=torch.int32, device=device)
    sampled_before = torch.arange(1000, 1000 + num_rows, device=device)
    results = []
    for module in (decode_rows, plain):
        rows, own_tables = DecodeRows.allocate(size, width, device), tables.clone()
        module.fill_decode_rows(deltas, own_tables, sampled_before, rows, block_size=block_size)
        results.append((*rows.vectors(), rows.block_tables, own_tables))
    is_equal = all(torch.equal(*pair) for pair in zip(*results, strict=True))
    return Check("fill_decode_rows", is_equal, f"{num_rows} rows of {size}, tables of {width} blocks")


def check_sampler(scale: Scale, device: torch.device) -> Check:
    kinds = [
        SamplingParameters(num_top_tokens=5),
        SamplingParameters(do_sample=True, temperature=0.8),
        SamplingParameters(do_sample=True, top_k=50, top_p=0.9),
        SamplingParameters(do_sample=True, typical_p=0.9, min_p=0.01, repetition_penalty=1.1),
    ]
    num_seeds = 1 if device.type == "cpu" else 64
    rows = [SamplingRow(replace(kind, seed=seed), np.array([1, 2, 3, 3]), 2) for seed in range(num_seeds) for kind in kinds]
    logits = torch.randn(len(rows), scale.model.vocab_size, device=device) * 3
    ours, expected = fused.sample(logits, rows), sampler.sample(logits, rows)
    num_equal = int((ours.token_ids == expected.token_ids).sum())
    same_top = torch.equal(ours.top_token_ids, expected.top_token_ids)
    # A draw that falls on the boundary between two tokens may go either way.
    passed = num_equal >= len(rows) - len(rows) // 100 and same_top
    return Check("sampler against sampling/", passed, f"{num_equal} of {len(rows)} tokens equal, top tokens equal: {same_top}")


def check_implementations(scale: Scale, device: torch.device) -> Iterator[Check]:
    """Each attention implementation for GPUs that can run here against float64, with NaN in every slot that no row holds."""
    for name in IMPLEMENTATIONS:
        try:
            attention = choose_attention(name, device=device, config=scale.model, dtype=scale.dtype)
        except ValueError as error:
            yield Check(f"attention {name}", True, f"not here: {error}")
            continue
        yield _check_implementation(attention, scale, device)


def _check_implementation(attention: Attention, scale: Scale, device: torch.device) -> Check:
    config = replace(scale.model, num_layers=1, sliding_windows=(None,))
    block_size = attention.default_block_size
    query_lens, kv_lens = ([row[side] for row in ROWS] for side in (0, 1))
    num_blocks = sum(-(-kv_len // block_size) for kv_len in kv_lens) + 1
    cache = make_cache(config, scale.dtype, device, num_blocks, block_size)
    token_ids = torch.zeros(sum(query_lens), dtype=torch.int64, device=device)
    metadata = step_of(token_ids, query_lens, kv_lens, block_size)["attention_metadata"]
    held = torch.zeros(num_blocks * block_size, dtype=torch.bool)
    for row, kv_len in enumerate(kv_lens):
        held[int(metadata.block_tables[row, 0]) * block_size :][:kv_len] = True
    for blocks in (*cache.keys, *cache.values):
        blocks.flatten(0, 1)[~held.to(device)] = float("nan")
    query = torch.randn(len(token_ids), config.num_heads, config.head_dim, device=device).to(scale.dtype)
    rows = PagedRows(metadata.query_start, metadata.kv_lens, metadata.block_tables, max(query_lens))
    expected = plain.paged_attention(query, PagedKV(cache.keys[0], cache.values[0]), rows, Scores(config.head_dim**-0.5))
    output = attention.prepare(metadata, cache).attend(0, query, None)
    return _compare(f"attention {attention.name}", output, expected)


def check_logits(scale: Scale, device: torch.device) -> Iterator[Check]:
    """The model as it is served, in full precision and rounded to fp8, against the same weights in float64 by plain PyTorch."""
    config = scale.checked_model()
    exact = make_model(config, PyTorchOps(torch.float64), device, ReferenceAttention(), drawn_in=scale.dtype)
    for weights, limit in ((None, LOGIT_TOLERANCE[scale.dtype]), ("fp8", FP8_LOGIT_TOLERANCE)):
        attention = choose_attention("auto", device=device, config=config, dtype=scale.dtype)
        name = f"logits with {attention.name}{'' if weights is None else ' and fp8 weights'} against float64"
        try:
            ops = served_ops(scale.dtype, device, weights)
        except ValueError as error:
            yield Check(name, True, f"not here: {error}")
            continue
        model = make_model(config, ops, device, attention)
        token_ids = torch.randint(config.vocab_size, (sum(row[1] for row in ROWS),), device=device)
        found, expected = (
            _logits(candidate, dtype, token_ids, config, attention.default_block_size)
            for candidate, dtype in ((model, scale.dtype), (exact, torch.float64))
        )
        deviation = float((found - expected).square().mean().sqrt() / expected.std())
        yield Check(name, deviation <= limit, f"error {deviation:.2g} of a deviation, at most {limit}")


def _logits(model: CausalLM, dtype: torch.dtype, token_ids: Tensor, config: ModelConfig, block_size: int) -> Tensor:
    """[T, V] float64, of prompts as long as the contexts of ROWS"""
    lens = sorted((kv_len for _, kv_len in ROWS), key=lambda kv_len: kv_len != 1)
    num_blocks = sum(-(-kv_len // block_size) for kv_len in lens)
    cache = make_cache(config, dtype, token_ids.device, num_blocks, block_size)
    logits = model.logits(model.forward(**step_of(token_ids, lens, lens, block_size), kv_cache=cache))
    assert logits is not None, "one rank has logits"
    return logits.double()


def check_graphs(scale: Scale, device: torch.device) -> Check:
    """Greedy tokens of a few rows, replayed from graphs and computed again each time, must be equal bit for bit."""
    config = scale.checked_model()
    attention = choose_attention("auto" if device.type == "cuda" else "triton", device=device, config=config, dtype=scale.dtype)
    model = make_model(config, served_ops(scale.dtype, device), device, attention)
    capture: Capture = CudaCapture() if device.type == "cuda" else EagerCapture
    tokens = [_greedy(model, attention, scale, each, device) for each in (EagerCapture, capture)]
    is_equal = torch.equal(*tokens)
    detail = f"{tokens[0].numel()} tokens of 3 rows with {attention.name}"
    return Check("greedy tokens of graphs and of eager steps", is_equal, detail)


def check_runner(scale: Scale, device: torch.device) -> Iterator[Check]:
    """Tokens of whole steps, greedy and drawn, change neither with graphs nor when steps are launched one ahead."""
    config = scale.checked_model()
    attention = choose_attention("auto" if device.type == "cuda" else "triton", device=device, config=config, dtype=scale.dtype)
    model = make_model(config, served_ops(scale.dtype, device), device, attention)
    longest = PROMPT_LEN + scale.num_repeats + 1
    stepper = Stepper(model, config, scale, device, batch=4, longest=longest, block_size=attention.default_block_size)

    def run(drive: Callable[[list[StepPlan]], list[StepResult]]) -> list[list[int]]:
        return tokens_of(drive([stepper.begin(PROMPT_LEN, KINDS), *(stepper.decode() for _ in range(scale.num_repeats))]))

    eager = run(stepper.one_at_a_time)
    stepper.with_graphs()
    graphed = run(stepper.one_at_a_time)
    ahead = run(stepper.one_ahead)
    is_sound = min(min(step) for step in eager) >= 0
    detail = f"{sum(map(len, eager))} tokens of 4 rows with {attention.name}"
    yield Check("steps of the runner with graphs and without", is_sound and graphed == eager, detail)
    yield Check("steps of the runner one ahead and one at a time", is_sound and ahead == graphed, detail)


def _greedy(model: CausalLM, attention: Attention, scale: Scale, capture: Capture, device: torch.device) -> Tensor:
    """[steps, 3] int64"""
    config, block_size, num_steps = scale.checked_model(), attention.default_block_size, scale.num_repeats
    kv_lens = [5, 20, 9]
    num_blocks = sum(-(-(kv_len + num_steps) // block_size) for kv_len in kv_lens)
    cache = make_cache(config, scale.dtype, device, num_blocks, block_size)
    limits = GraphLimits(sizes=(4,), max_total_tokens=max(kv_lens) + num_steps)
    graphed = GraphedModel(model, kv_cache=cache, limits=limits, capture=capture, device=device)
    token_ids = torch.tensor([1, 2, 3], device=device)
    found = []
    for _ in range(num_steps):
        kv_lens = [kv_len + 1 for kv_len in kv_lens]
        logits = graphed.logits(graphed.forward(**decode_step(token_ids, kv_lens, block_size), kv_cache=cache))
        assert logits is not None, "one rank has logits"
        token_ids = logits.argmax(-1)
        found.append(token_ids)
    return torch.stack(found)


def _paged_case(head_dim: int, block_size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, PagedKV, PagedRows]:
    query_lens, kv_lens = ([row[side] for row in ROWS] for side in (0, 1))
    counts = [-(-kv_len // block_size) for kv_len in kv_lens]
    order = torch.randperm(sum(counts))
    tables = torch.full((len(ROWS), max(counts)), 2**30, dtype=torch.int32)
    key, value = (torch.full((sum(counts), block_size, 2, head_dim), float("nan")) for _ in range(2))
    first = 0
    for row, (count, kv_len) in enumerate(zip(counts, kv_lens, strict=True)):
        tables[row, :count] = order[first : first + count]
        first += count
        for n in range(count):
            used = min(block_size, kv_len - n * block_size)
            for cache in (key, value):
                cache[int(tables[row, n]), :used] = torch.randn(used, 2, head_dim)
    kv = PagedKV(key.to(device, dtype), value.to(device, dtype))
    start = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    rows = PagedRows(
        start.to(device), torch.tensor(kv_lens, dtype=torch.int32, device=device), tables.to(device), max(query_lens)
    )
    query = torch.randn(sum(query_lens), 8, head_dim, device=device).to(dtype)
    return query, kv, rows


def _compare(name: str, output: Tensor, expected: Tensor) -> Check:
    tolerance = TOLERANCE[output.dtype]
    error = (output.double() - expected.double()).abs()
    passed = bool((error <= tolerance + tolerance * expected.double().abs()).all())  # NaN is not
    return Check(name, passed, f"largest error {float(error.max()):.2g}")
