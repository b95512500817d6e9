"""The load generator: clients that stream completions over HTTP and note when each event came.

A closed loop: a client sends its next request when its last answer has ended. Events are stamped when they are read and
parsed when the stream is over, so that the client takes little of the CPU that it measures. An answer that is shorter than
asked is an error, never a fast one.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMEOUT_SECS = 900


class LoadError(Exception):
    """A request that was not answered as asked."""


@dataclass(frozen=True)
class Job:
    """One request."""

    prompt: str
    max_tokens: int


@dataclass
class Stream:
    """One answer. Times are of the client's monotonic clock, in seconds."""

    sent_at: float
    event_at: list[float] = field(default_factory=list)  # when each event with text came
    num_tokens: int = 0
    num_prompt_tokens: int = 0

    @property
    def ttft(self) -> float:
        return self.event_at[0] - self.sent_at

    @property
    def tpot(self) -> float:
        """Seconds per token after the first."""
        return (self.event_at[-1] - self.event_at[0]) / max(1, self.num_tokens - 1)

    def gaps(self, since: float = 0.0, until: float = float("inf")) -> list[float]:
        """Inter-token latencies that ended in a span of time."""
        pairs = zip(self.event_at, self.event_at[1:], strict=False)
        return [after - before for before, after in pairs if since < after <= until]


class PromptMaker:
    """Random prompts with a known number of tokens, out of words that are one token each."""

    def __init__(self, words: Sequence[str], seed: int) -> None:
        self._words = words
        self._random = Random(seed)

    def prompt(self, num_tokens: int) -> str:
        return "".join(self._random.choices(self._words, k=num_tokens))

    def jobs(self, count: int, num_tokens: int, max_tokens: int, prefix: str = "") -> list[Job]:
        return [Job(prefix + self.prompt(num_tokens), max_tokens) for _ in range(count)]


class Client:
    """Sends requests to one server. Use as an asynchronous context manager."""

    def __init__(self, url: str, model: str) -> None:
        self._url = f"{url}/v1/completions"
        self._model = model

    async def __aenter__(self) -> Client:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECS)
        # A connection for each request: some servers close idle ones between two cases, just as they are used again.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def complete(self, job: Job) -> Stream:
        """One answer, to its end."""
        stream = Stream(time.perf_counter())
        lines = await self._read(job, stream, lambda: None)
        stream.num_tokens, stream.num_prompt_tokens = _usage(lines)
        if stream.num_tokens < job.max_tokens:
            raise LoadError(f"{stream.num_tokens} of {job.max_tokens} tokens")
        return stream

    async def follow(self, job: Job, stream: Stream, on_event: Callable[[], None]) -> None:
        """Fills `stream` while the answer goes on; to be cancelled by the caller."""
        stream.sent_at = time.perf_counter()
        await self._read(job, stream, on_event)

    async def closed_loop(self, jobs: Sequence[Job], num_clients: int) -> list[Stream]:
        """All answers, `num_clients` at a time."""
        waiting = iter(jobs)
        streams: list[Stream] = []

        async def client() -> None:
            for job in waiting:
                streams.append(await self.complete(job))  # noqa: PERF401 - shared by the clients

        async with asyncio.TaskGroup() as clients:
            for _ in range(num_clients):
                clients.create_task(client())
        return streams

    async def _read(self, job: Job, stream: Stream, on_event: Callable[[], None]) -> list[bytes]:
        body = {
            "model": self._model,
            "prompt": job.prompt,
            "max_tokens": job.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        lines: list[bytes] = []
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                raise LoadError(f"status {response.status}: {(await response.text())[:200]}")
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                lines.append(line)
                if b'"text"' in line:
                    stream.event_at.append(time.perf_counter())
                    on_event()
        if not stream.event_at:
            raise LoadError("no token")
        return lines


def _usage(lines: Sequence[bytes]) -> tuple[int, int]:
    """Generated and prompt tokens by the server's own count, which it sends at the end."""
    for line in reversed(lines):
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            continue
        message = json.loads(data)
        if error := message.get("error"):
            raise LoadError(str(error)[:200])
        if usage := message.get("usage"):
            return int(usage["completion_tokens"]), int(usage["prompt_tokens"])
    raise LoadError("the server did not count its tokens")
