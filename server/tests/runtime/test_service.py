"""A shard over a real unix socket: the protocol of `shard.proto`, its refusals, and its ends."""

import json
import math
import queue
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from text_gen_server.ops.choose import choose_cpu_dtype
from text_gen_server.pb import shard_pb2 as pb
from text_gen_server.pb.shard_pb2_grpc import ShardStub

PROMPT = [300, 1200, 17, 2500, 900]
GREEDY: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
SAMPLED: dict[str, Any] = {**GREEDY, "do_sample": True, "temperature": 1.5, "seed": 2**63 + 5}
LIMITS: dict[str, int] = {"max_batch_prefill_tokens": 256, "max_batch_size": 16, "max_total_tokens": 512}


class Shard:
    """A `text-gen-server serve` of its own process, and a client."""

    def __init__(self, model: Path, folder: Path, *flags: str, rank: int = 0) -> None:
        self.socket = folder / f"shard-{rank}.sock"
        command = [sys.executable, "-m", "text_gen_server.cli", "serve", "--model-dir", str(model), "--rank", str(rank)]
        command += ["--socket", str(self.socket), "--supervised", "--json-output", "--num-threads", "1", *flags]
        self.log = (folder / f"shard-{rank}.log").open("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self.log)
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 50)]
        options += [("grpc.max_reconnect_backoff_ms", 50), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"unix:{self.socket}", options=options)
        self.stub = ShardStub(self.channel)

    def info(self) -> pb.InfoResponse:
        return self.stub.Info(pb.InfoRequest(), wait_for_ready=True, timeout=60)

    def prepare(self, **limits: int) -> pb.PrepareResponse:
        return self.stub.Prepare(pb.PrepareRequest(**{**LIMITS, **limits}), timeout=60)

    def num_sequences(self) -> int:
        return self.stub.Health(pb.HealthRequest(), timeout=10).num_sequences

    def end(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self.log.close()


class Stream:
    """One Run call; `send` does not wait."""

    def __init__(self, shard: Shard) -> None:
        self.requests: queue.SimpleQueue[pb.RunRequest | None] = queue.SimpleQueue()
        self.call = shard.stub.Run(iter(self.requests.get, None), timeout=60)
        self.step_id = 0

    def send(self, *rows: pb.Row, add: tuple[pb.NewSequence, ...] = (), **more: Any) -> None:
        self.step_id += 1
        self.send_plan(pb.StepPlan(step_id=self.step_id, rows=rows, new_sequences=add, **more))

    def send_plan(self, plan: pb.StepPlan) -> None:
        self.requests.put(pb.RunRequest(plan=plan))

    def send_late(self, step_id: int, *masks: pb.TokenMask) -> None:
        self.requests.put(pb.RunRequest(late_masks=pb.StepMasks(step_id=step_id, masks=masks)))

    def receive(self) -> pb.StepResult:
        return next(self.call)

    def status(self) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as caught:
            for _ in self.call:
                pass
        return caught.value.code()

    def end(self) -> None:
        self.requests.put(None)
        assert list(self.call) == []


def new(sequence_id: int, tokens: list[int] = PROMPT, sampling: dict[str, Any] = GREEDY, **more: Any) -> pb.NewSequence:
    fields = {"prompt_len": len(tokens), "sampling": pb.SamplingParameters(**sampling), **more}
    return pb.NewSequence(sequence_id=sequence_id, token_ids=tokens, **fields)


def row(sequence_id: int, count: int = 1, *blocks: int, masked: bool = False) -> pb.Row:
    return pb.Row(sequence_id=sequence_id, num_scheduled_tokens=count, new_block_ids=blocks, masked=masked)


def only(sequence_id: int, *token_ids: int) -> pb.TokenMask:
    """The mask that allows these tokens."""
    bits = sum(1 << token_id for token_id in token_ids)
    return pb.TokenMask(sequence_id=sequence_id, allowed=bits.to_bytes(4096 // 8, "little"))


def generate(shard: Shard, count: int, *, sampling: dict[str, Any], ids: tuple[int, ...] = (1,)) -> list[list[int]]:
    """Tokens of each sequence. Every plan is sent before the answer to the one before it is read."""
    stream = Stream(shard)
    stream.send(*(row(n, len(PROMPT), 2 * n, 2 * n + 1) for n in ids), add=tuple(new(n, sampling=sampling) for n in ids))
    tokens: list[list[int]] = [[] for _ in ids]
    for step in range(count):
        if step + 1 < count:
            stream.send(*(row(n) for n in ids))
        result = stream.receive()
        assert result.step_id == step + 1
        for found, answer in zip(tokens, result.rows, strict=True):
            found.append(answer.token.token_id)
    stream.send(forget=ids)
    assert list(stream.receive().rows) == []
    stream.end()
    return tokens


@pytest.fixture(scope="module")
def shard(babbling_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    shard = Shard(babbling_folder, tmp_path_factory.mktemp("shard"))
    shard.info()
    with pytest.raises(grpc.RpcError) as caught:
        next(shard.stub.Run(iter([pb.RunRequest(plan=pb.StepPlan(step_id=1))])))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    shard.prepare()
    yield shard
    shard.end()


def test_info_says_what_was_loaded(shard: Shard) -> None:
    info = shard.info()
    dtype = str(choose_cpu_dtype()).removeprefix("torch.")
    assert (info.protocol_version, info.architecture, info.device, info.dtype) == (1, "llama", "cpu", dtype)
    assert (info.rank, info.world_size, info.vocab_size, info.max_model_len) == (0, 1, 4096, 4096)
    assert len(info.model_fingerprint) == 64


def test_the_socket_is_for_its_user_only(shard: Shard) -> None:
    assert stat.S_IMODE(shard.socket.stat().st_mode) & 0o077 == 0


def test_prepare_again_gives_the_same_and_with_other_limits_is_refused(shard: Shard) -> None:
    assert shard.prepare().num_blocks == 16 * 512 // shard.prepare().block_size
    with pytest.raises(grpc.RpcError) as caught:
        shard.prepare(max_batch_size=17)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_decode_rows_follow_without_token_ids_before_the_answer_was_seen(shard: Shard) -> None:
    [tokens] = generate(shard, 12, sampling=GREEDY)
    assert len(set(tokens)) > 6, "the babbling model does not repeat itself"
    assert shard.num_sequences() == 0


def test_a_seeded_sequence_gives_the_same_tokens_alone_and_in_a_batch_of_8(shard: Shard) -> None:
    alone = generate(shard, 10, sampling=SAMPLED)
    assert generate(shard, 10, sampling=SAMPLED, ids=tuple(range(8))) == alone * 8


def test_a_preempted_sequence_continues_exactly(shard: Shard) -> None:
    [expected] = generate(shard, 8, sampling=SAMPLED)
    stream = Stream(shard)
    stream.send(row(1, 5, 3), add=(new(1, sampling=SAMPLED),))
    stream.send(row(1))
    tokens = [stream.receive().rows[0].token.token_id for _ in range(2)]
    again = new(1, PROMPT + tokens, SAMPLED, prompt_len=len(PROMPT))
    stream.send(row(1, 7, 9), add=(again,), forget=(1,))
    for _ in range(5):
        stream.send(row(1))
    assert tokens + [stream.receive().rows[0].token.token_id for _ in range(6)] == expected
    stream.end()


def test_prompt_logprobs_and_top_tokens_cross_the_wire(shard: Shard) -> None:
    stream = Stream(shard)
    stream.send(row(1, 3, 0), add=(new(1, sampling={**GREEDY, "prompt_logprobs": True, "num_top_tokens": 4}),))
    [chunk] = stream.receive().rows
    assert (len(chunk.prompt_logprobs), chunk.WhichOneof("outcome")) == (3, None)
    stream.send(row(1, 2))
    [last] = stream.receive().rows
    assert len(last.prompt_logprobs) == 1
    assert last.token.top_tokens[0].token_id == last.token.token_id
    assert last.token.top_tokens[0].logprob == pytest.approx(last.token.logprob)
    stream.end()


def test_a_masked_row_samples_what_its_mask_allows_whether_the_mask_comes_with_the_plan_or_after_it(shard: Shard) -> None:
    stream = Stream(shard)
    stream.send(row(1, 5, 0, masked=True), row(2, 5, 1), add=(new(1), new(2)), masks=[only(1, 70)])
    stream.send(row(1, masked=True), row(2))
    free = [[row.token.token_id for row in stream.receive().rows]]
    assert free[0][0] == 70
    stream.send(row(1, masked=True), row(2))
    stream.send_late(2, only(1, 71))
    stream.send_late(3, only(1, 72, 73))
    free += [[row.token.token_id for row in stream.receive().rows] for _ in range(2)]
    assert free[1][0] == 71
    assert free[2][0] in (72, 73)
    stream.send(forget=(1, 2))
    stream.receive()
    stream.end()
    assert [tokens[1] for tokens in free] == generate(shard, 3, sampling=GREEDY)[0], "the row beside it is not touched"


def test_top_tokens_are_those_that_the_mask_allows(shard: Shard) -> None:
    stream = Stream(shard)
    stream.send(row(1, 5, 0, masked=True), add=(new(1, sampling={**GREEDY, "num_top_tokens": 4}),), masks=[only(1, 70, 90)])
    token = stream.receive().rows[0].token
    stream.end()
    assert {top.token_id for top in token.top_tokens} == {70, 90}
    assert sum(math.exp(top.logprob) for top in token.top_tokens) == pytest.approx(1)


def test_an_empty_mask_allows_every_token(shard: Shard) -> None:
    stream = Stream(shard)
    stream.send(row(1, 5, 0, masked=True), add=(new(1),))
    stream.send_late(1, pb.TokenMask(sequence_id=1))
    token = stream.receive().rows[0].token.token_id
    stream.end()
    assert [token] == generate(shard, 1, sampling=GREEDY)[0]


def test_a_step_that_waits_for_a_mask_ends_with_its_stream(shard: Shard) -> None:
    stream = Stream(shard)
    stream.send(row(1, 5, 0, masked=True), add=(new(1),))
    wait_until(lambda: shard.num_sequences() == 1)
    stream.call.cancel()
    wait_until(lambda: shard.num_sequences() == 0)
    assert len(generate(shard, 2, sampling=GREEDY)[0]) == 2


def test_a_late_mask_of_the_wrong_size_ends_the_stream(shard: Shard) -> None:
    stream = Stream(shard)
    stream.send(row(1, 5, 0, masked=True), add=(new(1),))
    stream.send_late(1, pb.TokenMask(sequence_id=1, allowed=b"\xff"))
    assert stream.status() == grpc.StatusCode.INVALID_ARGUMENT
    assert shard.num_sequences() == 0


BAD_PLANS: dict[str, dict[str, Any]] = {
    "token id": {"rows": [row(9, 1, 0)], "new_sequences": [new(9, [4096])]},
    "block id": {"rows": [row(9, 5, 1 << 31)], "new_sequences": [new(9)]},
    "unknown sequence": {"rows": [row(9)]},
    "unknown sequence to forget": {"forget": [9]},
    "sequence doubled": {"new_sequences": [new(9), new(9)]},
    "nothing scheduled": {"rows": [row(9, 0, 0)], "new_sequences": [new(9)]},
    "too much scheduled": {"rows": [row(9, 6, 0)], "new_sequences": [new(9)]},
    "no blocks": {"rows": [row(9, 5)], "new_sequences": [new(9)]},
    "not a number": {"rows": [row(9, 5, 0)], "new_sequences": [new(9, sampling={**GREEDY, "temperature": float("nan")})]},
    "mask of another vocabulary": {"new_sequences": [new(9)], "masks": [pb.TokenMask(sequence_id=9, allowed=b"1234")]},
    "sampling parameters left out": {"rows": [row(9, 5, 0)], "new_sequences": [pb.NewSequence(sequence_id=9, token_ids=[1])]},
}


@pytest.mark.parametrize("bad", BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_bad_plan_ends_the_stream_and_the_next_stream_starts_clean(shard: Shard, bad: dict[str, Any]) -> None:
    stream = Stream(shard)
    stream.send_plan(pb.StepPlan(step_id=1, **bad))
    stream.send_plan(pb.StepPlan(step_id=777))  # waits behind it, and is never run
    assert stream.status() == grpc.StatusCode.INVALID_ARGUMENT
    assert shard.stub.Health(pb.HealthRequest(), timeout=10).last_step_id != 777
    assert shard.num_sequences() == 0
    assert len(generate(shard, 2, sampling=GREEDY)[0]) == 2


def test_a_second_stream_is_refused_while_one_is_open(shard: Shard) -> None:
    first, second = Stream(shard), Stream(shard)
    first.send()
    first.receive()
    assert second.status() == grpc.StatusCode.FAILED_PRECONDITION
    first.send()
    assert first.receive().step_id == 2
    first.end()


def test_the_sequences_of_a_router_that_went_away_are_dropped(shard: Shard) -> None:
    stream = Stream(shard)
    stream.send(row(1, 5, 0), add=(new(1),))
    stream.receive()
    assert shard.num_sequences() == 1
    stream.call.cancel()
    wait_until(lambda: shard.num_sequences() == 0)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_ranks_give_the_tokens_of_one(shard: Shard, babbling_folder: Path, tmp_path: Path) -> None:
    expected = generate(shard, 8, sampling=GREEDY, ids=(0, 1))
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    flags = ("--world-size", "2", "--rendezvous-dir", str(meeting))
    ranks = [Shard(babbling_folder, tmp_path, *flags, rank=rank) for rank in range(2)]
    try:
        assert [rank.info().rank for rank in ranks] == [0, 1]
        with ThreadPoolExecutor(2) as pool:
            sizes = list(pool.map(lambda rank: rank.prepare(), ranks))
        assert sizes[0].num_blocks == sizes[1].num_blocks
        streams = [Stream(rank) for rank in ranks]
        tokens: list[list[int]] = [[], []]
        for step in range(8):
            for stream in streams:
                if step == 0:
                    stream.send(row(0, 5, 3), row(1, 5, 8), add=(new(0), new(1)))
                else:
                    stream.send(row(0), row(1))
            first, second = (stream.receive() for stream in streams)
            assert list(second.rows) == []
            for found, answer in zip(tokens, first.rows, strict=True):
                found.append(answer.token.token_id)
        assert tokens == expected
    finally:
        for rank in ranks:
            rank.end()


def test_sigterm_ends_a_shard_in_use_with_code_0_and_takes_the_socket_away(babbling_folder: Path, tmp_path: Path) -> None:
    shard = Shard(babbling_folder, tmp_path)
    try:
        shard.info()
        shard.prepare()
        stream = Stream(shard)
        stream.send(row(1, 5, 0), add=(new(1),))
        stream.receive()
        shard.process.send_signal(signal.SIGTERM)
        assert shard.process.wait(timeout=5) == 0
        assert not shard.socket.exists()
    finally:
        shard.end()


def test_the_end_of_stdin_ends_a_supervised_shard_at_once(babbling_folder: Path, tmp_path: Path) -> None:
    shard = Shard(babbling_folder, tmp_path)
    try:
        assert shard.process.stdin is not None
        shard.info()
        shard.process.stdin.close()
        shard.process.wait(timeout=2)
    finally:
        shard.end()


def test_the_log_is_json_and_has_the_arithmetic_of_the_kv_cache_but_no_token_id(shard: Shard) -> None:
    shard.log.seek(0)
    lines = [json.loads(line) for line in shard.log]
    messages = [line["fields"]["message"] for line in lines]
    assert any("KV cache: (" in message and "blocks" in message for message in messages)
    assert {line["target"] for line in lines} == {"text_gen_server"}
    assert not any("4096 is not below" in message for message in messages)
