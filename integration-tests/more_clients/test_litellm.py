"""litellm, over the providers by which people reach a server such as this one."""

import asyncio
import json
from typing import Any

import litellm
import pytest

# The answer is longer than the few tokens that are asked for.
MESSAGES = [{"role": "user", "content": "Tell me a story about a fox."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]},
    },
}


@pytest.fixture
def openai(url: str) -> dict[str, Any]:
    return {"model": "openai/tgi", "api_base": f"{url}/v1", "api_key": "-", "max_tokens": 8, "seed": 1}


def test_a_chat_is_answered_whole_streamed_and_async_with_the_same_text(openai: dict[str, Any]) -> None:
    whole = litellm.completion(messages=MESSAGES, **openai)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 8
    text = whole.choices[0].message.content
    chunks = litellm.completion(messages=MESSAGES, stream=True, **openai)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    answer = asyncio.run(litellm.acompletion(messages=MESSAGES, **openai))
    assert answer.choices[0].message.content == text


def test_a_required_tool_is_called_with_valid_arguments(openai: dict[str, Any]) -> None:
    answer = litellm.completion(messages=MESSAGES, **openai | {"max_tokens": 80, "tools": [WEATHER], "tool_choice": "required"})
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_schema_is_kept(openai: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = litellm.completion(messages=MESSAGES, **openai | {"max_tokens": 40, "response_format": form})
    assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)


def test_a_text_is_completed(openai: dict[str, Any]) -> None:
    answer = litellm.text_completion(prompt="def", **openai | {"model": "text-completion-openai/tgi"})
    assert answer.choices[0].text


def test_a_response_is_given(openai: dict[str, Any]) -> None:
    del openai["max_tokens"], openai["seed"]
    answer = litellm.responses(input="Hello", max_output_tokens=16, **openai)
    assert answer.output[0].content[0].text


def test_the_routes_of_huggingface_and_anthropic_are_reached(url: str) -> None:
    for model in ("huggingface/tgi", "anthropic/tgi"):
        answer = litellm.completion(model=model, api_base=url, api_key="-", messages=MESSAGES, max_tokens=8)
        assert answer.choices[0].message.content


def test_a_mistake_is_a_bad_request(openai: dict[str, Any]) -> None:
    with pytest.raises(litellm.exceptions.BadRequestError, match="temperature"):
        litellm.completion(messages=MESSAGES, **openai | {"temperature": -1})
