"""Tools that a chat can offer: their schemas, what users ask of them, what they give back, and what is said then.

The names of functions, keys and descriptions vary, so that a model has to read the schema instead of learning it by heart.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demo_model import words
from demo_model.language import fill, read_blocks, read_table, split_bars

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

Json = Any


@dataclass(frozen=True)
class Argument:
    keys: list[str]
    type: str
    descriptions: list[str]
    source: str
    optional: bool


@dataclass(frozen=True)
class Result:
    keys: list[str]
    source: str


@dataclass(frozen=True)
class Tool:
    """`asks_optional` mention the optional arguments, `asks` do not."""

    kind: str
    names: list[str]
    descriptions: list[str]
    arguments: list[Argument]
    asks: list[str]
    asks_optional: list[str]
    results: list[Result]
    answers: list[str]


@dataclass(frozen=True)
class Offer:
    """A tool as one chat offers it: with the name and the keys that it has there."""

    tool: Tool
    name: str
    keys: list[str]
    schema: dict[str, Json]


@dataclass(frozen=True)
class Use:
    """What a user wants of a tool, the arguments that fit, what comes back and what is said then."""

    ask: str
    arguments: dict[str, Json]
    result: str
    answer: str


@functools.cache
def tools() -> list[Tool]:
    return [_parse(kind, lines) for kind, lines in read_blocks("tools.txt").items()]


def _parse(kind: str, lines: list[str]) -> Tool:
    parts: dict[str, list[str]] = {}
    for line in lines:
        head, rest = line.split(": ", 1)
        parts.setdefault(head, []).append(rest)

    def bars(head: str) -> list[str]:
        return split_bars(parts[head][0]) if head in parts else []

    results = [line.split("; ") for line in parts["result"]]
    return Tool(
        kind=kind,
        names=bars("names"),
        descriptions=bars("does"),
        arguments=[_parse_argument(line) for line in parts.get("arg", [])],
        asks=bars("ask"),
        asks_optional=bars("ask_optional"),
        results=[Result(split_bars(keys), source) for keys, source in results],
        answers=bars("answer"),
    )


def _parse_argument(line: str) -> Argument:
    keys, type_name, descriptions, source, *optional = line.split("; ")
    return Argument(split_bars(keys), type_name, split_bars(descriptions), source, optional == ["optional"])


def offer(tool: Tool, rng: Random) -> Offer:
    keys = [rng.choice([argument.keys[0], *argument.keys]) for argument in tool.arguments]
    described = rng.random() < 0.85
    properties = {}
    for key, argument in zip(keys, tool.arguments, strict=True):
        properties[key] = {"type": argument.type}
        if argument.source == "unit":
            properties[key]["enum"] = ["celsius", "fahrenheit"]
        if described:
            properties[key]["description"] = rng.choice(argument.descriptions)
    required = [key for key, argument in zip(keys, tool.arguments, strict=True) if not argument.optional]
    parameters = {"type": "object", "properties": properties, "required": required}
    name = rng.choice([tool.names[0], *tool.names])
    function = {"name": name, "description": rng.choice(tool.descriptions), "parameters": parameters}
    return Offer(tool, name, keys, {"type": "function", "function": function})


def use(offered: Offer, rng: Random) -> Use:
    tool = offered.tool
    with_optional = bool(tool.asks_optional) and rng.random() < 0.35
    values: dict[str, Json] = {}
    arguments: dict[str, Json] = {}
    for key, argument in zip(offered.keys, tool.arguments, strict=True):
        if with_optional or not argument.optional:
            value = _other_value(argument.source, list(values.values()), rng)
            values[argument.keys[0]] = arguments[key] = value
    results = {}
    for result in tool.results:
        results[rng.choice([result.keys[0], *result.keys])] = values[result.keys[0]] = value_of(result.source, rng, values)
    spoken = {key: str(value) for key, value in values.items()}
    ask = fill(rng.choice(tool.asks_optional if with_optional else tool.asks), spoken, rng)
    answer = fill(rng.choice(tool.answers), spoken, rng)
    return Use(ask, arguments, _reported(arguments, results, rng), answer[0].upper() + answer[1:])


def _reported(arguments: dict[str, Json], results: dict[str, Json], rng: Random) -> str:
    """What a program gives back: an object, an object with the arguments repeated, or only the values."""
    luck = rng.random()
    if luck < 0.2:
        return ", ".join(str(value) for value in results.values())
    if luck < 0.35:
        return json.dumps(arguments | results, ensure_ascii=False)
    return json.dumps(results, ensure_ascii=False)


def _other_value(source: str, taken: list[Json], rng: Random) -> Json:
    value = value_of(source, rng, {})
    while value in taken:
        value = value_of(source, rng, {})
    return value


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
}
_LISTS = {
    "city": "cities",
    "condition": "conditions",
    "topic": "topics",
    "event": "events",
    "day": "days",
    "stock": "stocks",
    "language": "languages",
    "song": "songs",
    "artist": "artists",
    "room": "rooms",
    "dish": "dishes",
    "currency": "currencies",
    "food": "foods",
}


def value_of(source: str, rng: Random, values: dict[str, Json]) -> Json:
    """A value as the source describes it; `values` are those of the arguments. KeyError for an unknown source."""
    kind, _, rest = source.partition(" ")
    if kind == "number":
        low, high = map(int, rest.split())
        return rng.randrange(low, high + 1)
    if kind in ("phrase", "word"):
        return fill(rng.choice(rest.split("|")), {key: str(value) for key, value in values.items()}, rng)
    if source == "value of expression":
        left, sign, right = values["expression"].split()
        return _OPERATIONS[sign](int(left), int(right))
    if source == "sum of a b":
        return values["a"] + values["b"]
    if source in _LISTS and source != "city":
        return words.word(_LISTS[source], rng)
    return _MADE[source](rng)


_MADE: dict[str, Callable[[Random], Json]] = {
    "city": words.city,
    "name": words.first_name,
    "time": words.clock_time,
    "date": words.date,
    "unit": lambda rng: rng.choice(["celsius", "fahrenheit"]),
    "expression": lambda rng: f"{rng.randrange(2, 1000)} {rng.choice('+-*')} {rng.randrange(2, 1000)}",
    "message": lambda rng: words.word("messages", rng),
    "task": lambda rng: words.word("tasks", rng),
    "folder": lambda rng: words.word("folders", rng),
    "path": lambda rng: f"{words.word('folders', rng)}/{words.word('files', rng)}",
    "strange": lambda rng: words.invented_name(rng).lower(),
    "strange_name": words.invented_name,
    "country": lambda rng: rng.choice(read_table("countries"))["name"].removeprefix("the "),
}


def invented_tool(rng: Random) -> Tool:
    """A tool made of a verb and a noun; there are hundreds."""
    verb, done = words.word("verbs", rng).split("/")
    noun = words.word("machines", rng)
    by_number = rng.random() < 0.5
    keys = [f"{noun}_id", "id", "number", noun] if by_number else [f"{noun}_name", "name", noun]
    argument = Argument(
        [rng.choice(keys)],
        "integer" if by_number else "string",
        [f"The number of the {noun}" if by_number else f"The name of the {noun}"],
        "number 1 999" if by_number else "name",
        False,
    )
    key = "{" + argument.keys[0] + "}"
    return Tool(
        kind=f"{verb}_{noun}",
        names=[rng.choice([f"{verb}_{noun}", f"{verb}_{noun}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}"])],
        descriptions=[f"{verb.capitalize()} a {noun}", f"{verb.capitalize()} the {noun} that the user names"],
        arguments=[argument],
        asks=[
            f"{verb} the {noun} {key}",
            f"{verb} {noun} {key}",
            f"can you {verb} the {noun} {key}",
            f"I want to {verb} the {noun} {key}",
        ],
        asks_optional=[],
        results=[Result(["status", "result", "state"], "phrase ok|done|success")],
        answers=[f"I have {done} the {noun} {key}.", f"Done. The {noun} {key} is {done}."],
    )
