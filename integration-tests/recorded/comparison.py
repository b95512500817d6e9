"""Where an answer differs from the recorded one. What is bound to a moment or a machine (times, ids, versions) only needs the
same JSON type; what was sampled, only the same form; everything else is equal or makes a difference, which names its check."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from answers import DONE, Answer, Json, is_error

# Values of a moment, a build or a machine.
VOLATILE = {"created", "system_fingerprint", "version", "sha", "docker_label", "router"}
# Depends on when earlier answers ended, which is no matter of form.
WELCOME = {"prompt_tokens_details"}
# Ids of answers and of calls; those of tokens are numbers.
VOLATILE_STRINGS = {"id"}
LOGPROB_TOLERANCE = 0.1
LOGPROB_RELATIVE_TOLERANCE = 0.02
CHECKS_OF_FIELDS = {"finish_reason": "finish_reason", "error": "message", "error_type": "error_type", "logprob": "logprob"}

COUNTS = {"x-prompt-tokens", "x-generated-tokens", "x-compute-characters"}
SETS = re.compile("vary|allow|access-control-allow-.*")
# What a machine or a moment decides.
MEASURED = re.compile("x-.*-time|x-time-per-token|x-compute-type")
# Where they were not recorded, they must not be.
WATCHED = re.compile(
    "allow|cache-control|location|retry-after|vary|www-authenticate|access-control-.*|x-accel-buffering|x-compute-.*"
)


@dataclass(frozen=True)
class Difference:
    check: str
    what: str

    def __str__(self) -> str:
        return f"{self.check}: {self.what[:300]}"


def differences(expected: Answer, got: Answer, greedy: bool) -> list[Difference]:
    """All of them. `greedy`: the text does not depend on chance."""
    if expected.status != got.status:
        return [Difference("status", f"{expected.status} -> {got.status} {got.content}")]
    found = list(_headers(expected.headers, got.headers, greedy))
    if expected.kind != got.kind:
        return [*found, Difference("shape", f"{expected.kind} -> {got.kind}")]
    if expected.kind == "events":
        return found + list(_streams(expected, got, greedy))
    if expected.kind == "text":
        return found + list(_texts(expected, got))
    if expected.kind == "metrics":
        return found + list(metrics(expected.content, got.content))
    if expected.kind == "openapi":
        return found + list(_openapi(expected.content, got.content))
    if greedy or expected.status >= 400:
        return found + list(_values(by_index(expected.content), by_index(got.content), ""))
    return found + list(_forms([expected.content], [got.content]))


def by_index(content: Json) -> Json:
    """TGI gives the answers to several prompts in the order in which they are complete."""
    if isinstance(content, dict) and isinstance(choices := content.get("choices"), list):
        return content | {"choices": sorted(choices, key=lambda choice: choice["index"])}
    return content


def _headers(expected: dict[str, str], got: dict[str, str], greedy: bool) -> Iterator[Difference]:
    for name, value in expected.items():
        if name not in got:
            yield Difference("headers", f"no {name}")
            continue
        given = got[name]
        if SETS.fullmatch(name) or name == "content-type":
            value, given = (str(sorted(part.strip().lower() for part in re.split("[,;]", text))) for text in (value, given))
        if MEASURED.fullmatch(name) or (name in COUNTS and not greedy):
            continue
        if value != given:
            yield Difference("headers", f"{name}: {value} -> {given}")
    for name in got:
        if name not in expected and WATCHED.fullmatch(name):
            yield Difference("headers", f"{name} was not recorded")


def _texts(expected: Answer, got: Answer) -> Iterator[Difference]:
    """The framework's explanations go on after the colon, in words of their own; pages are no part of the API."""
    before, after = (answer.content.partition(":")[0] for answer in (expected, got))
    if bool(expected.content) != bool(got.content):
        yield Difference("shape", f"{expected.content[:80]!r} -> {got.content[:80]!r}")
    elif expected.status >= 400 and before != after:
        yield Difference("message", f"{before!r} -> {after!r}")


def _streams(expected: Answer, got: Answer, greedy: bool) -> Iterator[Difference]:
    if expected.framing != got.framing:
        yield Difference("framing", f"{expected.framing} -> {got.framing}")
    ends = [(DONE in answer.content, answer.content[-1:] == [DONE]) for answer in (expected, got)]
    if ends[0] != ends[1]:
        yield Difference("framing", f"has {DONE}, and at its end: {ends[0]} -> {ends[1]}")
    # Those of several prompts come mixed.
    expected_events, got_events = (_by_prompt(answer.content) for answer in (expected, got))
    if expected_events.keys() != got_events.keys():
        yield Difference("shape", f"indexes {list(expected_events)} -> {list(got_events)}")
        return
    for index, events in expected_events.items():
        yield from _events(events, got_events[index], greedy)


