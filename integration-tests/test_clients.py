"""The official clients parse every route of this stage."""

from typing import Any

import pytest
from huggingface_hub import InferenceClient
from openai import APIStatusError, OpenAI
from serving import Server
from text_generation import Client

MESSAGES = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def openai_client(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def hub_client(server: Server) -> InferenceClient:
    return InferenceClient(base_url=server.url)


@pytest.fixture(scope="module")
def tgi_client(server: Server) -> Client:
    return Client(server.url)


def test_openai_chat(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_openai_chat_streamed_with_usage(openai_client: OpenAI) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model="tgi", messages=MESSAGES, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    whole = openai_client.chat.completions.create(model="tgi", messages=MESSAGES, max_tokens=8, temperature=0)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [8]
    assert len({chunk.id for chunk in chunks}) == 1


def test_openai_chat_logprobs(openai_client: OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="tgi", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    for token in logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)


def test_openai_completions(openai_client: OpenAI) -> None:
    answer = openai_client.completions.create(model="tgi", prompt=["import os", "def"], max_tokens=8, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_openai_completions_streamed(openai_client: OpenAI) -> None:
    chunks = openai_client.completions.create(model="tgi", prompt="import os", max_tokens=8, temperature=0, stream=True)
    whole = openai_client.completions.create(model="tgi", prompt="import os", max_tokens=8, temperature=0)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text


@pytest.mark.parametrize(
    ("parameters", "status", "message"),
    [({"temperature": -1.0}, 422, "temperature"), ({"max_tokens": 10**9}, 422, "max_new_tokens"), ({"n": "many"}, 422, "n")],
)
def test_openai_errors_carry_message_type_and_code(
    openai_client: OpenAI, parameters: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(APIStatusError) as raised:
        openai_client.chat.completions.create(model="tgi", messages=MESSAGES, **parameters)
    assert raised.value.status_code == status
    assert raised.value.type == "invalid_request_error"
    assert isinstance(raised.value.body, dict)
    assert message in raised.value.body["message"]


def test_other_clients_of_the_openai_routes_get_errors_in_the_shape_of_tgi(server: Server) -> None:
    answer = server.post("/v1/chat/completions", {"messages": MESSAGES, "temperature": -1.0})
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"
    assert "temperature" in answer.json()["error"]


def test_openai_models(openai_client: OpenAI, server: Server) -> None:
    assert [model.id for model in openai_client.models.list()] == [server.get("/info").json()["model_id"]]


def test_hub_chat(hub_client: InferenceClient) -> None:
    answer = hub_client.chat_completion(MESSAGES, max_tokens=8)
    assert answer.choices[0].message.content
    streamed = hub_client.chat_completion(MESSAGES, max_tokens=8, temperature=0.0, stream=True)
    assert sum(bool(chunk.choices) for chunk in streamed) >= 1


def test_hub_text_generation(server: Server) -> None:
    client = InferenceClient(model=server.url)
    assert client.text_generation("import os", max_new_tokens=8)
    details = client.text_generation("import os", max_new_tokens=8, details=True, return_full_text=False)
    assert details.details is not None
    assert details.details.generated_tokens == 8
    streamed = client.text_generation("import os", max_new_tokens=8, details=True, stream=True, return_full_text=False)
    tokens = list(streamed)
    assert tokens[-1].generated_text == details.generated_text
    assert "".join(token.token.text for token in tokens if not token.token.special) == details.generated_text


def test_text_generation_client(tgi_client: Client) -> None:
    answer = tgi_client.generate("import os", max_new_tokens=8, top_n_tokens=2)
    assert answer.details.generated_tokens == 8
    assert answer.details.top_tokens is not None
    responses = list(tgi_client.generate_stream("import os", max_new_tokens=8))
    assert responses[-1].generated_text == answer.generated_text
    assert responses[-1].details.finish_reason == "length"


def test_text_generation_client_chat(tgi_client: Client) -> None:
    answer = tgi_client.chat(messages=MESSAGES, max_tokens=8, seed=1)
    assert answer.choices[0].message.content


def test_root_route_answers_as_a_list_with_the_full_text(server: Server) -> None:
    answer = server.post("/", {"inputs": "import os", "parameters": {"max_new_tokens": 4}}).json()
    assert isinstance(answer, list)
    assert answer[0]["generated_text"].startswith("import os")
