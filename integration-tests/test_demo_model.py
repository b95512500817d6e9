"""The server as it starts without a model: the demo model answers in words, calls tools, fills schemas, and says what it is.

Everything is greedy, so that an answer is the same on every run.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from demo_cases import SCHEMA_CASES, TIMER, TOOL_CASES, WEATHER, Expected, is_sensible
from serving import Server, serve

CONVERSATION = [
    {"role": "user", "content": "My name is Maria."},
    {"role": "assistant", "content": "Nice to meet you, Maria!"},
    {"role": "user", "content": "What is my name?"},
]


@pytest.fixture(scope="module")
def demo() -> Iterator[Server]:
    with serve(None) as running:
        yield running


def body(said: str | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
    return {"messages": messages, "temperature": 0, "max_tokens": 200} | more


def answer(server: Server, said: str | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The message of the one choice, which ends by itself."""
    response = server.post("/v1/chat/completions", body(said, **more))
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    assert choice["finish_reason"] in ("stop", "tool_calls"), choice
    return dict(choice["message"])


@pytest.mark.parametrize("greeting", ["Hello", "Hi there", "good morning"])
def test_a_greeting_is_answered_with_words(demo: Server, greeting: str) -> None:
    words = answer(demo, greeting)["content"].split()
    assert 2 <= len(words) <= 30
    assert words[0].strip("!,.") in ("Hello", "Hi", "Good")


@pytest.mark.parametrize("question", ["What is this?", "What is text-gen?"])
def test_the_server_can_be_asked_what_it_is(demo: Server, question: str) -> None:
    said = answer(demo, question)["content"]
    assert "text-gen" in said
    assert "server" in said


def test_a_turn_remembers_the_one_before(demo: Server) -> None:
    assert "Maria" in answer(demo, CONVERSATION)["content"]


@pytest.mark.parametrize(("question", "tools", "name", "expected"), TOOL_CASES, ids=[case[0] for case in TOOL_CASES])
def test_a_required_call_is_the_one_that_was_asked_for(
    demo: Server, question: str, tools: list[dict[str, Any]], name: str, expected: Expected
) -> None:
    message = answer(demo, question, tools=tools, tool_choice="required")
    [call] = message["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == name
    assert is_sensible(arguments, expected), arguments


@pytest.mark.parametrize(("said", "schema", "expected"), SCHEMA_CASES, ids=[case[0] for case in SCHEMA_CASES])
def test_an_answer_held_to_a_schema_has_the_values_that_were_told(
    demo: Server, said: str, schema: dict[str, Any], expected: Expected
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    value = json.loads(answer(demo, said, response_format=form)["content"])
    jsonschema.validate(value, schema)
    assert is_sensible(value, expected), value


def test_the_weather_tool_is_called_for_a_question_about_the_weather(demo: Server) -> None:
    message = answer(demo, "What is the weather like in Oslo?", tools=[WEATHER, TIMER], tool_choice="auto")
    [call] = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"location": "Oslo"}


@pytest.mark.parametrize("greeting", ["Hello", "Thank you!"])
def test_no_tool_is_called_for_a_greeting(demo: Server, greeting: str) -> None:
    message = answer(demo, greeting, tools=[WEATHER], tool_choice="auto")
    assert not message.get("tool_calls")
    assert message["content"]


STREAMED: dict[str, dict[str, Any]] = {
    "a greeting": body("Hello"),
    "a question": body("Why is the sky blue?"),
    "a story": body("Write a short story about a fox named Ruby."),
    "a conversation": body(CONVERSATION),
}


@pytest.mark.parametrize("asked", STREAMED.values(), ids=STREAMED)
def test_a_streamed_answer_is_the_whole_one_in_pieces(demo: Server, asked: dict[str, Any]) -> None:
    whole = demo.post("/v1/chat/completions", asked).json()["choices"][0]
    pieces, ends = [], []
    with demo.client() as client, client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            [choice] = json.loads(line.removeprefix("data: "))["choices"]
            pieces.append(choice["delta"].get("content") or "")
            ends.append(choice["finish_reason"])
    assert "".join(pieces) == whole["message"]["content"]
    assert len(pieces) > 3
    assert [end for end in ends if end] == [whole["finish_reason"]]


def test_info_and_log_say_that_it_is_the_demo_model_and_how_to_choose_another(demo: Server, llama_folder: Path) -> None:
    info = demo.get("/info").json()
    assert info["model_id"] == "text-gen-demo"
    assert "--model-id" in info["demo_model"]
    assert any("demo model" in line and "--model-id" in line for line in demo.log)
    with serve(llama_folder) as other:
        assert "demo_model" not in other.get("/info").json()
        assert not any("demo model" in line for line in other.log)