def _by_prompt(events: list[Json]) -> dict[int, list[Json]]:
    grouped: dict[int, list[Json]] = {}
    for event in events:
        if event != DONE:
            choices = event.get("choices") or [{}]
            grouped.setdefault(choices[0].get("index", 0), []).append(event)
    return dict(sorted(grouped.items()))


def _events(expected: list[Json], got: list[Json], greedy: bool) -> Iterator[Difference]:
    if greedy:
        yield from _values(expected, got, "")
        return
    yield from _values([event for event in expected if is_error(event)], [event for event in got if is_error(event)], "")
    yield from _forms(expected, got)


def _values(expected: Json, got: Json, at: str) -> Iterator[Difference]:
    """Where two JSON values are not the same."""
    if isinstance(expected, dict) and isinstance(got, dict):
        for name in [*expected, *(name for name in got if name not in expected)]:
            here = f"{at}.{name}"
            if name in WELCOME:
                continue
            if name not in got or name not in expected:
                yield Difference("shape", f"{here} {'is missing' if name in expected else 'is new'}")
            elif name in VOLATILE or (name in VOLATILE_STRINGS and isinstance(expected[name], str)):
                yield from _forms([expected[name]], [got[name]], here)
            elif name in CHECKS_OF_FIELDS and not isinstance(expected[name], dict | list):
                yield from _field(CHECKS_OF_FIELDS[name], expected[name], got[name], here)
            else:
                yield from _values(expected[name], got[name], here)
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            yield Difference("text", f"{at} has {len(expected)} -> {len(got)} items")
        for idx, (one, other) in enumerate(zip(expected, got, strict=False)):
            yield from _values(one, other, f"{at}[{idx}]")
    elif _type(expected) != _type(got):
        yield Difference("shape", f"{at}: {expected!r} -> {got!r}")
    elif expected != got:
        yield Difference("text", f"{at}: {expected!r} -> {got!r}")


def _field(check: str, expected: Json, got: Json, at: str) -> Iterator[Difference]:
    numbers = isinstance(expected, float) and isinstance(got, float)
    if check == "logprob" and numbers:
        if abs(expected - got) <= LOGPROB_TOLERANCE + LOGPROB_RELATIVE_TOLERANCE * abs(expected):
            return
    elif expected == got and type(expected) is type(got):
        return
    yield Difference(check, f"{at}: {expected!r} -> {got!r}")


def _forms(expected: list[Json], got: list[Json], at: str = "") -> Iterator[Difference]:
    """Whether the values have the same forms, however many of each there are."""
    before, after = ({_form(value) for value in values} for values in (expected, got))
    if before != after:
        yield Difference("shape", f"{at} lost {sorted(before - after)}, new {sorted(after - before)}")


def _form(value: Json) -> str:
    """Its fields and JSON types, without the number of items in lists."""
    if isinstance(value, dict):
        fields = (f"{name}: {_form(item)}" for name, item in sorted(value.items()) if name not in WELCOME)
        return "{" + ", ".join(fields) + "}"
    if isinstance(value, list):
        return f"[{' | '.join(sorted({_form(item) for item in value}))}]"
    return _type(value)


def _type(value: Json) -> str:
    if isinstance(value, bool) or value is None:
        return str(type(value).__name__)
    return "number" if isinstance(value, int | float) else type(value).__name__


def metrics(expected: dict[str, dict[str, Any]], got: dict[str, dict[str, Any]]) -> Iterator[Difference]:
    """More metrics and labels are welcome."""
    for name, metric in expected.items():
        ours = got.get(name)
        if ours is None:
            yield Difference("shape", f"no metric {name}")
            continue
        if metric.get("type") != ours.get("type"):
            yield Difference("shape", f"{name} is a {metric.get('type')} -> {ours.get('type')}")
        if missing := _missing(metric.get("labels", []), ours.get("labels", [])):
            yield Difference("shape", f"{name} has no label {missing}")
        if metric.get("buckets", []) != ours.get("buckets", []):
            yield Difference("shape", f"{name}: buckets {metric.get('buckets')} -> {ours.get('buckets')}")


def _openapi(expected: Json, got: Json) -> Iterator[Difference]:
    """More paths, schemas and fields are welcome."""
    for part, entries in expected.items():
        for name, fields in entries.items():
            if name not in got[part]:
                yield Difference("shape", f"no {name} in {part}")
            elif missing := _missing(fields, got[part][name]):
                yield Difference("shape", f"{part} {name} has no {missing}")


def _missing(expected: Iterable[str], got: Iterable[str]) -> list[str]:
    return sorted(set(expected) - set(got))
