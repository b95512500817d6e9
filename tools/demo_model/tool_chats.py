"""Dialogues with tools: calls with their results, several calls at once, and chats in which the tools are left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo_model.chat import Call, Chat, Message, assistant, user
from demo_model.language import capital, is_question, sentence
from demo_model.tool_specs import Offer, invented_tool, offer, tools, use

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

# What the assistant knows by itself, or could pretend to; it is never asked for without its tool.
_KNOWN_WITHOUT = {
    "calculator",
    "add",
    "capital",
    "translate",
    "define",
    "dice",
    "random",
    "coin",
    "recipe",
    "population",
    "search",
}
_NO_TOOL = [
    "I am sorry, I have no tool for that.",
    "I am sorry, but none of my tools can do that.",
]


def tool_chat(small_talk: Callable[[Random], tuple[str, str]], rng: Random) -> Chat:
    """`small_talk` gives questions that need no tool, with their answers."""
    pool = [tool if rng.random() < 0.75 else invented_tool(rng) for tool in rng.sample(tools(), rng.choice([1, 1, 2, 2, 3, 4]))]
    offers = [offer(tool, rng) for tool in pool]
    messages: list[Message] = []
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        luck = rng.random()
        if luck < 0.60:
            messages += _called(rng.choice(offers), rng)
        elif luck < 0.68:
            messages += _called_twice(rng.choice(offers), rng)
        elif luck < 0.92:
            question, answer = small_talk(rng)
            messages += [user(question), assistant(answer)]
        else:
            messages += _refused(offers, rng)
    return Chat(messages, tuple(offered.schema for offered in offers))


def request_without_tools(rng: Random) -> tuple[str, str]:
    """Somebody asks for what only a tool can do, and there is none."""
    tool = rng.choice([tool for tool in tools() if tool.kind not in _KNOWN_WITHOUT])
    answer = "I cannot do that by myself. Give me a tool for it, and I will call it."
    if tool.kind in ("weather", "forecast"):
        answer = "I cannot see the weather. Give me a weather tool, and I will call it."
    elif tool.kind in ("time", "date"):
        answer = "I do not have a clock. Give me a tool for the time, and I will call it."
    return lightly_typed(use(offer(tool, rng), rng).ask, rng), answer


def _called(offered: Offer, rng: Random) -> list[Message]:
    wanted = use(offered, rng)
    call = Message("assistant", "", (Call(offered.name, wanted.arguments),))
    return [user(lightly_typed(wanted.ask, rng)), call, Message("tool", wanted.result), assistant(wanted.answer)]


def _called_twice(offered: Offer, rng: Random) -> list[Message]:
    one, two = use(offered, rng), use(offered, rng)
    if one.arguments == two.arguments:
        return _called(offered, rng)
    calls = (Call(offered.name, one.arguments), Call(offered.name, two.arguments))
    ask = f"{sentence(one.ask)} {rng.choice(['And ', 'And also: ', 'Then ', ''])}{two.ask}"
    ask += "?" if is_question(two.ask) else "."
    results = [Message("tool", one.result), Message("tool", two.result)]
    return [user(ask), Message("assistant", "", calls), *results, assistant(f"{one.answer} {two.answer}")]


def _refused(offers: list[Offer], rng: Random) -> list[Message]:
    offered = {held.tool.kind for held in offers}
    absent = [tool for tool in tools() if tool.kind not in offered | _KNOWN_WITHOUT]
    wanted = use(offer(rng.choice(absent), rng), rng)
    return [user(lightly_typed(wanted.ask, rng)), assistant(rng.choice(_NO_TOOL))]


def lightly_typed(text: str, rng: Random) -> str:
    """As people type, but without slips: every value can be read off the text."""
    luck = rng.random()
    if luck < 0.1:
        text = rng.choice(["please ", "hey, ", "can you help me? ", "hi, "]) + text
    elif luck < 0.15:
        text += " please"
    luck = rng.random()
    if luck < 0.65:
        return sentence(text)
    if luck < 0.8:
        return text
    return capital(text) if luck < 0.9 else text.lower()
