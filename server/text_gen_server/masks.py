"""The masks of constrained rows: from the thread that reads the router's messages to the step that waits for them.

A mask depends on the token before it, so it may arrive while its step computes already. Only sampling waits.
"""

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError
from typing import Protocol

WORD_BYTES = 4


class LateMasks(Protocol):
    """Where a step gets the masks that its plan did not bring."""

    def take(self, step_id: int, sequence_ids: Iterable[int]) -> dict[int, bytes]:
        """Waits until the step has a mask for each of `sequence_ids`. CancelledError if the stream ends first."""


class StepMasks:
    """Late masks by step and sequence, put by one thread and taken by another. A step takes each of its masks once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived: dict[int, dict[int, bytes]] = {}
        self._last_taken = -1  # steps are taken in order; what comes for an older one is of no use
        self._is_closed = False

    def put(self, step_id: int, masks: Mapping[int, bytes]) -> None:
        """Adds masks ({sequence id: bits}) of a step."""
        with self._changed:
            if step_id > self._last_taken:
                self._arrived.setdefault(step_id, {}).update(masks)
                self._changed.notify_all()

    def take(self, step_id: int, sequence_ids: Iterable[int]) -> dict[int, bytes]:
        """Waits until the step has a mask for each of `sequence_ids`. CancelledError if the stream ends first."""
        wanted = set(sequence_ids)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or wanted <= self._arrived.get(step_id, {}).keys())
            arrived = self._arrived.pop(step_id, {})
            self._last_taken = step_id
            if not wanted <= arrived.keys():
                raise CancelledError
            return {sequence_id: arrived[sequence_id] for sequence_id in wanted}

    def close(self) -> None:
        """No more will come: whoever waits stops waiting."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def check_masks(masks: Mapping[int, bytes], vocab_size: int) -> None:
    """ValueError where a mask is neither empty (any token) nor one bit for each token, in whole words."""
    num_bytes = -(-vocab_size // (8 * WORD_BYTES)) * WORD_BYTES
    for sequence_id, mask in masks.items():
        if len(mask) not in (0, num_bytes):
            raise ValueError(f"sequence {sequence_id}: a mask of {len(mask)} bytes, it must have {num_bytes}")
