"""`sampler.sample` with the kernels of `triton_kernels/sampler.py`, for a GPU: same arguments, same answers, a few launches.

Never imported where Triton may be missing. What few requests ask for (logit bias, watermark, the ban of end tokens) is left to
`processors.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from text_gen_server.sampling.processors import SamplingRow, process
from text_gen_server.sampling.rng import to_signed
from text_gen_server.sampling.sampler import Samples
from text_gen_server.transfers import upload
from text_gen_server.triton_kernels.sampler import DrawParameters, choose_tokens, count_tokens, most_likely, penalize_

WORD_BITS = 32
PACKED_WORDS = 6  # of 64 bits: four integers, four float32


def sample(logits: Tensor, rows: Sequence[SamplingRow], masks: Mapping[int, bytes] | None = None) -> Samples:
    """See `sampler.sample`. logits: [N, V] float32, raw"""
    logits = logits.contiguous()
    processed = _process(logits, rows)
    allowed = _allowed_bits(masks, logits) if masks else None
    choices = choose_tokens(logits, processed, _draw_parameters(rows, logits.device), allowed)
    num_top_tokens = max(row.parameters.num_top_tokens for row in rows)
    top_token_ids, top_logits = most_likely(logits, num_top_tokens, allowed)
    return Samples(
        token_ids=choices.token_ids,
        logprobs=choices.logprobs,
        is_finite=choices.is_finite,
        top_token_ids=top_token_ids,
        top_logprobs=top_logits - choices.normalizers.unsqueeze(1),
    )


def _process(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """`processors.process`, with the penalties in one launch."""
    penalized = [n for n, row in enumerate(rows) if row.is_penalized]
    if not penalized:
        return process(logits, rows)
    processed = logits.clone()
    device = logits.device
    chosen = [rows[n] for n in penalized]
    starts = np.zeros(len(chosen) + 1, dtype=np.int64)
    np.cumsum([row.num_tokens for row in chosen], out=starts[1:])
    counts = count_tokens(
        upload(torch.from_numpy(np.concatenate([row.token_ids for row in chosen])), device),
        upload(torch.from_numpy(starts), device),
        upload(torch.tensor([row.prompt_len for row in chosen]), device),
        longest=max(row.num_tokens for row in chosen),
        vocab_size=logits.shape[1],
    )
    penalties = [
        (row.parameters.repetition_penalty, row.parameters.frequency_penalty, row.parameters.presence_penalty) for row in chosen
    ]
    penalize_(
        processed,
        upload(torch.tensor(penalized), device),
        counts,
        upload(torch.tensor(penalties, dtype=torch.float32), device),
    )
    return process(processed, [_without_penalties(row) if row.is_penalized else row for row in rows])


def _without_penalties(row: SamplingRow) -> SamplingRow:
    parameters = replace(row.parameters, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0)
    return SamplingRow(parameters, row.token_ids, row.prompt_len)


def _draw_parameters(rows: Sequence[SamplingRow], device: torch.device) -> DrawParameters:
    packed = np.frombuffer(b"".join([row.packed or _pack(row) for row in rows]), dtype=np.int64).reshape(-1, PACKED_WORDS)
    # One copy for both: the numbers lie behind the integers.
    both = np.empty(packed.size, dtype=np.int64)
    split = 4 * len(rows)
    integers = both[:split].reshape(-1, 4)
    integers[:] = packed[:, :4]
    integers[:, 3] = [row.num_tokens for row in rows]
    both[split:].reshape(-1, 2)[:] = packed[:, 4:]
    on_device = upload(torch.from_numpy(both), device)
    return DrawParameters(on_device[split:].view(torch.float32).view(-1, 4), on_device[:split].view(-1, 4))


def _pack(row: SamplingRow) -> bytes:
    """Its line of `DrawParameters`, integers first, but for the position, which changes with every token."""
    asked = row.parameters
    log_min_p = math.log(asked.min_p) if asked.min_p > 0 else -math.inf
    integers = np.array([int(asked.do_sample), min(asked.top_k, 2**31), to_signed(asked.seed), 0], dtype=np.int64)
    numbers = np.array([asked.temperature, asked.top_p, asked.typical_p, log_min_p], dtype=np.float32)
    row.packed = integers.tobytes() + numbers.tobytes()
    return row.packed


def _allowed_bits(masks: Mapping[int, bytes], logits: Tensor) -> Tensor:
    """[N, ceil(V / 32)] int32; rows without a mask may have any token. masks: see `processors.apply_masks`"""
    num_bytes = -(-logits.shape[1] // WORD_BITS) * (WORD_BITS // 8)
    bits = np.full((len(logits), num_bytes), 0xFF, dtype=np.uint8)
    for n, mask in masks.items():
        given = np.frombuffer(mask, dtype=np.uint8)[:num_bytes]
        bits[n, : len(given)] = given
        bits[n, len(given) :] = 0
    return upload(torch.from_numpy(bits.view(np.int32)), logits.device)
