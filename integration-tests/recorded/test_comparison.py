"""The comparison sees what it is there for: a recorded answer equals itself, and every fault that is put into one is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from answers import Answer, live, metrics
from cases import Case, cases
from comparison import differences

STREAM = b'data: {"index":1,"error":null}\n\ndata: [DONE]\n\n'


def case(name: str) -> Case:
    """The recorded case of that name."""
    (found,) = (case for case in cases() if case.name == name)
    return found


def checks_of(expected: Answer, got: Answer, greedy: bool = True) -> set[str]:
    """The names of the checks that fail."""
    return {difference.check for difference in differences(expected, got, greedy)}


def changed(answer: Answer, change: Callable[[Any], object]) -> Answer:
    """A copy whose content was changed in place."""
    content = json.loads(json.dumps(answer.content))
    change(content)
    return replace(answer, content=content)


def streamed(body: bytes) -> Answer:
    """A live stream."""
    return live("/generate_stream", 200, {"content-type": "text/event-stream"}, body)


def test_a_recorded_answer_does_not_differ_from_itself() -> None:
    for case in cases():
        for answer in case.answers.values():
            assert differences(answer, answer, case.greedy) == [], case.name


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("shape", lambda body: body.pop("details")),
        ("shape", lambda body: body["details"].pop("seed")),
        ("shape", lambda body: body["details"].update(seed=7)),
        ("shape", lambda body: body.update(more=None)),
        ("text", lambda body: body.update(generated_text="other")),
        ("text", lambda body: body["details"]["tokens"].pop()),
        ("text", lambda body: body["details"]["tokens"][2].update(id=1)),
        ("logprob", lambda body: body["details"]["tokens"][2].update(logprob=-9.0)),
        ("finish_reason", lambda body: body["details"].update(finish_reason="eos_token")),
    ],
)
def test_a_fault_in_a_greedy_answer_is_found(check: str, change: Callable[[Any], object]) -> None:
    (answer,) = case("limits-prefill_logprobs").answers.values()
    assert checks_of(answer, changed(answer, change)) == {check}


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("message", lambda body: body.update(error=body["error"] + ".")),
        ("error_type", lambda body: body.update(error_type="overloaded")),
        ("shape", lambda body: body.pop("error_type")),
    ],
)
def test_a_fault_in_an_error_is_found(check: str, change: Callable[[Any], object]) -> None:
    (answer,) = case("limits-grammar_off").answers.values()
    assert checks_of(answer, changed(answer, change), greedy=False) == {check}


def test_a_fault_in_the_head_is_found() -> None:
    (answer,) = case("limits-prefill_logprobs").answers.values()
    lost = {name: value for name, value in answer.headers.items() if name != "x-compute-type"}
    assert checks_of(answer, replace(answer, status=201)) == {"status"}
    for headers in (
        lost,
        answer.headers | {"content-type": "text/plain"},
        answer.headers | {"x-generated-tokens": "9"},
        answer.headers | {"retry-after": "1"},
    ):
        assert checks_of(answer, replace(answer, headers=headers)) == {"headers"}


def test_what_a_moment_decides_is_no_difference() -> None:
    (answer,) = case("limits-prefill_logprobs").answers.values()
    slower = replace(answer, headers=answer.headers | {"x-total-time": "99999", "x-compute-type": "cpu+optimized"})
    logprob = answer.content["details"]["tokens"][2]["logprob"]
    nearly = changed(answer, lambda body: body["details"]["tokens"][2].update(logprob=logprob + 0.05))
    assert checks_of(answer, slower) == checks_of(answer, nearly) == set()


def test_a_fault_in_the_frame_of_a_stream_is_found() -> None:
    good = streamed(STREAM)
    assert good.framing == ()
    for bad in (
        STREAM.replace(b"data: {", b"data:{"),
        STREAM.replace(b"data: [DONE]\n\n", b""),
        STREAM.removesuffix(b"\n"),
        STREAM + b"data: {}\n\n",
        STREAM.replace(b"}", b""),
    ):
        assert "framing" in checks_of(good, streamed(bad)), bad
    assert checks_of(good, streamed(b": alive\n\n" + STREAM)) == set()


def test_a_sampled_answer_needs_only_the_same_form() -> None:
    events: list[dict[str, Any]] = [{"token": {"id": 1}, "generated_text": text} for text in (None, "ab")]
    first, last = events
    answer = Answer(200, {}, "events", events)
    other = Answer(200, {}, "events", [first | {"token": {"id": 9}}, first, last])
    assert checks_of(answer, other, greedy=False) == set()
    for bad in ([first], [first, last, {"error": "a", "error_type": "b"}], [first | {"token": None}, last]):
        assert "shape" in checks_of(answer, replace(answer, content=bad), greedy=False)


def test_the_events_of_several_prompts_may_come_mixed() -> None:
    first, second = ({"choices": [{"index": index, "text": str(index)}]} for index in (0, 1))
    answer = Answer(200, {}, "events", [first, first, second])
    assert checks_of(answer, replace(answer, content=[second, first, first])) == set()
    assert checks_of(answer, replace(answer, content=[second, second, first])) == {"text"}


def test_metrics_are_read_with_their_types_labels_and_buckets() -> None:
    lines = (
        "# TYPE a histogram",
        'a_bucket{route="/",le="1"} 0',
        'a_bucket{route="/",le="+Inf"} 2',
        'a_sum{route="/"} 3',
        "# TYPE b_count counter",
        "b_count 1",
    )
    assert metrics("\n".join(lines)) == {
        "a": {"type": "histogram", "labels": ["route", "le"], "buckets": ["1", "+Inf"]},
        "b_count": {"type": "counter"},
    }
