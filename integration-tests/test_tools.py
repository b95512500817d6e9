"""Calls of tools from a real server, as OpenAI's client reads them. The model is random: what it writes must be valid calls."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
from openai import OpenAI, UnprocessableEntityError
from serving import Server, serve

TEMPLATE = """\
{%- if tools %}<|im_start|>system
Call functions like this: <tool_call>{"name": ..., "arguments": ...}</tool_call>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

CITIES = ["Rome", "Oslo"]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a place",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": CITIES}, "days": {"$ref": "#/$defs/days"}},
                "required": ["city", "days"],
                "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            },
        },
    },
    {"type": "function", "function": {"name": "ping"}},
]
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather?"}]


@pytest.fixture(scope="module")
def tool_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tools")
    tiny_models.write_servable_model(folder, "qwen2", max_position_embeddings=2048)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with serve(folder, "--max-best-of", "4") as running:
        yield running


@pytest.fixture(scope="module")
def client(tool_server: Server) -> OpenAI:
    return OpenAI(base_url=f"{tool_server.url}/v1", api_key="unused", max_retries=0)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def check_weather(arguments: str) -> None:
    given = json.loads(arguments)
    assert set(given) == {"city", "days"}
    assert given["city"] in CITIES
    assert given["days"] in range(1, 10)
    assert arguments == json.dumps(given, separators=(",", ":"))


def ask(client: OpenAI, **parameters: Any) -> Any:
    options = {"model": "tgi", "messages": QUESTION, "max_tokens": 200, "tools": TOOLS, "seed": 1} | parameters
    return client.chat.completions.create(**options)


@pytest.mark.parametrize("seed", range(5))
def test_a_named_tool_is_called_with_arguments_that_fit(client: OpenAI, seed: int) -> None:
    choice = ask(client, tool_choice=named("get_weather"), seed=seed).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    check_weather(call.function.arguments)


def test_a_streamed_call_is_the_whole_one_in_pieces(client: OpenAI) -> None:
    parameters: dict[str, Any] = {"tool_choice": named("get_weather"), "temperature": 0}
    whole = ask(client, **parameters).choices[0].message.tool_calls[0]
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True, **parameters) if chunk.choices]
    pieces = [call for choice in chunks for call in choice.delta.tool_calls or []]
    assert [piece.function.name for piece in pieces if piece.function.name] == ["get_weather"]
    assert len([piece.id for piece in pieces if piece.id]) == 1
    assert {piece.index for piece in pieces} == {0}
    assert "".join(piece.function.arguments for piece in pieces) == whole.function.arguments
    assert [choice.finish_reason for choice in chunks if choice.finish_reason] == ["tool_calls"]


def test_every_choice_has_calls_with_ids_of_their_own(client: OpenAI) -> None:
    answer = ask(client, tool_choice="required", parallel_tool_calls=False, n=3)
    calls = [call for choice in answer.choices for call in choice.message.tool_calls]
    assert len(calls) == 3
    assert len({call.id for call in calls}) == 3
    for call in calls:
        if call.function.name == "get_weather":
            check_weather(call.function.arguments)
        else:
            assert isinstance(json.loads(call.function.arguments), dict)


def test_a_call_and_its_result_can_be_sent_back(client: OpenAI) -> None:
    call = ask(client, tool_choice=named("get_weather")).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "sunny"}
    messages = [*QUESTION, call.model_dump(exclude_none=True), result]
    answer = ask(client, messages=messages, tool_choice="none", max_tokens=5)
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].message.content


def test_content_is_free_where_no_call_is_required(client: OpenAI) -> None:
    choice = ask(client, max_tokens=20).choices[0]
    assert choice.message.content or choice.message.tool_calls
    stopped = ask(client, max_tokens=60, stop=["e"]).choices[0]
    assert "e" not in (stopped.message.content or "")


def test_a_call_that_is_cut_off_is_an_answer(client: OpenAI) -> None:
    choice = ask(client, tool_choice=named("get_weather"), max_tokens=30, temperature=0).choices[0]
    assert choice.finish_reason in ("length", "tool_calls")
    short = ask(client, tool_choice=named("get_weather"), max_tokens=3, temperature=0).choices[0]
    assert short.finish_reason == "length"


def test_a_wrong_schema_is_refused_with_the_name_of_its_tool(client: OpenAI) -> None:
    wrong = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
    tools = [{"type": "function", "function": {"name": "odd", "parameters": wrong}}]
    with pytest.raises(UnprocessableEntityError, match="tool `odd`"):
        ask(client, tools=tools)


def test_an_unknown_tool_cannot_be_chosen(client: OpenAI) -> None:
    with pytest.raises(UnprocessableEntityError, match="Tool with name nope not found"):
        ask(client, tool_choice=named("nope"))
