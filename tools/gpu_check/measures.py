"""How fast the device is, and how much of that a step reaches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from text_gen_server.attention.choose import choose_attention
from text_gen_server.cuda_graphs import CudaCapture, GraphedModel, GraphLimits
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.plan import SamplingParameters
from text_gen_server.sampling import fused, sampler
from text_gen_server.sampling.processors import SamplingRow

from gpu_check.peer import measure_peer
from gpu_check.report import Measurement
from gpu_check.rooflines import decode_cost, least_seconds, prefill_cost
from gpu_check.stepping import Stepper
from gpu_check.synthetic import EagerCapture, decode_step, free, make_cache, make_model, served_ops, step_of
from gpu_check.timing import device_seconds, wall_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from text_gen_server.attention.interface import Attention
    from text_gen_server.models.causal_lm import CausalLM
    from text_gen_server.ops.interface import Ops

    from gpu_check.scale import Scale

FREE_SHARE = 0.9  # of the free memory, for a KV cache


class Machine:
    """The device and what it was measured to do."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self.scale = scale
        self.device = device
        self.bytes_per_second = self._copy_rate()
        self.flops_per_second = self._matrix_rate()

    def _copy_rate(self) -> float:
        """Bytes read and written per second by one large copy."""
        source = torch.zeros(self.scale.copy_bytes // 2, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = device_seconds(lambda: target.copy_(source), self.device, self.scale.num_repeats)
        return 2 * source.numel() / seconds

    def _matrix_rate(self) -> float:
        """Operations per second of one large matrix product."""
        size = self.scale.matrix_size
        left, right = (torch.randn(size, size, device=self.device).to(self.scale.dtype) for _ in range(2))
        return 2 * size**3 / device_seconds(lambda: left @ right, self.device, self.scale.num_repeats)


def measure_machine(machine: Machine) -> Iterator[Measurement]:
    scale = machine.scale
    yield Measurement("copy", f"{machine.bytes_per_second / 1e12:.3g} TB/s")
    yield Measurement(
        "matrix product", f"{machine.flops_per_second / 1e12:.3g} TFLOP/s", f"{scale.matrix_size} cubed, {scale.dtype}"
    )


def measure_decodes(machine: Machine) -> Iterator[Measurement]:
    """Decode, prefill and the share of the host, with the attention that is served with, and with our kernel beside it."""
    for name in _attention_names(machine.scale, machine.device):
        yield from _measure_served(name, None, machine)


def measure_fp8(machine: Machine) -> Iterator[Measurement]:
    """The same with weights in fp8."""
    try:
        yield from _measure_served(_attention_names(machine.scale, machine.device)[0], "fp8", machine)
    except ValueError as error:
        yield Measurement("fp8 weights", "not here", str(error))


def measure_transformers(machine: Machine) -> Iterator[Measurement]:
    scale, device = machine.scale, machine.device
    attention = choose_attention(_attention_names(scale, device)[0], device=device, config=scale.model, dtype=scale.dtype)
    yield from measure_peer(scale, device, served_ops(scale.dtype, device), attention)


@dataclass(frozen=True)
class Served:
    """A model as it is served."""

    name: str
    model: CausalLM
    attention: Attention
    ops: Ops
    layer_weight_bytes: int


def _measure_served(attention_name: str, quantize: str | None, machine: Machine) -> Iterator[Measurement]:
    """Decode, prefill and the share of the host. ValueError where this cannot be served."""
    scale, device = machine.scale, machine.device
    attention = choose_attention(attention_name, device=device, config=scale.model, dtype=scale.dtype)
    ops = served_ops(scale.dtype, device, quantize)
    model = make_model(scale.model, ops, device, attention)
    free(device)  # what rounding has left
    name = attention_name if quantize is None else f"{attention_name}, {quantize} weights"
    served = Served(name, model, attention, ops, scale.dtype.itemsize if quantize is None else 1)
    for context in scale.decode_contexts:
        for batch in scale.decode_batches:
            yield measure_decode(served, machine, batch, context)
            free(device)
    yield measure_prefill(served, machine)
    free(device)
    yield measure_host(served, machine)
    del model, served
    free(device)


def _attention_names(scale: Scale, device: torch.device) -> tuple[str, ...]:
    """What is served with, and our own kernel beside it."""
    if device.type == "cpu":
        return ("triton",)
    served = choose_attention("auto", device=device, config=scale.model, dtype=scale.dtype).name
    return (served,) if served == "triton" else (served, "triton")


def measure_sampler(machine: Machine) -> Iterator[Measurement]:
    """A whole call of the sampler, with its copies to the device, for as many rows as the largest batch."""
    scale, device = machine.scale, machine.device
    batch = scale.decode_batches[-1]
    logits = torch.randn(batch, scale.model.vocab_size, device=device) * 3
    kinds = {"greedy": SamplingParameters(), "top_p 0.9": SamplingParameters(do_sample=True, top_p=0.9)}
    for kind, parameters in kinds.items():
        rows = [SamplingRow(parameters, np.zeros(100, dtype=np.int64), 50)] * batch
        ours, theirs = (
            wall_seconds(partial(module.sample, logits, rows), device, scale.num_repeats) for module in (fused, sampler)
        )
        yield Measurement(f"sampler, {batch} rows, {kind}", f"{ours * 1e6:.0f} us", f"sampling/ takes {theirs * 1e6:.0f} us")


def measure_decode(served: Served, machine: Machine, batch: int, context: int) -> Measurement:
    """Steps of `batch` rows with `context` tokens each, replayed from a graph, the greedy choice included."""
    scale, device, block_size = machine.scale, machine.device, served.attention.default_block_size
    name = f"decode, batch {batch}, context {context}, {served.name}"
    num_blocks = batch * -(-context // block_size)
    wanted_bytes = num_blocks * block_size * KVCache.bytes_per_token(scale.model, TensorParallel.single(), scale.dtype)
    if device.type == "cuda" and wanted_bytes > FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return Measurement(name, "does not fit", f"the KV cache needs {wanted_bytes / 2**30:.0f} GiB")
    seconds = _decode_seconds(served, machine, batch, context)
    cost = decode_cost(
        scale.model,
        batch=batch,
        context=context,
        element_bytes=scale.dtype.itemsize,
        layer_weight_bytes=served.layer_weight_bytes,
    )
    least = least_seconds(cost, bytes_per_second=machine.bytes_per_second, flops_per_second=machine.flops_per_second)
    value = f"{batch / seconds:.4g} tokens/s, {seconds * 1e3:.3g} ms a step"
    return Measurement(name, value, f"{least / seconds:.0%} of {batch / least:.4g} tokens/s")


def _decode_seconds(served: Served, machine: Machine, batch: int, context: int) -> float:
    scale, device, block_size = machine.scale, machine.device, served.attention.default_block_size
    graphed, cache = _graphed(served.model, machine, batch, context, block_size)
    token_ids = torch.randint(scale.model.vocab_size, (batch,), device=device)
    inputs = decode_step(token_ids, [context] * batch, block_size)

    def compute() -> None:
        logits = graphed.logits(graphed.forward(**inputs, kv_cache=cache))
        assert logits is not None, "one rank has logits"
        token_ids.copy_(logits.argmax(-1))

    return device_seconds(compute, device, scale.num_repeats)


def _graphed(model: CausalLM, machine: Machine, batch: int, context: int, block_size: int) -> tuple[GraphedModel, KVCache]:
    num_blocks = batch * -(-context // block_size)
    cache = make_cache(machine.scale.model, machine.scale.dtype, machine.device, num_blocks, block_size)
    capture = CudaCapture() if machine.device.type == "cuda" else EagerCapture
    limits = GraphLimits(sizes=(batch,), max_total_tokens=context)
    return GraphedModel(model, kv_cache=cache, limits=limits, capture=capture, device=machine.device), cache


def measure_prefill(served: Served, machine: Machine) -> Measurement:
    """One prompt in one step, with the logits of its last token."""
    scale, device, block_size = machine.scale, machine.device, served.attention.default_block_size
    length = scale.prefill_len
    cache = make_cache(scale.model, scale.dtype, device, -(-length // block_size), block_size)
    token_ids = torch.randint(scale.model.vocab_size, (length,), device=device)
    inputs = step_of(token_ids, [length], [length], block_size)
    seconds = device_seconds(
        lambda: served.model.logits(served.model.forward(**inputs, kv_cache=cache)[-1:]), device, max(2, scale.num_repeats // 4)
    )
    rate = prefill_cost(scale.model, num_tokens=length, element_bytes=scale.dtype.itemsize).flops / seconds
    return Measurement(
        f"prefill of {length} tokens, {served.name}",
        f"{rate / 1e12:.3g} TFLOP/s, {seconds * 1e3:.3g} ms",
        f"{rate / machine.flops_per_second:.0%} of the matrix product",
    )


def measure_host(served: Served, machine: Machine) -> Measurement:
    """For how long the device is idle between steps: the time of a step through the runner, less its work on the device."""
    scale, device = machine.scale, machine.device
    batch, context = scale.decode_batches[-1], scale.decode_contexts[0]
    busy = _decode_seconds(served, machine, batch, context)
    free(device)
    longest = context + 4 * (scale.num_repeats + 2)
    block_size = served.attention.default_block_size
    stepper = Stepper(
        served.model, scale.model, scale, device, batch=batch, longest=longest, block_size=block_size
    ).with_graphs()
    stepper.runner.step(stepper.begin(context, (SamplingParameters(),), is_computed=True))
    seconds = []
    for drive in (stepper.one_ahead, stepper.one_at_a_time) * 2:  # what is compiled once is not counted: the second round is
        plans = [stepper.decode() for _ in range(scale.num_repeats)]
        seconds.append(wall_seconds(partial(drive, plans), device, 1) / scale.num_repeats)
    ahead, alone = seconds[2:]
    return Measurement(
        f"host, batch {batch}, context {context}, {served.name}",
        f"{(ahead - busy) * 1e6:.0f} us a step one ahead, {(alone - busy) * 1e6:.0f} us one at a time",
        f"{ahead * 1e3:.3g}, {alone * 1e3:.3g} ms in the runner, {busy * 1e3:.3g} ms on the device; goal: 150 us idle",
    )
