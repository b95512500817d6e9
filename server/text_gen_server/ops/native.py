"""The operations by our own CPU kernels: weights packed as bf16, int8 or int4, hidden states in float32.

A checkpoint in bf16 loses nothing: products of 16-bit weights are summed in float32. Where the processor multiplies bf16 in
hardware, activations are rounded to bf16 as they enter a product, and nowhere else. Weights of fewer bits have a scale for
every 64 (int8) or 32 (int4) inputs, and activations are rounded to eight bits for them; the vocabulary never has fewer than
eight bits, because the choice of a token hangs on it directly.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING

import numpy as np
import torch

from text_gen_server import native
from text_gen_server.native.kernels import kernels
from text_gen_server.ops import native_draw
from text_gen_server.ops.interface import HeadNorm
from text_gen_server.sampling.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from text_gen_server.ops.interface import CosSin, Linear, Norm, Rotation, StepPositions, Vocabulary
    from text_gen_server.sampling.processors import SamplingRow


PANEL = 32  # output columns that the kernels compute together
POSITIONS_AT_ONCE = 1024  # whose cosines and sines are computed together


class NativeOps:
    """See `Ops`."""

    name = "native"
    activation_dtype = torch.float32

    def __init__(self, num_threads: int, num_bits: int = 16) -> None:
        """num_bits: of a weight, 16, 8 or 4. ValueError where the kernels were not built."""
        self.kernels = kernels()
        self.num_bits = num_bits
        native.start(num_threads)

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        return PackedLinear(weight, bias, num_bits=self.num_bits)

    def gated(self, weight: Tensor, bias: Tensor | None, reader: Linear) -> Linear:  # noqa: ARG002
        return PackedLinear(weight, bias, is_gated=True, num_bits=self.num_bits)

    def norm(self, weight: Tensor, epsilon: float, reader: Linear | None) -> Norm:  # noqa: ARG002
        return NativeNorm(weight, epsilon)

    def vocabulary(self, weight: Tensor) -> Vocabulary:
        return PackedLinear(weight, None, num_bits=max(8, self.num_bits))

    def head_norm(self, weight: Tensor, epsilon: float) -> HeadNorm:
        return HeadNorm(weight.float().contiguous(), epsilon)

    def draw(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
        return native_draw.draw(logits, rows)

    def rotation(self, cos_sin: CosSin, *, num_positions: int, head_dim: int) -> Rotation:
        return NativeRotation(cos_sin, num_positions, head_dim)

    def rotate_and_write(
        self, heads: Tensor, step: StepPositions, key_slots: Tensor, value_slots: Tensor, norm: HeadNorm | None
    ) -> Tensor:
        _check(heads)
        assert key_slots.dtype == value_slots.dtype == torch.bfloat16, "the cache holds bf16"
        num_kv_heads = key_slots.shape[1]
        num_heads = heads.shape[1] - 2 * num_kv_heads
        arguments = native.Rotate(
            heads=heads.data_ptr(),
            cos=step.cos.data_ptr(),
            sin=step.sin.data_ptr(),
            norm_weight=None if norm is None else norm.weight.data_ptr(),
            slots=step.slot_mapping.data_ptr(),
            keys=key_slots.data_ptr(),
            values=value_slots.data_ptr(),
            num_tokens=heads.shape[0],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=heads.shape[2],
            norm_epsilon=0.0 if norm is None else norm.epsilon,
        )
        self.kernels.rotate_and_write(arguments)
        return heads[:, :num_heads]

    def summarize(self, logits: Tensor) -> Summary:
        num_rows, size = logits.shape
        assert logits.dtype == torch.float32, "logits are float32"
        assert logits.stride(1) == 1, "the logits of a row lie side by side"
        largest = torch.empty(num_rows, dtype=torch.int64)
        log_normalizer = torch.empty(num_rows)
        is_finite = torch.empty(num_rows, dtype=torch.bool)
        arguments = native.Summarize(
            logits=logits.data_ptr(),
            stride=logits.stride(0),
            num_rows=num_rows,
            size=size,
            largest=largest.data_ptr(),
            log_normalizer=log_normalizer.data_ptr(),
            is_finite=is_finite.data_ptr(),
        )
        native.library().tgk_summarize(ctypes.addressof(arguments))
        return Summary(largest, log_normalizer, is_finite)


class PackedLinear:
    """See `Linear` and `Vocabulary`. Owns the packed weight; the tensor it was made of is no longer needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, is_gated: bool = False, num_bits: int = 16) -> None:
        self.kernels = kernels()
        weight = weight.to(torch.bfloat16).contiguous()
        rows, self.in_features = weight.shape
        self.out_features = rows // 2 if is_gated else rows
        self.bias = None if bias is None else _padded(bias.float(), 2 if is_gated else 1)
        self.bias_address = None if self.bias is None else self.bias.data_ptr()
        library = native.library()
        self.packed = library.tgk_pack(weight.data_ptr(), rows, self.in_features, is_gated, num_bits)
        weakref.finalize(self, library.tgk_free, self.packed)

    def __call__(self, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        _check(hidden)
        assert hidden.shape[1] == self.in_features, "hidden states fit their layer"
        output = self.kernels.empty(hidden.shape[0], self.out_features)
        self.kernels.multiply(self.packed, hidden, self.bias_address, output)
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        return self(hidden)

    def embed(self, token_ids: Tensor) -> Tensor:
        output = self.kernels.empty(len(token_ids), self.in_features)
        self.kernels.gather(self.packed, token_ids.contiguous(), output)
        return output


def _check(hidden: Tensor) -> None:
    assert hidden.dtype == torch.float32, "hidden states are float32"
    assert hidden.is_contiguous(), "the kernels read rows that lie side by side"


def _padded(bias: Tensor, num_parts: int) -> Tensor:
    """The parts of a bias (gates and ups, or all of it), each padded to whole panels as the kernel reads them."""
    parts = bias.view(num_parts, -1)
    return torch.nn.functional.pad(parts, (0, -parts.shape[1] % PANEL)).contiguous()


class NativeNorm:
    """See `Norm`."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self.kernels = kernels()
        self.weight = weight.float().contiguous()
        self.epsilon = epsilon

    def __call__(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        total = hidden if residual is None else residual
        _check(hidden)
        _check(total)
        output = self.kernels.empty(*total.shape)
        arguments = native.Normalize(
            hidden=None if residual is None else hidden.data_ptr(),
            residual=total.data_ptr(),
            weight=self.weight.data_ptr(),
            output=output.data_ptr(),
            num_rows=total.shape[0],
            size=total.shape[1],
            epsilon=self.epsilon,
        )
        self.kernels.normalize(arguments)
        return output, total


class NativeRotation:
    """See `Rotation`. Cosine and sine of a position are computed once, when a step first comes near it."""

    def __init__(self, cos_sin: CosSin, num_positions: int, head_dim: int) -> None:
        self.kernels = kernels()
        self.cos_sin = cos_sin
        # The system gives memory to the rows that were written; a model may have far more positions than anybody asks for.
        self.tables = [torch.from_numpy(np.empty((num_positions, head_dim), dtype=np.float32)) for _ in range(2)]
        self.num_known = 0  # leading rows of the tables that are filled

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.kernels.recording is None:
            self._fill(int(positions.max()))
        else:
            self.kernels.recording.before_step.append(self._fill)
        cos, sin = (self._rows(table, positions) for table in self.tables)
        return cos, sin

    def _rows(self, table: Tensor, positions: Tensor) -> Tensor:
        """-> [T, 1, D]"""
        size = table.shape[1]
        output = self.kernels.empty(len(positions), 1, size)
        arguments = native.LookUp(
            table=table.data_ptr(),
            row_size=size,
            rows=positions.data_ptr(),
            num_rows=len(positions),
            output=output.data_ptr(),
        )
        self.kernels.look_up(arguments)
        return output

    def _fill(self, max_position: int) -> None:
        """Fills the tables as far as `max_position`, and on to the end of some more."""
        if max_position < self.num_known:
            return
        num_positions = len(self.tables[0])
        assert max_position < num_positions, "positions are checked against the limit of the model"
        end = min(num_positions, (max_position // POSITIONS_AT_ONCE + 1) * POSITIONS_AT_ONCE)
        added = torch.arange(self.num_known, end)
        for table, rows in zip(self.tables, self.cos_sin(added, torch.float32), strict=True):
            table[self.num_known : end] = rows.squeeze(1)
        self.num_known = end
