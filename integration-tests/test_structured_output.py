"""Answers held to schemas, by random weights that know nothing of JSON: what ends is valid for a validator that is not ours."""

import json
import statistics
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
from schemas import schema
from serving import Server

NUM_SCHEMAS = 300
MAX_TOKENS = 400
# Random weights may fill an answer with what is allowed until it is cut off.
MIN_COMPLETED = 200
STREAMS = 24


def body(number: int, **more: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": f"schema_{number}", "schema": schema(number), "strict": True}}
    messages = [{"role": "user", "content": f"Number {number}, please."}]
    return {"messages": messages, "response_format": form, "max_tokens": MAX_TOKENS, "seed": number, "temperature": 1.0} | more


def validate(text: str, number: int) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema(number), format_checker=checker).validate(json.loads(text))


def test_whatever_ends_by_itself_is_valid_for_300_schemas(server: Server) -> None:
    with server.client() as client, ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(lambda n: client.post("/v1/chat/completions", json=body(n)), range(NUM_SCHEMAS)))
    ends: Counter[str] = Counter()
    compile_ms = []
    for number, answer in enumerate(answers):
        assert answer.status_code == 200, (number, schema(number), answer.text)
        compile_ms.append(int(answer.headers["x-validation-time"]))
        choice = answer.json()["choices"][0]
        ends[choice["finish_reason"]] += 1
        if choice["finish_reason"] == "stop":
            validate(choice["message"]["content"], number)
    assert set(ends) <= {"stop", "length"}
    assert ends["stop"] >= MIN_COMPLETED, ends
    print(f"{ends}; template, tokens and compilation: median {statistics.median(compile_ms)} ms, most {max(compile_ms)} ms")
    assert statistics.median(compile_ms) < 100
