"""Sampling is a function of seed, position and history: it does not depend on the batch, on streaming, or on chance."""

import json
from collections.abc import Iterator
from typing import Any

from serving import Server

PARAMETERS: dict[str, Any] = {"do_sample": True, "temperature": 1.1, "top_k": 40, "top_p": 0.95, "max_new_tokens": 24}
PROMPTS = ["def read(path):", "import os", "class Reader:", "for line in file:", "return self", "x = 1", "print(", "with open"]


def stream_events(server: Server, prompt: str, **parameters: Any) -> Iterator[dict[str, Any]]:
    body = {"inputs": prompt, "parameters": {"details": True} | parameters}
    with server.client() as client, client.stream("POST", "/generate_stream", json=body) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch(server: Server) -> None:
    alone = [server.token_ids(prompt, seed=seed, **PARAMETERS) for seed, prompt in enumerate(PROMPTS)]
    together = server.token_ids_together([PROMPTS[0]] * 8, seed=0, **PARAMETERS)
    assert together == [alone[0]] * 8
    assert [server.token_ids(prompt, seed=seed, **PARAMETERS) for seed, prompt in enumerate(PROMPTS)] == alone


def test_different_seeds_give_different_tokens(server: Server) -> None:
    outputs = {tuple(server.token_ids(PROMPTS[0], seed=seed, **PARAMETERS)) for seed in range(8)}
    assert len(outputs) > 6


def test_without_a_seed_every_answer_differs_and_the_details_name_a_seed_that_repeats_it(server: Server) -> None:
    first = server.generate(PROMPTS[0], **PARAMETERS)
    second = server.generate(PROMPTS[0], **PARAMETERS)
    assert first["generated_text"] != second["generated_text"]
    again = server.generate(PROMPTS[0], seed=first["details"]["seed"], **PARAMETERS)
    assert again["generated_text"] == first["generated_text"]


def test_streamed_equals_not_streamed(server: Server) -> None:
    for parameters in (PARAMETERS | {"seed": 3}, {"max_new_tokens": 24}, {"max_new_tokens": 24, "stop": ["e"]}):
        whole = server.generate(PROMPTS[2], **parameters)
        events = list(stream_events(server, PROMPTS[2], **parameters))
        assert [event["token"] for event in events] == whole["details"]["tokens"]
        assert events[-1]["generated_text"] == whole["generated_text"]
        assert events[-1]["details"]["finish_reason"] == whole["details"]["finish_reason"]
        assert all(event["generated_text"] is None for event in events[:-1])


def test_chat_deltas_concatenate_to_the_whole_answer(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 24, "seed": 5, "temperature": 1.0}
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    text = ""
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        for choice in json.loads(line)["choices"]:
            text += choice["delta"].get("content") or ""
    assert text == whole


def test_best_of_returns_the_most_likely_of_its_sequences(server: Server) -> None:
    best = server.generate(PROMPTS[0], best_of=4, **PARAMETERS)["details"]
    candidates = [
        {"tokens": best["tokens"], "generated_text": None},
        *best["best_of_sequences"],
    ]
    assert len(candidates) == 4
    scores = [sum(token["logprob"] for token in candidate["tokens"]) for candidate in candidates]
    assert scores[0] == max(scores)
    assert len({tuple(token["id"] for token in candidate["tokens"]) for candidate in candidates}) == 4


def test_n_choices_of_a_chat_differ_and_come_in_order(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, "n": 3, "seed": 5, "temperature": 1.3}
    choices = server.post("/v1/chat/completions", body).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in choices}) == 3
