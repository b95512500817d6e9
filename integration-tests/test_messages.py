"""Anthropic's SDK speaks `/v1/messages`: every object and every event must be one of its types, whole."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic, BadRequestError
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter
from serving import Server

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ASKED: dict[str, Any] = {
    "model": "tgi",
    "messages": [{"role": "user", "content": "Hello there"}],
    "max_tokens": 8,
    "extra_body": {"temperature": 0},
}


class Point(BaseModel):
    """What structured answers are parsed into."""

    x: bool


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
        yield client


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_whole_message_and_its_token_count(client: Anthropic) -> None:
    message = client.messages.create(**ASKED)
    Message.model_validate(message.model_dump(warnings=False))
    assert message.role == "assistant"
    assert message.stop_reason == "max_tokens"
    assert text_of(message)
    usage = message.usage
    assert usage.output_tokens == 8
    counted = client.messages.count_tokens(model="tgi", messages=ASKED["messages"])
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_stream_has_typed_events_and_adds_up_to_the_whole_message(client: Anthropic) -> None:
    events = list(client.messages.create(**ASKED, stream=True))
    for event in events:
        EVENT.validate_python(event.model_dump(warnings=False))
    assert events[0].type == "message_start"
    assert events[-1].type == "message_stop"
    with client.messages.stream(**ASKED) as stream:
        pieces = "".join(stream.text_stream)
        final = stream.get_final_message()
    whole = client.messages.create(**ASKED)
    assert pieces == text_of(final) == text_of(whole)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_async_client(server: Server) -> None:
    async def ask() -> tuple[str, str]:
        async with AsyncAnthropic(base_url=server.url, api_key="unused", max_retries=0) as client:
            whole = await client.messages.create(**ASKED)
            async with client.messages.stream(**ASKED) as stream:
                return text_of(whole), text_of(await stream.get_final_message())

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_the_stop_sequence_that_matched_is_told(client: Anthropic) -> None:
    text = text_of(client.messages.create(**ASKED))
    stop = text[2:5]
    message = client.messages.create(**ASKED, stop_sequences=["never written", stop])
    assert message.stop_reason == "stop_sequence"
    assert message.stop_sequence == stop
    assert text_of(message) == text[: text.index(stop)]


def test_the_system_text_and_a_final_assistant_message_change_the_prompt(client: Anthropic) -> None:
    def count(**extra: Any) -> int:
        return client.messages.count_tokens(**({"model": "tgi", "messages": ASKED["messages"]} | extra)).input_tokens

    assert count(system="Be brief.") > count()
    continued = [*ASKED["messages"], {"role": "assistant", "content": "The answer is ("}]
    assert count(messages=continued) > count()
    assert client.messages.create(**(ASKED | {"messages": continued})).content


def test_structured_answers_are_parsed(client: Anthropic) -> None:
    message = client.messages.parse(**(ASKED | {"max_tokens": 64}), output_format=Point)
    assert message.stop_reason == "end_turn"
    assert isinstance(message.parsed_output, Point)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 20_000}, "max_new_tokens"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
    ],
)
def test_errors_name_what_is_wrong(client: Anthropic, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(BadRequestError, match=named) as raised:
        client.messages.create(**(ASKED | parameters))
    assert raised.value.type == "invalid_request_error"


def test_errors_have_anthropics_shape_for_every_client(server: Server) -> None:
    answer = httpx.post(f"{server.url}/v1/messages", content="{", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
