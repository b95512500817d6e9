"""What is measured: each case sends its load to one server and returns a few numbers. Times are in milliseconds.

A case makes its prompts from a seed, so that every server gets the same ones; another repeat has another seed, so that no
prompt is in a prefix cache where the case does not want it there.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.load import Client, LoadError, PromptMaker, Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Values = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much a case sends. Lengths in tokens."""

    prompt_len: int = 128
    output_len: int = 64
    rounds_1: int = 6  # requests per client, with 1, 8 and 32 clients
    rounds_8: int = 3
    rounds_32: int = 2
    long_prompt_len: int = 2000
    num_long_prompts: int = 3
    num_running: int = 16  # streams that long prompts arrive into
    num_quiet_tokens: int = 24  # of each of them before the first arrival
    running_len: int = 1200  # more than they can say meanwhile
    prefix_len: int = 1024
    tail_len: int = 64
    num_sharing: int = 8


FULL = Sizes()
QUICK = Sizes(
    prompt_len=16,
    output_len=4,
    rounds_1=1,
    rounds_8=1,
    rounds_32=1,
    long_prompt_len=200,
    num_long_prompts=1,
    num_running=4,
    num_quiet_tokens=4,
    running_len=600,
    prefix_len=128,
    tail_len=8,
    num_sharing=2,
)


async def streams(client: Client, prompts: PromptMaker, sizes: Sizes, num_clients: int) -> Values:
    """So many streams at once, in a closed loop."""
    rounds = {1: sizes.rounds_1, 8: sizes.rounds_8, 32: sizes.rounds_32}[num_clients]
    jobs = prompts.jobs(num_clients * rounds, sizes.prompt_len, sizes.output_len)
    started = time.perf_counter()
    answers = await client.closed_loop(jobs, num_clients)
    seconds = time.perf_counter() - started
    gaps = [gap for answer in answers for gap in answer.gaps()]
    return {
        "tokens_per_s": sum(answer.num_tokens for answer in answers) / seconds,
        "tpot_ms": 1e3 * statistics.median(answer.tpot for answer in answers),
        "ttft_ms": 1e3 * statistics.median(answer.ttft for answer in answers),
        "itl_p99_ms": 1e3 * percentile(gaps, 99),
        "prompt_tokens": statistics.median(answer.num_prompt_tokens for answer in answers),
    }


async def long_prompt(client: Client, prompts: PromptMaker, sizes: Sizes) -> Values:
    """The first token of a long prompt on an idle server."""
    answers = await client.closed_loop(prompts.jobs(sizes.num_long_prompts, sizes.long_prompt_len, 2), 1)
    return {
        "ttft_ms": 1e3 * statistics.median(answer.ttft for answer in answers),
        "prompt_tokens": statistics.median(answer.num_prompt_tokens for answer in answers),
    }


async def arrivals(client: Client, prompts: PromptMaker, sizes: Sizes) -> Values:
    """Long prompts, one after the other, while streams run: what the running ones feel."""
    running = [Stream(0.0) for _ in range(sizes.num_running)]
    quiet = asyncio.Event()
    num_wanted = 1 + sizes.num_quiet_tokens

    def on_event() -> None:
        if all(len(stream.event_at) >= num_wanted for stream in running):
            quiet.set()

    jobs = prompts.jobs(sizes.num_running, sizes.prompt_len, sizes.running_len)
    tasks = [asyncio.create_task(client.follow(job, stream, on_event)) for job, stream in zip(jobs, running, strict=True)]
    try:
        await _first_of(quiet.wait(), tasks)
        begin = time.perf_counter()
        arrived = await client.closed_loop(prompts.jobs(sizes.num_long_prompts, sizes.long_prompt_len, 2), 1)
        end = time.perf_counter()
        num_ended = sum(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if num_ended:
        raise LoadError(f"{num_ended} of {len(tasks)} running streams ended before the last prompt was answered")
    all_first = max(stream.event_at[0] for stream in running)
    before = [gap for stream in running for gap in stream.gaps(all_first, begin)]
    during = [gap for stream in running for gap in stream.gaps(begin, end)]
    if not during:
        raise LoadError("no running stream had a token while the prompts were computed")
    p99, usual = percentile(during, 99), statistics.median(before)
    return {
        "quiet_itl_ms": 1e3 * usual,
        "itl_median_ms": 1e3 * statistics.median(during),
        "itl_p99_ms": 1e3 * p99,
        "p99_to_quiet": p99 / usual,
        "p99_to_median": p99 / statistics.median(during),
        "ttft_ms": 1e3 * statistics.median(answer.ttft for answer in arrived),
    }


async def shared_prefix(client: Client, prompts: PromptMaker, sizes: Sizes) -> Values:
    """Streams that begin alike: the first time, and again with other endings. And as many of the same length that have nothing
    in common, since those that come together for the first time may share what the first of them computes.
    """
    prefix = prompts.prompt(sizes.prefix_len)
    kinds = {
        "apart": prompts.jobs(sizes.num_sharing, sizes.prefix_len + sizes.tail_len, 8),
        "cold": prompts.jobs(sizes.num_sharing, sizes.tail_len, 8, prefix),
        "warm": prompts.jobs(sizes.num_sharing, sizes.tail_len, 8, prefix),
    }
    ttft = {}
    for kind, jobs in kinds.items():
        answers = await client.closed_loop(jobs, sizes.num_sharing)
        ttft[kind] = 1e3 * statistics.median(answer.ttft for answer in answers)
    return {
        **{f"{kind}_ttft_ms": milliseconds for kind, milliseconds in ttft.items()},
        "cold_to_warm": ttft["cold"] / ttft["warm"],
        "apart_to_warm": ttft["apart"] / ttft["warm"],
    }


async def warm_up(client: Client, prompts: PromptMaker, sizes: Sizes) -> Values:
    """So that nothing is done for the first time while it is measured."""
    await client.closed_loop(prompts.jobs(1, sizes.prompt_len, 4), 1)
    await client.closed_loop(prompts.jobs(8, sizes.prompt_len, 4), 8)
    return {}


CASES: dict[str, Callable[[Client, PromptMaker, Sizes], Awaitable[Values]]] = {
    "streams-1": lambda client, prompts, sizes: streams(client, prompts, sizes, 1),
    "streams-8": lambda client, prompts, sizes: streams(client, prompts, sizes, 8),
    "streams-32": lambda client, prompts, sizes: streams(client, prompts, sizes, 32),
    "long-prompt": long_prompt,
    "arrivals": arrivals,
    "shared-prefix": shared_prefix,
}


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent do not exceed."""
    if not values:
        raise LoadError("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


async def _first_of(event: Awaitable[object], tasks: list[asyncio.Task[None]]) -> None:
    """Waits for an event, and fails with the first of the tasks that ends before it."""
    waiting = asyncio.ensure_future(event)
    done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    if waiting not in done:
        waiting.cancel()
        for task in done:
            task.result()
        raise LoadError("a running stream ended before all had begun")
