"""One rank of a model: loaded once, prepared once, then driven step by step through its runner. Knows no gRPC.

Every rank gets the same calls in the same order; what they decide from their own memory they agree on before they act.
"""

import logging
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from text_gen_server.attention.choose import choose_attention
from text_gen_server.attention.interface import CompiledAttention
from text_gen_server.attention.native import NativeAttention
from text_gen_server.config import ModelConfig, model_fingerprint
from text_gen_server.cuda_graphs import GraphedModel, GraphLimits, choose_capture, graph_sizes
from text_gen_server.distributed import TensorParallel
from text_gen_server.kv_cache import KVCache
from text_gen_server.memory import (
    CapacityRequest,
    KVCacheSize,
    MemoryBudget,
    activation_bound_bytes,
    cpu_budget,
    cuda_budget,
    cuda_used_bytes,
    size_kv_cache,
)
from text_gen_server.models.causal_lm import CausalLM
from text_gen_server.models.loader import load_model
from text_gen_server.ops.choose import choose_cpu_dtype, choose_ops
from text_gen_server.ops.native import NativeOps
from text_gen_server.plan import PlanLimits
from text_gen_server.recorded import RecordedModel
from text_gen_server.runner import PROMPT_LOGITS_BYTES, Runner
from text_gen_server.sampling.choose import choose_sampler
from text_gen_server.step_inputs import choose_inputs
from text_gen_server.transfers import choose_transfers
from text_gen_server.warm_up import EVERYTHING, PROMPT_LOGPROBS, USUAL, run_step
from text_gen_server.weights import read_kv_scales

log = logging.getLogger("text_gen_server")

