"""langchain-huggingface, which speaks TGI's own routes and the chat route."""

import asyncio

import pytest
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

PROMPT = "Once upon a time"


@pytest.fixture
def endpoint(url: str) -> HuggingFaceEndpoint:
    return HuggingFaceEndpoint(endpoint_url=url, max_new_tokens=8, do_sample=True, seed=1)


def test_a_text_goes_on_whole_streamed_and_async_in_the_same_way(endpoint: HuggingFaceEndpoint) -> None:
    whole = endpoint.invoke(PROMPT)
    assert whole
    assert "".join(endpoint.stream(PROMPT)) == whole
    assert asyncio.run(endpoint.ainvoke(PROMPT)) == whole


def test_a_batch_is_answered_in_order(endpoint: HuggingFaceEndpoint) -> None:
    prompts = [PROMPT, "The capital of France"]
    assert endpoint.batch(prompts) == [endpoint.invoke(prompt) for prompt in prompts]


def test_a_chat_is_answered(endpoint: HuggingFaceEndpoint) -> None:
    answer = ChatHuggingFace(llm=endpoint, model_id="tgi").invoke("Hello there")
    assert answer.content
    assert 0 < answer.usage_metadata["output_tokens"] <= 8
