"""OpenAI's SDK speaks `/v1/responses`: every object and every event must be one of its types, whole."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, NotFoundError, OpenAI, UnprocessableEntityError
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from serving import Server

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ASKED: dict[str, Any] = {"model": "tgi", "input": "Hello there", "max_output_tokens": 8, "temperature": 0}


class Point(BaseModel):
    """What structured answers are parsed into."""

    x: bool


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def checked(response: Response) -> Response:
    """The same response; fails where a field does not have its type, which the SDK alone would let pass."""
    return Response.model_validate(response.model_dump(warnings=False))


def test_a_whole_answer(client: OpenAI) -> None:
    response = checked(client.responses.create(**ASKED, metadata={"a": "b"}))
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text
    assert response.metadata == {"a": "b"}
    assert response.usage is not None
    assert response.usage.output_tokens == 8


def test_a_stream_has_typed_events_in_order_and_ends_with_the_whole_answer(client: OpenAI) -> None:
    events = list(client.responses.create(**ASKED, stream=True))
    for event in events:
        EVENT.validate_python(event.model_dump(warnings=False))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    whole = client.responses.create(**ASKED)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.incomplete"
    assert checked(events[-1].response).output_text == whole.output_text


def test_the_stream_helper_accumulates(client: OpenAI) -> None:
    snapshot = ""
    with client.responses.stream(**ASKED) as stream:
        for event in stream:
            if event.type == "response.output_text.delta":
                snapshot = event.snapshot
    assert snapshot == client.responses.create(**ASKED).output_text


def test_the_async_client(server: Server) -> None:
    async def ask() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
            whole = await client.responses.create(**ASKED)
            pieces = [
                event.delta
                async for event in await client.responses.create(**ASKED, stream=True)
                if event.type == "response.output_text.delta"
            ]
            return whole.output_text, "".join(pieces)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_structured_answers_are_parsed(client: OpenAI) -> None:
    response = client.responses.parse(model="tgi", input="Where?", text_format=Point, temperature=0, max_output_tokens=64)
    assert response.status == "completed"
    assert isinstance(response.output_parsed, Point)


def test_a_conversation_goes_on_and_is_listed(client: OpenAI) -> None:
    first = client.responses.create(**ASKED)
    second = client.responses.create(**ASKED, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    items = list(client.responses.input_items.list(second.id))
    assert [item.type for item in items] == ["message"]
    assert checked(client.responses.retrieve(second.id)).output_text == second.output_text
    client.responses.delete(first.id)
    with pytest.raises(NotFoundError, match=first.id):
        client.responses.retrieve(first.id)


def test_a_background_response_is_fetched_when_it_has_ended(client: OpenAI) -> None:
    response = client.responses.create(**ASKED, background=True)
    assert response.status == "queued"
    deadline = time.monotonic() + 60
    while response.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        response = checked(client.responses.retrieve(response.id))
    assert response.output_text == client.responses.create(**ASKED).output_text


def test_a_cancelled_response_holds_no_memory(client: OpenAI, server: Server) -> None:
    asked = ASKED | {"max_output_tokens": 1500, "background": True}
    response = client.responses.create(**asked)
    assert client.responses.cancel(response.id).status == "cancelled"
    server.wait_until_idle()
    assert client.responses.retrieve(response.id).status == "cancelled"


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_errors_name_what_is_wrong(client: OpenAI, parameters: dict[str, Any], named: str) -> None:
    with pytest.raises(UnprocessableEntityError, match=named) as raised:
        client.responses.create(**(ASKED | parameters))
    assert raised.value.type == "invalid_request_error"
