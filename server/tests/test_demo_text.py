"""The text that the demo model is trained on: a function of its seed, complete, and right where it can be checked."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from demo_model import documents, numbers, objects, tool_specs
from demo_model.chat import CHAT_TEMPLATE_FILE, Chat, Message, chat_pieces
from demo_model.language import article, choose, fill, plural, read_pairs, typed
from demo_model.tool_chats import tool_chat
from demo_model.transcript import BEGIN, END, SAID, replaced

NUM_DOCUMENTS = 1500


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text_of(documents.document(0, index)) for index in range(NUM_DOCUMENTS)]


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def test_a_document_is_a_function_of_seed_and_index(texts):
    assert texts[:50] == [text_of(documents.document(0, index)) for index in range(50)]
    assert texts[:50] != [text_of(documents.document(1, index)) for index in range(50)]


def test_documents_seldom_repeat(texts):
    assert len(set(texts)) > 0.97 * len(texts)


def test_no_slot_and_no_alternative_is_left_unfilled(texts):
    for text in texts:
        assert not re.search(r"\{\w+\}", text), text
        assert not re.search(r"\[[^\]\"{]*\|", text), text
        assert not re.search(r"[@#~%]", re.sub(r"\w@example\.com|# Tools", "", text)), text


def test_every_kind_of_document_comes(texts):
    markers = [
        "<|im_start|>system",
        "<tool_call>\n{",
        "<tool_response>",
        "Once upon a time",
        "The capital of",
        '"type": "object"',
    ]
    for marker in markers:
        assert sum(marker in text for text in texts) > 10, marker


def test_the_vocabulary_is_broad(texts):
    words = Counter(word.lower() for text in texts for word in re.findall(r"[A-Za-z]+", text))
    assert sum(count >= 2 for count in words.values()) > 2500


def test_every_line_of_the_text_files_can_be_said():
    rng = Random(0)
    for name in ("smalltalk.txt", "questions.txt", "server.txt"):
        for questions, answers in read_pairs(name):
            for text in questions + answers:
                assert typed(choose(text, rng), rng).strip()


def test_tool_calls_parse_and_fit_the_schema_of_their_tool():
    rng = Random(1)
    num_calls = 0
    for _ in range(400):
        chat = tool_chat(documents.short_exchange, rng)
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in chat.tools}
        text = text_of(chat_pieces(chat)).split("</tools>", 1)[1].split("<|im_end|>", 1)[1]
        for block in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.DOTALL):
            call = json.loads(block)
            assert_fits(call["arguments"], schemas[call["name"]])
            num_calls += 1
    assert num_calls > 300


def test_values_of_a_call_can_be_read_off_the_request():
    rng = Random(2)
    for tool in tool_specs.tools():
        for _ in range(20):
            use = tool_specs.use(tool_specs.offer(tool, rng), rng)
            assert all(str(value) in use.ask for value in use.arguments.values()), use


def test_objects_parse_and_fit_their_schema():
    rng = Random(3)
    for _ in range(300):
        system, _, answer = objects.schema_request(rng)
        assert_fits(json.loads(answer), json.loads(system[system.index("{") :]))
        request, answer = objects.object_request(rng)
        if "JSON" in request and answer[0] in "{[":
            json.loads(answer)


def assert_fits(value, schema) -> None:
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    assert isinstance(value, kinds[schema["type"]]), (value, schema)
    if schema["type"] == "object":
        assert set(schema["required"]) <= set(value) <= set(schema["properties"])
        for key, item in value.items():
            assert_fits(item, schema["properties"][key])
    if schema["type"] == "array":
        for item in value:
            assert_fits(item, schema["items"])


def test_arithmetic_is_right():
    rng = Random(4)
    same = {"times": "*", "x": "*", "\u00d7": "*", "plus": "+", "minus": "-", "divided by": "/"}
    compute = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__truediv__}
    num_checked = 0
    for _ in range(500):
        _, answer = numbers.calculation(rng)
        found = re.fullmatch(r"(\d+) (\S+|divided by) (\d+) (?:=|is) (\d+)\.", answer)
        if found:
            left, sign, right, result = found.groups()
            assert int(result) == compute[same.get(sign, sign)](int(left), int(right)), answer
            num_checked += 1
    assert num_checked > 300


def test_numbers_are_written_in_words():
    assert [numbers.in_words(number) for number in (0, 13, 20, 42, 100)] == [
        "zero",
        "thirteen",
        "twenty",
        "forty-two",
        "one hundred",
    ]


def test_articles_and_plurals_are_english():
    assert [article(noun) for noun in ("cat", "owl", "hour", "unicorn", "the sea")] == [
        "a cat",
        "an owl",
        "an hour",
        "a unicorn",
        "the sea",
    ]
    assert [plural(noun) for noun in ("cat", "fox", "berry", "wolf", "monkey")] == [
        "cats",
        "foxes",
        "berries",
        "wolves",
        "monkeys",
    ]


def test_an_unknown_slot_is_an_error():
    with pytest.raises(KeyError):
        fill("{nothing}", {}, Random(0))


def test_the_chat_template_renders_what_is_trained():
    jinja2 = pytest.importorskip("jinja2")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(CHAT_TEMPLATE_FILE.read_text(encoding="utf-8"))
    rng = Random(5)
    for index in range(200):
        chat = tool_chat(documents.short_exchange, rng)
        if index % 2:
            chat = Chat([Message("system", "You are kind."), *chat.messages], chat.tools if index % 4 == 1 else ())
        rendered = template.render(messages=[as_json(message) for message in chat.messages], tools=list(chat.tools))
        assert rendered == text_of(chat_pieces(chat))


def as_json(message: Message) -> dict[str, object]:
    calls = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.calls]
    return {"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {})


def test_the_readme_shows_a_chat_and_nothing_else_of_it_changes_with_another():
    text = (Path(__file__).parents[2] / "README.md").read_text()
    shown = text.split(BEGIN)[1].split(END)[0]
    assert [line[2:] for line in shown.splitlines() if line.startswith("> ")] == SAID
    other = replaced(text, "something else\n")
    assert "something else" in other
    assert replaced(other, shown) == text
