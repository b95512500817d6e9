"""The comparison of servers: its model, its clients, its verdicts. Servers are scripted here."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from bench.bars import Medians, judge
from bench.cases import Sizes, arrivals, percentile, shared_prefix
from bench.limits import Machine
from bench.load import Client, Job, LoadError, PromptMaker
from bench.model import SHAPES, words, write_model
from bench.peers import Peers, own_command
from bench.plot import draw
from bench.report import tables
from bench.run import Comparison, Plan
from bench.servers import Command, Server
from bench.spread import spread_loop
from bench.timeline import Step, idle_times, read_steps
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), TINY)


def test_every_word_is_one_token_also_between_others(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == TINY.vocab_size
    ids = tokenizer.encode("".join(words(TINY))).ids
    assert len(ids) == len(words(TINY)) == len(set(ids))


def test_the_same_seed_gives_the_same_files_and_another_does_not(folder, tmp_path):
    weights = (folder / "model.safetensors").read_bytes()
    assert (write_model(tmp_path / "same", TINY) / "model.safetensors").read_bytes() == weights
    assert (write_model(tmp_path / "other", TINY, seed=1) / "model.safetensors").read_bytes() != weights


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_model_and_its_answers_are_whole_words(tied, tmp_path):
    folder = write_model(tmp_path, replace(TINY, tie_word_embeddings=tied))
    model = AutoModelForCausalLM.from_pretrained(folder)
    embeddings = (1 if tied else 2) * TINY.vocab_size * TINY.hidden_size
    norms = (2 * TINY.num_layers + 1) * TINY.hidden_size
    assert sum(weight.numel() for weight in model.parameters()) == TINY.num_body_parameters + embeddings + norms
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode(PromptMaker(words(TINY), 0).prompt(20)).ids
    answer = model.generate(inputs=model.dummy_inputs["input_ids"].new_tensor([prompt]), max_new_tokens=30, do_sample=False)
    answered = answer[0, len(prompt) :].tolist()
    assert len(answered) == 30
    assert min(answered) > 258, "no special token and no byte"


class ScriptedServer:
    """Streams as many tokens as it is asked for, one every `gap_secs`, or what it is told instead."""

    def __init__(self, gap_secs: float = 0.0, num_tokens: int | None = None, lines: list[str] | None = None) -> None:
        self.gap_secs, self.num_tokens, self.lines = gap_secs, num_tokens, lines
        self.prompts: list[str] = []
        self.num_at_once = self.most_at_once = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.prompts.append(body["prompt"])
        self.num_at_once += 1
        self.most_at_once = max(self.most_at_once, self.num_at_once)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        try:
            for line in self.lines or self._answer(body):
                await asyncio.sleep(self.gap_secs)
                await response.write(f"data: {line}\n\n".encode())
        finally:
            self.num_at_once -= 1
        return response

    def _answer(self, body: dict) -> list[str]:
        count = self.num_tokens or body["max_tokens"]
        tokens = [json.dumps({"choices": [{"text": " baba"}]})] * count
        usage = {"completion_tokens": count, "prompt_tokens": body["prompt"].count(" ")}
        return [*tokens, json.dumps({"choices": [], "usage": usage}), "[DONE]"]

    def run(self, send):
        """What `send` returns, given a client of this server."""

        async def serve():
            app = web.Application()
            app.router.add_post("/v1/completions", self.complete)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            try:
                async with Client(f"http://127.0.0.1:{port}", "model") as client:
                    return await send(client)
            finally:
                await runner.cleanup()

        return asyncio.run(serve())


def test_a_closed_loop_keeps_as_many_requests_open_as_it_has_clients():
    server = ScriptedServer(gap_secs=0.002)
    jobs = PromptMaker(words(TINY), 0).jobs(9, 5, 4)
    answers = server.run(lambda client: client.closed_loop(jobs, 3))
    assert server.most_at_once == 3
    assert sorted(server.prompts) == sorted(job.prompt for job in jobs)
    assert [(answer.num_tokens, answer.num_prompt_tokens) for answer in answers] == [(4, 5)] * 9
    assert all(len(answer.gaps()) == 3 and answer.ttft > 0 for answer in answers)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (ScriptedServer(num_tokens=3), "3 of 4 tokens"),
        (ScriptedServer(lines=[json.dumps({"error": {"message": "broken"}})]), "no token"),
        (ScriptedServer(lines=[json.dumps({"choices": [{"text": "a"}]}), '{"error": "broken"}']), "broken"),
        (ScriptedServer(lines=[json.dumps({"choices": [{"text": "a"}]}), "[DONE]"]), "did not count"),
    ],
)
def test_an_answer_that_is_not_as_asked_is_an_error(server, message):
    with pytest.raises(LoadError, match=message):
        server.run(lambda client: client.complete(Job(" baba", 4)))


def test_prompts_arrive_only_once_all_streams_run_and_the_streams_are_then_left():
    server = ScriptedServer(gap_secs=0.002)
    sizes = Sizes(num_running=3, num_quiet_tokens=5, running_len=5000, num_long_prompts=2, long_prompt_len=50, prompt_len=4)
    values = server.run(lambda client: arrivals(client, PromptMaker(words(TINY), 0), sizes))
    lengths = [prompt.count(" ") for prompt in server.prompts]
    assert lengths == [4, 4, 4, 50, 50]
    assert server.num_at_once == 0
    assert values["p99_to_quiet"] == pytest.approx(values["itl_p99_ms"] / values["quiet_itl_ms"])


def test_a_running_stream_that_ends_early_spoils_the_case():
    server = ScriptedServer(gap_secs=0.002)
    sizes = Sizes(num_running=2, num_quiet_tokens=5, running_len=4, num_long_prompts=1, long_prompt_len=9)
    with pytest.raises(LoadError, match="ended"):
        server.run(lambda client: arrivals(client, PromptMaker(words(TINY), 0), sizes))


def test_the_cold_and_warm_prompts_share_the_prefix_and_nothing_else():
    server = ScriptedServer()
    sizes = Sizes(prefix_len=40, tail_len=6, num_sharing=3)
    server.run(lambda client: shared_prefix(client, PromptMaker(words(TINY), 0), sizes))
    apart, sharing = server.prompts[:3], server.prompts[3:]
    assert len({prompt[: 40 * 5] for prompt in sharing}) == 1
    assert len({prompt[:5] for prompt in [*apart, sharing[0]]}) == 4, "not even the first word"
    assert [prompt.count(" ") for prompt in server.prompts] == [46] * 9
    assert len(set(server.prompts)) == 9


def test_a_percentile_is_a_measured_value():
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile(list(map(float, range(100))), 99) == 99.0
    with pytest.raises(LoadError):
        percentile([], 99)


def rows(server: str, case: str, *repeats: dict[str, float]) -> list[dict[str, object]]:
    return [{"kind": "case", "server": server, "case": case, "repeat": n, **values} for n, values in enumerate(repeats)]


MACHINE = Machine(bytes_per_s=20e9, flops=270e9)


def verdicts(measured: list[dict[str, object]]) -> dict[str, bool | None]:
    return {bar.what: bar.passed for bar in judge(Medians(measured), SHAPES["135m"], MACHINE, 128, 64)}


def test_bars_are_judged_by_the_medians_and_by_the_best_peer():
    measured = [
        *rows("ours:bfloat16", "streams-1", {"tpot_ms": 90.0}, {"tpot_ms": 15.0}, {"tpot_ms": 16.0}),
        *rows("llama:bf16", "streams-1", {"tpot_ms": 23.0}),
        *rows("llama:f16", "streams-1", {"tpot_ms": 17.0}),
        *rows("ours:bfloat16", "streams-8", {"tokens_per_s": 210.0}),
        *rows("llama:f16", "streams-8", {"tokens_per_s": 90.0}),
        *rows("vllm:float32", "streams-8", {"tokens_per_s": 110.0}),
        *rows("ours:bfloat16", "arrivals", {"p99_to_quiet": 3.1}),
    ]
    found = verdicts(measured)
    assert found["1 stream, bf16, ms per token (13.4 at best)"] is True
    assert found["1 stream, bf16, times faster than llama:bf16"] is True
    assert found["1 stream, bf16, times faster than llama:f16"] is False
    assert found["8 streams, tokens/s to the best peer's"] is False
    assert found["8 streams, tokens/s to the limit"] is True
    assert found["ours:bfloat16: inter-token p99 to the quiet median, prompts arriving"] is False


def test_what_was_not_measured_does_not_pass():
    assert set(verdicts([]).values()) == {None}


def test_the_limit_of_many_streams_is_arithmetic_and_of_few_is_reading():
    shape = SHAPES["135m"]
    one, many = (MACHINE.tokens_per_s(shape, 2 * shape.num_parameters, count, 0, 64) for count in (1, 1000))
    assert one == pytest.approx(20e9 / (2 * shape.num_parameters))
    assert many == pytest.approx(270e9 / (2 * shape.num_parameters))


def test_report_and_plot_name_every_server_and_escape_what_they_show():
    measured = [
        *rows("ours:auto", "streams-8", {"tokens_per_s": 100.0, "client_cpu": 0.1}),
        *rows("a<b", "streams-8", {"tokens_per_s": 50.0, "client_cpu": 0.2}),
    ]
    medians = Medians(measured)
    error = {"server": "vllm:float32", "case": "start", "error": "exit code 1"}
    text = tables(medians, [], [error])
    assert "| a<b | 50.0 (x0.50) | 0.20 |" in text
    assert "- vllm:float32, start: exit code 1" in text
    svg = ElementTree.fromstring(draw(medians))
    labels = {element.text for element in svg.iter() if element.tag.endswith("text")}
    assert {"ours:auto", "a<b"} <= labels


# A server in a process of its own: every answer is two events, the second of which counts the tokens as asked.
SMALL_SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["prompt"] == "refuse":
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b"no such prompt")
            return
        usage = {"completion_tokens": body["max_tokens"], "prompt_tokens": body["prompt"].count(" ")}
        events = [{"choices": [{"text": " a"}]}, {"choices": [{"text": " b"}], "usage": usage}]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("".join(f"data: {json.dumps(event)}\\n\\n" for event in events).encode())

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def small_server(tmp_path):
    script = tmp_path / "small_server.py"
    script.write_text(SMALL_SERVER)
    server = Server(Command("small", [sys.executable, str(script), "{port}"]), tmp_path / "log")
    server.start(30)
    yield server
    server.stop()


def test_a_load_that_is_spread_over_processes_is_answered_once_and_timed_by_one_clock(small_server):
    jobs = [Job(" baba" * n, 2) for n in range(1, 8)]
    begin = time.perf_counter()
    spread = asyncio.run(spread_loop(small_server.url, "model", jobs, num_clients=5, num_processes=3))
    end = time.perf_counter()
    assert sorted(stream.num_prompt_tokens for stream in spread.streams) == list(range(1, 8))
    assert all(begin < stream.sent_at < stream.event_at[0] <= stream.event_at[1] < end for stream in spread.streams)
    assert 0 < spread.seconds < end - begin
    assert spread.client_cpu > 0


def test_an_error_in_one_of_the_processes_is_the_error_of_the_load(small_server):
    jobs = [Job(" baba", 2), Job(" baba", 2), Job("refuse", 2)]
    with pytest.raises(LoadError, match="LoadError: status 400: no such prompt"):
        asyncio.run(spread_loop(small_server.url, "model", jobs, num_clients=2, num_processes=2))


def running_commands() -> list[str]:
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            commands.append(path.read_text(errors="replace"))
    return commands


def test_servers_alternate_case_by_case_and_none_is_left_behind(tmp_path):
    script = tmp_path / "small_server.py"
    script.write_text(SMALL_SERVER)
    commands = [Command(name, [sys.executable, str(script), "{port}"]) for name in ("ours:a", "peer:b")]
    commands.append(Command("peer:broken", [sys.executable, "-c", "raise SystemExit('no such model')"]))
    plan = Plan(
        commands=commands,
        words=words(TINY),
        cases=["streams-1", "long-prompt"],
        sizes=Sizes(prompt_len=4, output_len=2, rounds_1=2, long_prompt_len=30, num_long_prompts=1),
        repeats=2,
        seed=0,
        folder=tmp_path,
    )
    comparison = Comparison(plan)
    comparison.run()
    order = [(row["case"], row["server"], row["repeat"]) for row in comparison.rows if row.get("case") in plan.cases]
    pairs = [(case, repeat) for repeat in (0, 1) for case in plan.cases]
    assert order == [(case, server, repeat) for case, repeat in pairs for server in ("ours:a", "peer:b")]
    assert [(row["server"], row["case"]) for row in comparison.errors] == [("peer:broken", "start")]
    assert "no such model" in str(comparison.errors[0]["error"])
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == len(comparison.rows)
    assert not [command for command in running_commands() if str(script) in command]


def test_a_name_of_ours_is_a_dtype_or_a_format_of_weights(tmp_path):
    def weights(name: str) -> list[str]:
        arguments = list(own_command(name, tmp_path, "launcher", ["--more"]).arguments)
        return arguments[arguments.index("{port}") + 1 :]

    assert weights("ours:bfloat16") == ["--dtype", "bfloat16", "--more"]
    assert weights("ours:int8") == ["--quantize", "int8", "--more"]
    assert weights("ours:auto") == ["--more"]


def test_peers_that_are_not_installed_are_not_compared(tmp_path):
    assert Peers(tmp_path).installed() == []
    with pytest.raises(ValueError, match="no such server: other:f16"):
        Peers(tmp_path).command("other:f16", tmp_path, 2)


def step(*, sent: float, received: float, compute: float) -> Step:
    return Step(1, 0, sent, received, compute, 0.0)


def test_a_shard_is_idle_between_two_results_but_for_what_it_computes() -> None:
    steps = [
        step(sent=0, received=10, compute=10),
        step(sent=1, received=21, compute=10.5),
        step(sent=10, received=31, compute=10),
    ]
    assert idle_times(steps) == [0.5, 0.0]


def test_a_shard_that_had_no_plan_is_not_idle_between_steps() -> None:
    assert idle_times([step(sent=0, received=10, compute=10), step(sent=50, received=60, compute=9)]) == []


def test_steps_are_read_from_a_routers_log_and_other_lines_are_not(tmp_path: Path) -> None:
    fields = {"decode_rows": 2, "prefill_tokens": 3, "sent": 4000, "received": 5000, "compute": 600, "foreseen": 0}
    line = json.dumps({"fields": {"message": "a step", **fields}})
    other = json.dumps({"fields": {"message": "ready"}})
    log = tmp_path / "log"
    log.write_text("\n".join([line, other, "no JSON", line]))
    assert read_steps(log, 1) == [Step(2, 3, 4.0, 5.0, 0.6, 0.0)]