RENDEZVOUS_FILE = "tensor-parallel"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_DTYPES = {"fp8_e4m3fn": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Which part of which model to load, and how."""

    model_dir: Path
    rank: int = 0
    world_size: int = 1
    rendezvous_dir: Path | None = None  # needed by more than one rank; empty, and the same for all of them
    dtype: str = "auto"  # a key of DTYPES, or auto
    device: str = "auto"  # cpu, cuda or auto
    attention: str = "auto"
    quantize: str | None = None  # a key of QUANTIZED_BITS, or FP8
    kv_cache_dtype: str = "auto"  # a key of KV_DTYPES, or auto
    cuda_memory_fraction: float = 1.0
    cuda_graphs: tuple[int, ...] | None = None  # batch sizes to capture, 0 = none; None = chosen here
    num_threads: int = 1


@dataclass(frozen=True, kw_only=True)
class PrepareParameters:
    """The router's limits; 0 means the default where it is allowed (see `shard.proto`)."""

    max_batch_prefill_tokens: int
    max_batch_size: int
    max_total_tokens: int = 0
    max_batch_total_tokens: int = 0
    block_size: int = 0


class Shard:
    """The weights of one rank, and once prepared its KV cache and its runner."""

    def __init__(self, options: ShardOptions, config: ModelConfig) -> None:
        """Loads the weights. ValueError, for the user, where the model cannot be served like this."""
        self.options = options
        self.config = config
        self.fingerprint = model_fingerprint(options.model_dir)
        self.device = _choose_device(options)
        self.is_gpu = self.device.type == "cuda"  # with memory of its own, and kernels that are compiled when first launched
        self.dtype = _choose_dtype(options, config, self.device)
        self.ops = choose_ops(
            dtype=self.dtype,
            device=self.device,
            num_threads=options.num_threads,
            quantize=options.quantize,
            is_fp8=config.fp8 is not None,
        )
        # One pool of threads has the cores. PyTorch's would wait for its next work in a loop, beside a kernel of ours.
        torch.set_num_threads(1 if self.ops.name == NativeOps.name else options.num_threads)
        self.kv_dtype = _choose_kv_dtype(options, self.dtype, self.device)
        self.kv_scales = read_kv_scales(options.model_dir, config.num_layers) if self.kv_dtype.itemsize == 1 else None
        self.attention = choose_attention(options.attention, device=self.device, dtype=self.kv_dtype, config=config)
        if (self.ops.name == NativeOps.name) != (self.attention.name == NativeAttention.name):
            raise ValueError(f"attention {self.attention.name!r} does not fit the operations of {self.dtype} here; use auto")
        self.tensor_parallel = _join_ranks(options, self.device)
        self.model = load_model(
            options.model_dir,
            config,
            dtype=self.dtype,
            device=self.device,
            tensor_parallel=self.tensor_parallel,
            attention=self.attention,
            ops=self.ops,
        )
        self._make_capture = choose_capture(self.device, self.attention.name)
        if self._make_capture is None and options.rank == 0 and any(options.cuda_graphs or ()):
            log.warning(
                "no CUDA graphs on %s with attention %s: --cuda-graphs has no effect", self.device.type, self.attention.name
            )
        self.runner: Runner | None = None
        self._prepared: tuple[PrepareParameters, KVCacheSize] | None = None

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def claim_thread(self) -> None:
        """Makes the calling thread one that works on this rank's device; before it calls anything else here. A new thread has
        the first device, and Triton launches on the one of its thread.
        """
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def prepare(self, parameters: PrepareParameters) -> KVCacheSize:
        """Sizes and allocates the KV cache, runs a first small step and captures graphs. All ranks must call it, and again
        only with the same parameters.

        ValueError for limits out of range or memory that does not suffice.
        """
        if self._prepared is not None:
            assert self._prepared[0] == parameters, "the caller refuses another preparation"
            return self._prepared[1]
        self._fit_attention(parameters.block_size)
        limits = self._plan_limits(parameters)
        size = self._agree_on_size(parameters, limits)
        log.info("KV cache: %s", size.arithmetic)
        self.runner = self._new_runner(limits, size.num_blocks)
        self._compile_kernels(self.runner.kv_cache)
        num_tokens = min(8, limits.max_step_tokens, limits.max_total_tokens, size.num_tokens)
        for sampling in (USUAL, EVERYTHING) if self.is_gpu else (USUAL,):
            run_step(self.runner, num_tokens=num_tokens, sampling=sampling)
        if isinstance(self.runner.model, GraphedModel):
            self._capture_graphs(self.runner.model)
        if self.is_gpu:
            run_step(self.runner, num_tokens=1, sampling=USUAL)  # a decode, whose inputs have a kernel of their own
        self._prepared = (parameters, size)
        return size

    def _fit_attention(self, block_size: int) -> None:
        """What was chosen may not read blocks of the size that the router wants, where it wants one (0: it does not)."""
        chosen = choose_attention(
            self.options.attention, device=self.device, dtype=self.kv_dtype, config=self.config, block_size=block_size or None
        )
        if chosen.name != self.attention.name:
            log.warning("attention %s for blocks of %d tokens, not %s", chosen.name, block_size, self.attention.name)
            self.attention = self.model.attention = chosen
            self._make_capture = choose_capture(self.device, chosen.name)

    def _capture_graphs(self, graphed: GraphedModel) -> None:
        started = time.monotonic()
        with torch.inference_mode():
            graphed.capture_all()
        log.info("captured CUDA graphs of %s rows in %.1f s", list(graphed.graphs), time.monotonic() - started)

    def _compile_kernels(self, kv_cache: KVCache) -> None:
        """So that no request waits for a compiler. The other kernels have a form or two, which the first steps compile."""
        if self.is_gpu and isinstance(self.attention, CompiledAttention):
            heads = self.tensor_parallel.split(self.config.num_heads, "attention heads")
            num_heads = heads.stop - heads.start
            self.attention.compile_kernels(kv_cache, num_heads=num_heads, dtype=self.ops.activation_dtype)

    def is_prepared_otherwise(self, parameters: PrepareParameters) -> bool:
        return self._prepared is not None and self._prepared[0] != parameters

    def _agree_on_size(self, parameters: PrepareParameters, limits: PlanLimits) -> KVCacheSize:
        """The router's block tables are the same on all ranks, so the rank with the least memory decides."""
        budget = self._memory_budget(limits)
        try:
            own = size_kv_cache(self._capacity_request(parameters, limits), budget)
        except ValueError:
            self.tensor_parallel.minimum(0)  # or the others would wait for this rank
            raise
        agreed = self.tensor_parallel.minimum(own.num_blocks)
        if agreed == 0:
            raise ValueError("another rank has no memory for its KV cache")
        return own.with_blocks(agreed)

    def _plan_limits(self, parameters: PrepareParameters) -> PlanLimits:
        if parameters.max_batch_size < 1 or parameters.max_batch_prefill_tokens < 1:
            raise ValueError(
                f"max_batch_size is {parameters.max_batch_size} and max_batch_prefill_tokens is "
                f"{parameters.max_batch_prefill_tokens}, both must be at least 1"
            )
        max_total_tokens = parameters.max_total_tokens or self.config.max_model_len
        if max_total_tokens > self.config.max_model_len:
            raise ValueError(
                f"max_total_tokens is {max_total_tokens}, the model's positions end at {self.config.max_model_len}"
            )
        return PlanLimits(
            vocab_size=self.config.vocab_size,
            num_blocks=0,
            block_size=parameters.block_size or self.attention.default_block_size,
            max_total_tokens=max_total_tokens,
            max_batch_size=parameters.max_batch_size,
            max_step_tokens=parameters.max_batch_prefill_tokens + parameters.max_batch_size,
        )

    def _capacity_request(self, parameters: PrepareParameters, limits: PlanLimits) -> CapacityRequest:
        bytes_per_token = KVCache.bytes_per_token(self.config, self.tensor_parallel, self.kv_dtype)
        # PyTorch's attention on a CPU copies the K/V of one layer at a time, padded to at most twice the length.
        copied = 2 * bytes_per_token // self.config.num_layers if self.attention.name == "cpu" else 0
        return CapacityRequest(
            max_batch_size=limits.max_batch_size,
            max_total_tokens=limits.max_total_tokens,
            max_batch_total_tokens=parameters.max_batch_total_tokens,
            block_size=limits.block_size,
            bytes_per_token=bytes_per_token,
            copied_bytes_per_token=copied,
        )

    def _memory_budget(self, limits: PlanLimits) -> MemoryBudget:
        if self.is_gpu:
            activation_bytes, graph_bytes = self._measure_steps(limits)
            return cuda_budget(
                activation_bytes=activation_bytes,
                graph_bytes=graph_bytes,
                fraction=self.options.cuda_memory_fraction,
                device=self.device,
            )
        bound = activation_bound_bytes(
            self.config, num_tokens=limits.max_step_tokens, num_rows=limits.max_batch_size, dtype=self.ops.activation_dtype
        )
        return cpu_budget(activation_bytes=bound + PROMPT_LOGITS_BYTES, num_ranks=self.options.world_size)

    def _measure_steps(self, limits: PlanLimits) -> tuple[int, int]:
        """Most memory that a step takes beside weights and KV cache, holes that the allocator leaves included; and what graphs
        keep. In bytes. The worst steps have all their tokens, and ask in every row whatever a request may ask of a sampler, or
        of one prompt all log-probabilities.
        """
        num_blocks = -(-limits.max_step_tokens // limits.block_size) + limits.max_batch_size
        runner = self._new_runner(limits, num_blocks)
        cuda_used_bytes(self.device)  # leaves nothing cached
        before = torch.cuda.memory_reserved(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run_step(runner, num_tokens=limits.max_step_tokens, sampling=EVERYTHING, masked=True)
        run_step(runner, num_tokens=limits.max_step_tokens, sampling=PROMPT_LOGPROBS, most_sequences=1)
        peak_bytes = torch.cuda.max_memory_reserved(self.device) - before
        activation_bytes = peak_bytes + runner.inputs.num_bytes
        if not isinstance(runner.model, GraphedModel):
            return activation_bytes, 0
        with torch.inference_mode():
            return activation_bytes, runner.model.measure_bytes(partial(cuda_used_bytes, self.device))

    def _new_runner(self, limits: PlanLimits, num_blocks: int) -> Runner:
        kv_cache = KVCache.allocate(
            config=self.config,
            tensor_parallel=self.tensor_parallel,
            num_blocks=num_blocks,
            block_size=limits.block_size,
            dtype=self.kv_dtype,
            device=self.device,
            scales=self.kv_scales,
        )
        transfers, model = choose_transfers(self.device), self._driven_model(kv_cache, limits)
        graphed = model if isinstance(model, GraphedModel) else None
        return Runner(
            model,
            kv_cache=kv_cache,
            tensor_parallel=self.tensor_parallel,
            limits=replace(limits, num_blocks=num_blocks),
            transfers=transfers,
            inputs=choose_inputs(self.device, limits, transfers, graphed),
            sample=choose_sampler(self.device, self.ops.summarize, self.ops.draw),
        )

    def _driven_model(self, kv_cache: KVCache, limits: PlanLimits) -> CausalLM:
        """The model as a runner drives it: here is wrapped around it what makes steps cheaper on this device."""
        if self._make_capture is not None:
            sizes = graph_sizes(self.options.cuda_graphs, limits.max_batch_size)
            is_alone = self.tensor_parallel.world_size == 1
            graph_limits = GraphLimits(sizes=sizes, max_total_tokens=limits.max_total_tokens, is_alone=is_alone)
            return GraphedModel(
                self.model, kv_cache=kv_cache, limits=graph_limits, capture=self._make_capture(), device=self.device
            )
        if self.ops.name == NativeOps.name and self.tensor_parallel.world_size == 1:
            bound = activation_bound_bytes(
                self.config, num_tokens=limits.max_step_tokens, num_rows=0, dtype=self.ops.activation_dtype
            )
            return RecordedModel(self.model, kv_cache=kv_cache, max_step_tokens=limits.max_step_tokens, activation_bytes=bound)
        return self.model  # where ranks wait for each other, a recording cannot


def _choose_device(options: ShardOptions) -> torch.device:
    if options.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if options.device == "cuda":
            raise ValueError("device is cuda, but no CUDA device can be used")
        return torch.device("cpu")
    if options.rank >= torch.cuda.device_count():
        raise ValueError(f"rank {options.rank} has no device: {torch.cuda.device_count()} CUDA devices are visible")
    return torch.device("cuda", options.rank)


def _choose_dtype(options: ShardOptions, config: ModelConfig, device: torch.device) -> torch.dtype:
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    if options.quantize is not None or config.fp8 is not None:
        return torch.bfloat16
    dtype = DTYPES[config.torch_dtype]
    if device.type != "cpu" or dtype == torch.bfloat16 == choose_cpu_dtype():
        return dtype
    # Other checkpoints would lose digits in bf16, and PyTorch is slow in float16 on most processors.
    return torch.float32


def _choose_kv_dtype(options: ShardOptions, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    if options.kv_cache_dtype == "auto":
        return dtype
    if device.type == "cpu":
        raise ValueError(f"kv-cache-dtype {options.kv_cache_dtype} works on GPUs only; remove it")
    return KV_DTYPES[options.kv_cache_dtype]


def _join_ranks(options: ShardOptions, device: torch.device) -> TensorParallel:
    if options.world_size == 1:
        return TensorParallel.single()
    if options.rendezvous_dir is None:
        raise ValueError(f"{options.world_size} ranks need a rendezvous folder to find each other")
    return TensorParallel.init(
        rank=options.rank,
        world_size=options.world_size,
        rendezvous=options.rendezvous_dir / RENDEZVOUS_FILE,
        device=device,
    )
