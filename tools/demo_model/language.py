"""Small tools for writing English by program: alternatives, articles, sentences as people type them, and the text files.

Everything takes the random numbers that it uses, so that a text is a function of its seed.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from random import Random

TEXT_FOLDER = Path(__file__).with_name("text")
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_BAR = re.compile(r"\s\|\s")
_QUESTION_WORDS = set(
    "what which who whom whose where when why how is are am was were "  # noqa: SIM905 - a list of thirty strings is no easier to read
    "can could do does did should shall will would at in".split()
)
_CONTRACTIONS = [
    ("what is", "what's"),
    ("where is", "where's"),
    ("who is", "who's"),
    ("how is", "how's"),
    ("I am", "I'm"),
    ("do not", "don't"),
    ("cannot", "can't"),
    ("does not", "doesn't"),
    ("it is", "it's"),
    ("I would", "I'd"),
]
_POLITE = ["please {}", "{}, please", "hey, {}", "hi, {}", "hello, {}", "ok, {}", "quick question: {}", "so, {}", "{} thanks"]


def fill(template: str, values: Mapping[str, str], rng: Random) -> str:
    """Chooses one of the alternatives in every `[a|b]`, then puts values into the `{slots}`. KeyError for an unknown slot."""
    if "[" in template:
        template = choose(template, rng)
    return _SLOT.sub(lambda slot: values[slot[1]], template)


def choose(template: str, rng: Random) -> str:
    while "[" in template:
        template, changed = _ALTERNATIVES.subn(lambda found: rng.choice(found[1].split("|")), template)
        assert changed, f"brackets do not match in {template!r}"
    return " ".join(template.split(" ")).replace("  ", " ").strip(" ")


def phrase(name: str, rng: Random) -> str:
    """One of the alternatives of a line of `patterns.txt`."""
    return choose(rng.choice(read_blocks("patterns.txt")[name]), rng)


def article(noun: str) -> str:
    """'a cat', 'an owl'. Names and what has an article already stay as they are."""
    if noun.startswith(("a ", "an ", "the ")):
        return noun
    vowel = noun[0].lower() in "aeiou" and not noun.lower().startswith(("uni", "eu", "one", "use"))
    return ("an " if vowel or noun.startswith(("hour", "honest")) else "a ") + noun


def plural(noun: str) -> str:
    odd = {
        "mouse": "mice",
        "goose": "geese",
        "sheep": "sheep",
        "fish": "fish",
        "wolf": "wolves",
        "deer": "deer",
        "child": "children",
    }
    if noun in odd:
        return odd[noun]
    if noun.endswith(("s", "x", "ch", "sh", "tomato", "potato")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith("fe"):
        return noun[:-2] + "ves"
    return noun + ("es" if noun.endswith("mango") else "s")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def joined(items: Sequence[str], word: str = "and") -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" {word} " + items[-1]


def sentence(text: str) -> str:
    """Capital letter, and a mark at the end: a question mark where it begins like a question."""
    text = capital(text)
    if text[-1] in ".!?:":
        return text
    return text + ("?" if is_question(text) else ".")


def is_question(text: str) -> bool:
    return re.split(r"\W", text, maxsplit=1)[0].lower() in _QUESTION_WORDS


def typed(text: str, rng: Random) -> str:
    """The sentence as a person may type it: more or less polite, careful and correct."""
    if rng.random() < 0.2:
        for long, short in _CONTRACTIONS:
            text = text.replace(long, short)
    if rng.random() < 0.12:
        text = _polite(text, rng)
    luck = rng.random()
    if luck < 0.55:
        return sentence(text)
    if luck < 0.70:
        return text.rstrip(".?!")
    if luck < 0.78:
        return text.lower().rstrip(".?!")
    if luck < 0.88:
        return capital(text).rstrip(".?!")
    if luck < 0.93:
        return sentence(text.lower()).replace(" i ", " I ")
    if luck < 0.95:
        return sentence(text)[:-1] + rng.choice(["!", "??", "...", " ?"])
    return _misspelt(sentence(text), rng)


def _polite(text: str, rng: Random) -> str:
    end = text[-1] if text[-1] in ".?!" else ""
    if not end and is_question(text):
        end = "?"
    frame = rng.choice(_POLITE)
    return frame.format(text.rstrip(".?!")) + ("" if frame.endswith("thanks") else end)


def _misspelt(text: str, rng: Random) -> str:
    place = rng.randrange(1, max(2, len(text) - 2))
    if text[place - 1 : place + 2].isalpha():
        kind = rng.randrange(3)
        if kind == 0:
            return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
        return text[:place] + (text[place] if kind == 1 else "") + text[place + (kind != 1) :]
    return text


def split_bars(text: str) -> list[str]:
    """Cuts at ` | `; the bars of alternatives have no spaces around them."""
    return [part.strip() for part in _BAR.split(text)]


@functools.cache
def read_pairs(name: str) -> list[tuple[list[str], list[str]]]:
    """Of a file with lines `left | left => right | right`."""
    pairs = []
    for line in _lines(name):
        left, right = line.split(" => ")
        pairs.append((split_bars(left), split_bars(right)))
    return pairs


@functools.cache
def read_blocks(name: str) -> dict[str, list[str]]:
    """Of a file with blocks of lines, each headed by `[name]`; what follows the name on its line is the first item."""
    blocks: dict[str, list[str]] = {}
    for line in _lines(name):
        head = re.fullmatch(r"\[(\w+)\]\s*(.*)", line)
        if head:
            block = blocks.setdefault(head[1], [head[2]] if head[2] else [])
        else:
            block.append(line)
    return blocks


@functools.cache
def read_table(name: str) -> list[dict[str, str]]:
    """A block of `tables.txt`, a row each."""
    header, *rows = read_blocks("tables.txt")[name]
    columns = [column.strip() for column in header.split(";")]
    table = []
    for row in rows:
        cells = [cell.strip() for cell in row.split(";")]
        assert len(cells) == len(columns), f"{name}: {row!r} has not {len(columns)} cells"
        table.append(dict(zip(columns, cells, strict=True)))
    return table


def _lines(name: str) -> Iterator[str]:
    for line in (TEXT_FOLDER / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("# "):
            yield line.strip()
