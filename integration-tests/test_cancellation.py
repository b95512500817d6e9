"""A client that leaves costs nothing: its blocks are freed, and the others do not notice."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
from serving import Server

NEW_TOKENS = 120
STREAMS = 64


def stream_text(server: Server, prompt: str, leave_after: int | None) -> str | None:
    """The streamed text; `None` when the client left after that many events."""
    body = {"inputs": prompt, "parameters": {"max_new_tokens": NEW_TOKENS, "details": True, "ignore_eos": True}}
    text = ""
    with server.client() as client, client.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200
        events = (line for line in response.iter_lines() if line.startswith("data:"))
        for number, line in enumerate(events):
            if number == leave_after:
                return None
            event = json.loads(line.removeprefix("data:"))
            assert "error" not in event, event
            text += "" if event["token"]["special"] else event["token"]["text"]
            if event["generated_text"] is not None:
                assert event["generated_text"] == text
                assert event["details"]["generated_tokens"] == NEW_TOKENS
    return text


def test_of_64_streams_a_third_is_cancelled_and_the_others_are_complete_and_correct(server: Server) -> None:
    source = random.Random(5)
    prompts = [f"def function_{number}(self):" for number in range(STREAMS)]
    leave_after = [source.randrange(0, NEW_TOKENS // 2) if number % 3 == 0 else None for number in range(STREAMS)]

    with ThreadPoolExecutor(STREAMS) as pool:
        texts = list(pool.map(lambda prompt, leave: stream_text(server, prompt, leave), prompts, leave_after))
    server.wait_until_idle()

    for prompt, leave, text in zip(prompts, leave_after, texts, strict=True):
        if leave is None:
            assert text == stream_text(server, prompt, None), prompt
        else:
            assert text is None
    server.wait_until_idle()


def test_a_client_that_does_not_stream_and_leaves_frees_its_blocks(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=0.3, trust_env=False) as impatient:
        try:
            impatient.post("/generate", json={"inputs": "def", "parameters": {"max_new_tokens": 1500, "ignore_eos": True}})
        except httpx.ReadTimeout:
            pass
        else:
            raise AssertionError("the answer came before the client could leave")
    server.wait_until_idle()
