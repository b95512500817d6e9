"""Runs plans on the one thread that has the device, one step ahead: a plan is launched when it comes, and the step before it is
collected while the device computes. Answers come in the order of the plans.

The model's thread does not wait for the device, so that a plan that comes late still finds it: another thread waits, and says
when a step can be collected. Must never let a step wait for something that only the answer to the step before can bring.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from text_gen_server.launched import LaunchedStep
from text_gen_server.masks import StepMasks
from text_gen_server.plan import StepPlan, StepResult
from text_gen_server.runner import Runner

Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """The result of a step, and the time for which it had the device."""

    result: StepResult
    compute_us: int


@dataclass
class Stream:
    """Plans that build on each other. The first that fails is the last."""

    runner: Runner
    masks: StepMasks = field(default_factory=StepMasks)
    is_closed: bool = False  # plans that have not started will not


@dataclass(frozen=True)
class _InFlight:
    launched: LaunchedStep
    answer: Future[Answer]
    stream: Stream
    started_ns: int


class StepPipeline:
    """See the module."""

    def __init__(self, claim_thread: Callable[[], None]) -> None:
        """claim_thread: called once on the model's thread, before anything else there"""
        self.last_step_id = 0
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model", initializer=claim_thread)
        self._watch_thread = ThreadPoolExecutor(1, thread_name_prefix="steps")
        self._in_flight: deque[_InFlight] = deque()  # launched and not answered; touched by the model's thread alone
        self._answered_ns = 0

    def close(self) -> None:
        """Returns when the launched steps are done; plans that wait are dropped."""
        self._model_thread.shutdown(wait=True, cancel_futures=True)
        self._watch_thread.shutdown(wait=True)

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Calls `function` on the model's thread. RuntimeError after `close`."""
        return self._model_thread.submit(function)

    def submit(self, plan: StepPlan, stream: Stream) -> Future[Answer]:
        """The answer to a plan, which is computed after all plans before it. RuntimeError after `close`."""
        answer: Future[Answer] = Future()
        job = self._model_thread.submit(self._launch, plan, stream, answer)
        job.add_done_callback(lambda job: answer.cancel() if job.cancelled() else None)
        return answer

    def forget_all(self, stream: Stream) -> Future[None]:
        """Forgets what a stream told. RuntimeError after `close`."""
        stream.is_closed = True
        return self.call(partial(self._forget_all, stream))

    def _forget_all(self, stream: Stream) -> None:
        for step in self._in_flight:
            step.answer.cancel()  # nobody waits for it any longer
        self._in_flight.clear()
        stream.runner.forget_all()

    def _launch(self, plan: StepPlan, stream: Stream, answer: Future[Answer]) -> None:
        if stream.is_closed:
            answer.cancel()
            return
        started_ns = time.perf_counter_ns()
        with _errors_answered(answer, stream):
            launched = stream.runner.launch(plan, _MasksAfterAnswers(self, stream.masks))
            step = _InFlight(launched, answer, stream, started_ns)
            self._in_flight.append(step)
            if launched.download.is_ready():
                self._answer_up_to(step)
            else:
                self._watch_thread.submit(launched.download.wait).add_done_callback(lambda _: self._say_ready(step))

    def _say_ready(self, step: _InFlight) -> None:
        try:
            self.call(partial(self._answer_up_to, step))
        except RuntimeError:  # the pipeline is closed
            step.answer.cancel()

    def _answer_up_to(self, last: _InFlight) -> None:
        """Answers the steps that were launched up to `last`, should they not be answered yet."""
        while last in self._in_flight:
            step = self._in_flight.popleft()
            with _errors_answered(step.answer, step.stream):
                result = step.stream.runner.collect(step.launched)
                now_ns = time.perf_counter_ns()
                # When a step was launched early, the device still had the one before until that was answered.
                compute_ns = now_ns - max(step.started_ns, self._answered_ns)
                self._answered_ns, self.last_step_id = now_ns, result.step_id
                step.answer.set_result(Answer(result, compute_ns // 1000))

    def answer_all(self) -> None:
        """Answers every launched step, for which it may wait. On the model's thread only."""
        if self._in_flight:
            self._answer_up_to(self._in_flight[-1])


class _MasksAfterAnswers:
    """The masks of a step, which the router can only make once it has the answer to the step before."""

    def __init__(self, pipeline: StepPipeline, masks: StepMasks) -> None:
        self._pipeline = pipeline
        self._masks = masks

    def take(self, step_id: int, sequence_ids: Iterable[int]) -> dict[int, bytes]:
        self._pipeline.answer_all()
        return self._masks.take(step_id, sequence_ids)


@contextlib.contextmanager
def _errors_answered(answer: Future[Answer], stream: Stream) -> Iterator[None]:
    """Whatever goes wrong inside is the answer, and the end of the stream."""
    try:
        yield
    except CancelledError:
        stream.is_closed = True
        answer.cancel()
    except BaseException as error:
        stream.is_closed = True  # the plans behind it were made for another outcome
        answer.set_exception(error)
