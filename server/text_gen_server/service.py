"""The gRPC service of one shard on a unix socket. With `wire.py`, the only place that knows gRPC and protobuf.

Plans go through the pipeline in the order of arrival, so that the next one starts while the answer to the last is still being
sent. Errors become status codes here and nowhere else.
"""

import contextlib
import gc
import logging
import os
import queue
import signal
import socket as sockets
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import torch

from text_gen_server.pb import shard_pb2 as pb
from text_gen_server.pb import shard_pb2_grpc as pb_grpc
from text_gen_server.pipeline import Answer, StepPipeline, Stream
from text_gen_server.runner import Runner
from text_gen_server.shard import PrepareParameters, Shard
from text_gen_server.wire import masks_from_message, message_from_result, plan_from_message

log = logging.getLogger("text_gen_server")

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 256 * 2**20  # a plan may bring back every sequence in full
MAX_SOCKET_PATH_BYTES = 107  # of Linux
NUM_RPC_THREADS = 8
DTYPE_PREFIX = "torch."


def serve(shard: Shard, socket: Path, *, server_version: str, stop: threading.Event) -> None:
    """Answers on `socket` until `stop` is set; the step that runs then is finished. ValueError if the socket cannot be had."""
    check_socket_path(socket)
    service = ShardService(shard, server_version)
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", MAX_MESSAGE_BYTES)]
    server = grpc.server(ThreadPoolExecutor(NUM_RPC_THREADS, thread_name_prefix="rpc"), options=options)
    pb_grpc.add_ShardServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    previous_mask = os.umask(0o077)
    try:
        server.add_insecure_port(f"unix:{socket}")
    except RuntimeError as error:
        raise ValueError(f"cannot listen on {socket}: {error}") from error
    finally:
        os.umask(previous_mask)
    # The model and the imports live as long as the process: a collection that looks at all of them takes as long as a step.
    gc.collect()
    gc.freeze()
    server.start()
    log.info("rank %d ready on %s", shard.options.rank, socket)
    stop.wait()
    server.stop(grace=None)
    service.close()
    socket.unlink(missing_ok=True)


def check_socket_path(socket: Path) -> None:
    """ValueError where no shard can listen on `socket`. The socket of a dead process is removed."""
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"the socket path {socket} is longer than {MAX_SOCKET_PATH_BYTES} bytes")
    if not socket.parent.is_dir():
        raise ValueError(f"there is no folder {socket.parent} for the socket")
    if not socket.exists():
        return
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        if probe.connect_ex(str(socket)) == 0:
            raise ValueError(f"another process listens on {socket}")
    if not socket.is_socket():
        raise ValueError(f"{socket} is not a socket")
    socket.unlink()


def stop_on_signals(*, ignore_interrupt: bool) -> threading.Event:
    """An event that SIGTERM sets, and SIGINT too unless it is ignored."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignore_interrupt else lambda *_: stop.set())
    return stop


class PlanStream:
    """The plans of one Run call, on their way through the pipeline."""

    def __init__(self, runner: Runner) -> None:
        self.answers: queue.SimpleQueue[Future[Answer] | None] = queue.SimpleQueue()  # None: no more will come
        self.steps = Stream(runner)

    def end(self) -> None:
        """The router will say no more: nobody waits for it any longer."""
        self.steps.masks.close()
        self.answers.put(None)


class ShardService(pb_grpc.ShardServicer):
    """The four calls of `shard.proto`."""

    def __init__(self, shard: Shard, server_version: str) -> None:
        self._shard = shard
        self._server_version = server_version
        self._pipeline = StepPipeline(shard.claim_thread)
        self._run_lock = threading.Lock()

    def close(self) -> None:
        """Returns when the running step is done; those that wait are dropped."""
        self._pipeline.close()

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoResponse:  # noqa: ARG002, N802
        shard = self._shard
        return pb.InfoResponse(
            protocol_version=PROTOCOL_VERSION,
            server_version=self._server_version,
            model_fingerprint=shard.fingerprint,
            architecture=shard.config.architecture,
            device=shard.device.type,
            device_name=shard.device_name,
            dtype=str(shard.dtype).removeprefix(DTYPE_PREFIX),
            attention=shard.attention.name,
            rank=shard.options.rank,
            world_size=shard.options.world_size,
            vocab_size=shard.config.vocab_size,
            max_model_len=shard.config.max_model_len,
        )

    def Prepare(self, request: pb.PrepareRequest, context: grpc.ServicerContext) -> pb.PrepareResponse:  # noqa: N802
        parameters = PrepareParameters(
            max_batch_prefill_tokens=request.max_batch_prefill_tokens,
            max_batch_size=request.max_batch_size,
            max_total_tokens=request.max_total_tokens,
            max_batch_total_tokens=request.max_batch_total_tokens,
            block_size=request.block_size,
        )
        if self._shard.is_prepared_otherwise(parameters):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "already prepared with other limits")
        with _errors_answered(context):
            size = self._pipeline.call(partial(self._shard.prepare, parameters)).result()
        return pb.PrepareResponse(num_blocks=size.num_blocks, block_size=size.block_size, kv_cache_bytes=size.kv_cache_bytes)

    def Run(self, request_iterator: Iterator[pb.RunRequest], context: grpc.ServicerContext) -> Iterator[pb.StepResult]:  # noqa: N802
        runner = self._shard.runner
        if runner is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "Prepare comes before Run")
            raise AssertionError("abort raises")
        if not self._run_lock.acquire(blocking=False):
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another Run stream is open")
        stream = PlanStream(runner)
        try:
            context.add_callback(stream.end)
            threading.Thread(target=self._feed, args=(request_iterator, stream), daemon=True, name="plans").start()
            with _errors_answered(context):
                while (answer := stream.answers.get()) is not None:
                    answered = answer.result()
                    yield message_from_result(answered.result, answered.compute_us)
        finally:
            stream.steps.masks.close()
            # The router of this stream is gone, or out of step: what it had told about its sequences is void.
            with contextlib.suppress(RuntimeError):  # the pipeline is closed
                self._pipeline.forget_all(stream.steps).result()
            self._run_lock.release()

    def Health(self, request: pb.HealthRequest, context: grpc.ServicerContext) -> pb.HealthResponse:  # noqa: ARG002, N802
        runner = self._shard.runner
        num_sequences = len(runner.mirrors) if runner is not None else 0
        return pb.HealthResponse(last_step_id=self._pipeline.last_step_id, num_sequences=num_sequences)

    def _feed(self, messages: Iterator[pb.RunRequest], stream: PlanStream) -> None:
        """Hands plans to the pipeline as they come, so that reading and translating one is done while another computes."""
        try:
            for message in messages:
                if message.WhichOneof("request") == "late_masks":
                    stream.steps.masks.put(message.late_masks.step_id, masks_from_message(message.late_masks))
                else:
                    stream.answers.put(self._pipeline.submit(plan_from_message(message.plan), stream.steps))
        except (grpc.RpcError, RuntimeError):
            pass  # the call was cancelled, or the server is going down
        finally:
            stream.end()


@contextlib.contextmanager
def _errors_answered(context: grpc.ServicerContext) -> Iterator[None]:
    """Turns what goes wrong inside into a status. Messages may name token ids, so they go to the router and not to the log."""
    try:
        yield
    except ValueError as error:
        log.error("refused what the router sent")
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except CancelledError:
        context.abort(grpc.StatusCode.UNAVAILABLE, "the shard is shutting down")
    except torch.OutOfMemoryError as error:
        log.error("out of device memory")
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
    except Exception as error:
        log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")
