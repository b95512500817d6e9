"""Keys of a real server: where they come from, that the list can be changed while it serves, and that nobody can read them in
the list of processes."""

import time
from pathlib import Path

from serving import Server, descendants, serve

REREAD_DEADLINE_SECS = 20


def status(server: Server, key: str | None, path: str = "/info") -> int:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    with server.client() as client:
        return client.get(path, headers=headers).status_code


def wait_for_status(server: Server, key: str, expected: int) -> None:
    """Returns when a key is answered so."""
    deadline = time.monotonic() + REREAD_DEADLINE_SECS
    while status(server, key) != expected:
        assert time.monotonic() < deadline, f"{key} is not answered with {expected}"
        time.sleep(0.05)


def test_keys_of_the_flag_the_environment_and_the_file_open_the_server_and_the_file_is_read_again(
    llama_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("team:key-of-file\nkey-without-name\n")
    flags = ("--api-key", "key-of-flag", "--api-key-file", str(file))
    keys = ("key-of-flag", "key-of-list", "key-of-file", "key-without-name")
    with serve(llama_folder, *flags, API_KEYS="a:key-of-list") as server:
        assert {key: status(server, key) for key in keys} == dict.fromkeys(keys, 200)
        assert status(server, None) == status(server, "KEY-OF-FILE") == status(server, "team:key-of-file") == 401
        assert status(server, None, "/health") == 200

        file.write_text("team:new-key-of-file\n")
        wait_for_status(server, "new-key-of-file", 200)
        assert {key: status(server, key) for key in keys[2:]} == dict.fromkeys(keys[2:], 401)
        assert {key: status(server, key) for key in keys[:2]} == dict.fromkeys(keys[:2], 200)

        commands = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(server.process.pid))
        assert commands
        assert b"key-of" not in commands
    assert "key-of" not in "".join(server.log)


def test_what_a_key_used_is_counted_under_its_name(llama_folder: Path) -> None:
    environment = {"API_KEY": "key-of-variable", "API_KEYS": "first:one-key\nsecond:other-key"}
    with serve(llama_folder, **environment) as server, server.client() as client:
        body = {"inputs": "import os", "parameters": {"max_new_tokens": 4}}
        for key, num_requests in (("one-key", 2), ("other-key", 1)):
            for _ in range(num_requests):
                answer = client.post("/generate", json=body, headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == 200, answer.text
        lines = client.get("/metrics", headers={"authorization": "Bearer key-of-variable"}).text.splitlines()
    counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line.startswith("text_gen_tenant_")}
    tokens = {name: value for name, value in counted.items() if "generated" in name}
    assert [value for name, value in tokens.items() if '"first"' in name] == [8.0], counted
    assert [value for name, value in tokens.items() if '"second"' in name] == [4.0], counted
