"""Start, health, stop and death of the whole process tree."""

import os
import signal
import stat
from pathlib import Path

import httpx
from serving import Server, alive, descendants, free_port, launch, serve, wait_gone, wait_ready

GENTLE = ("--max-concurrent-requests", "16")


def started(folder: Path, *flags: str, **environment: str) -> Server:
    port = free_port()
    return Server(launch("--model-id", str(folder), *flags, port=port, **environment), port)


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_health_names_the_loading_phase_until_the_model_is_ready(llama_folder: Path) -> None:
    server = started(llama_folder)
    try:
        phases = set()
        while True:
            assert server.process.poll() is None
            try:
                answer = server.get("/health")
            except httpx.TransportError:
                continue
            if answer.status_code == 200:
                break
            assert answer.status_code == 503
            phases.add(answer.text)
        assert any("load" in phase.lower() for phase in phases), phases
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        server.process.communicate()


def test_the_socket_directory_is_private_and_removed(llama_folder: Path, tmp_path: Path) -> None:
    with serve(llama_folder, TMPDIR=str(tmp_path)):
        folders = [entry for entry in tmp_path.iterdir() if entry.is_dir()]
        assert len(folders) == 1
        assert stat.S_IMODE(folders[0].stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_killed_with_sigkill_leaves_no_process(llama_folder: Path) -> None:
    server = started(llama_folder, "--num-shard", "2")
    try:
        wait_ready(server)
        children = descendants(server.process.pid)
        assert len(children) >= 3
    finally:
        server.process.kill()
    server.process.communicate()
    wait_gone(children, within_secs=2)


def test_a_dead_shard_ends_the_streams_with_an_error_and_the_server_with_a_code(llama_folder: Path) -> None:
    server = started(llama_folder, "--num-shard", "2", *GENTLE)
    try:
        wait_ready(server)
        children = descendants(server.process.pid)
        shard = next(pid for pid in children if "serve" in command_of(pid) and "--rank" in command_of(pid))
        body = {"inputs": "def", "parameters": {"max_new_tokens": 1500, "ignore_eos": True}}
        with server.client() as client, client.stream("POST", "/generate_stream", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data:")
            os.kill(shard, signal.SIGKILL)
            rest = [line for line in lines if line.startswith("data:")]
        assert '"error"' in rest[-1]
        assert server.process.wait(15) != 0
    finally:
        server.process.kill()
        server.process.communicate()
    wait_gone(children, within_secs=2)


def test_sigterm_lets_running_streams_finish(llama_folder: Path) -> None:
    server = started(llama_folder, *GENTLE)
    try:
        wait_ready(server)
        body = {"inputs": "def", "parameters": {"max_new_tokens": 400, "ignore_eos": True}}
        with server.client() as client, client.stream("POST", "/generate_stream", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data:")
            server.process.send_signal(signal.SIGTERM)
            events = [line for line in lines if line.startswith("data:")]
        assert len(events) == 399
        assert '"finish_reason":"length"' in events[-1].replace(" ", "") or '"generated_text":"' in events[-1]
        assert server.process.wait(30) == 0
    finally:
        server.process.kill()
        server.process.communicate()


def test_two_instances_on_one_machine_do_not_disturb_each_other(llama_folder: Path) -> None:
    with serve(llama_folder) as first:
        with serve(llama_folder) as second:
            assert first.port != second.port
            assert first.token_ids("def", max_new_tokens=8) == second.token_ids("def", max_new_tokens=8)
        assert first.token_ids("def", max_new_tokens=4)


def test_the_api_key_is_needed_and_stays_out_of_process_arguments_and_logs(llama_folder: Path) -> None:
    secret = "a-very-secret-key"
    with serve(llama_folder, API_KEY=secret) as server:
        assert all(secret not in command_of(pid) for pid in descendants(server.process.pid) if alive(pid))
        assert server.post("/generate", {"inputs": "def"}).status_code == 401
        assert server.get("/info").status_code == 401
        assert server.get("/health").status_code == 200
        with server.client() as client:
            answer = client.post("/generate", json={"inputs": "def"}, headers={"authorization": f"Bearer {secret}"})
        assert answer.status_code == 200
        assert secret not in "\n".join(server.log)
