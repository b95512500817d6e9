"""Questions with answers out of the tables: countries, animals, days, opposites and more.

What is asked of a table stands in `patterns.txt`, under the table's name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo_model.language import article, capital, choose, fill, joined, plural, read_blocks, read_table
from demo_model.words import words

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

QuestionAnswer = tuple[str, str]
Row = dict[str, str]

# How often each table is asked.
_WEIGHTS = {
    "countries": 8,
    "animals": 8,
    "animal_kinds": 1,
    "opposites": 4,
    "synonyms": 1,
    "plurals": 1,
    "pasts": 1,
    "mixes": 1,
    "days": 2,
    "months": 2,
    "jobs": 2,
    "organs": 1,
    "foods": 2,
    "planets": 1,
    "units": 2,
    "colours": 2,
    "translations": 3,
}


def fact(rng: Random) -> QuestionAnswer:
    """A question as it is, without capital letter or mark, and its answer."""
    if rng.random() < 0.1:
        return listing(rng)
    table = _table(rng)
    question, answer = _pattern(table, rng)
    row = _row(table, rng)
    return fill(question, row, rng), capital(fill(answer, row, rng))


def facts_in_a_row(rng: Random) -> list[QuestionAnswer]:
    """A question, and the same of others: 'And of Spain?'"""
    table, column = rng.choice(
        [("countries", "name"), ("countries", "name"), ("opposites", "one"), ("animals", "a"), ("foods", "a")]
    )
    question, answer = _pattern(table, rng)
    while f"{{{column}}}" not in question:
        question, answer = _pattern(table, rng)
    pairs = []
    for idx in range(rng.choice([2, 2, 3])):
        row = _row(table, rng)
        asked = fill(question, row, rng)
        if idx > 0:
            of = "of" if " of " in asked else ""
            asked = choose(f"[and|and|what about|how about|and {of}] {row[column]}", rng)
        pairs.append((asked, capital(fill(answer, row, rng))))
    return pairs


def _table(rng: Random) -> str:
    return rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]


def _pattern(table: str, rng: Random) -> QuestionAnswer:
    patterns = read_blocks("patterns.txt")[table]
    # Of a country people ask for the capital.
    line = patterns[0] if table == "countries" and rng.random() < 0.3 else rng.choice(patterns)
    question, answer = line.split(" => ")
    return question, answer


def _row(table: str, rng: Random) -> Row:
    make = _ROWS.get(table)
    if make is not None:
        return make(rng)
    return dict(rng.choice(read_table(table)))


def _country(rng: Random) -> Row:
    row = rng.choice(read_table("countries"))
    many = row["name"].startswith("the ") and row["name"].endswith("s")
    verbs = {"are": "are", "lie": "lie"} if many else {"are": "is", "lie": "lies"}
    return row | verbs | {"Name": capital(row["name"])}


def _animal(rng: Random) -> Row:
    row = rng.choice(read_table("animals"))
    name = row["name"]
    forms = {"a": article(name), "A": capital(article(name)), "many": plural(name), "Many": capital(plural(name))}
    forms |= {"a_kind": article(row["kind"]), "a_baby": article(row["baby"]), "count": row["legs"].replace("0", "no")}
    other = rng.choice(["mammal", "bird", "fish", "insect", "reptile"])
    return row | forms | {"other": article(other), "yes": "Yes" if other == row["kind"] else "No"}


def _opposite(rng: Random) -> Row:
    row = rng.choice(read_table("opposites"))
    return row if rng.random() < 0.5 else {"one": row["two"], "two": row["one"]}


_NTH = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"]
_DAYS_OF_MONTH = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
_SEASONS = ["winter", "spring", "summer", "autumn"]


def _day(rng: Random) -> Row:
    return _of_calendar("day", "week", words("days"), rng)


def _month(rng: Random) -> Row:
    return _of_calendar("month", "year", words("months"), rng)


def _of_calendar(kind: str, unit: str, names: list[str], rng: Random) -> Row:
    idx = rng.randrange(len(names))
    row = {"kind": kind, "unit": unit, "nth": _NTH[idx], "names": joined(names)}
    row |= {"this": names[idx], "next": names[(idx + 1) % len(names)], "before": names[idx - 1]}
    return row | {"days": str(_DAYS_OF_MONTH[idx]), "season": _SEASONS[(idx + 1) // 3 % 4]}


def _named(table: str) -> Callable[[Random], Row]:
    """Adds the forms of the name, and every column with a capital letter."""

    def make(rng: Random) -> Row:
        row = rng.choice(read_table(table))
        row = row | {"a": article(row["name"]), "many": plural(row["name"]), "a_kind": article(row.get("kind", row["name"]))}
        return row | {capital(key): capital(value) for key, value in row.items()}

    return make


def _unit(rng: Random) -> Row:
    row = rng.choice(read_table("units"))
    return row | {"One": capital(row["one"])}


def _colour(rng: Random) -> Row:
    row = rng.choice(read_table("colours"))
    things = row["things"].split(", ")
    thing = rng.choice(things)
    return row | {"thing": thing, "Thing": capital(thing), "All": capital(joined(things))}


def _translation(rng: Random) -> Row:
    row = rng.choice(read_table("translations"))
    language = rng.choice(["French", "German", "Spanish", "Italian"])
    return row | {"language": language, "word": row[language], "Word": capital(row[language])}


_ROWS: dict[str, Callable[[Random], Row]] = {
    "countries": _country,
    "animals": _animal,
    "animal_kinds": _animal,
    "opposites": _opposite,
    "days": _day,
    "months": _month,
    "jobs": _named("jobs"),
    "foods": _named("foods"),
    "planets": _named("planets"),
    "units": _unit,
    "colours": _colour,
    "translations": _translation,
}

_COUNTS = ["zero", "one", "two", "three", "four", "five", "six"]


def listing(rng: Random) -> QuestionAnswer:
    """A number of things of a kind, in a line, with numbers or with dashes."""
    row = rng.choice(read_table("lists"))
    items = row["items"].split(", ")
    count = rng.randrange(2, min(6, len(items)) + 1)
    ask = choose(
        "[name|list|give me|tell me|write|can you name|give me a list of|make a list of|write a list of|show me]",
        rng,
    )
    number = rng.choice([_COUNTS[count], _COUNTS[count], str(count)])
    if rng.random() < 0.15:
        number, count = "some", min(4, len(items))
    in_order = row["name"].startswith(("days", "months", "seasons"))
    chosen = items[:count] if in_order else rng.sample(items, count)
    return f"{ask} {number} {row['name']}", _listed(chosen, ask, rng)


def _listed(items: list[str], ask: str, rng: Random) -> str:
    if "list" in ask or rng.random() < 0.15:
        if rng.random() < 0.7:
            return "\n".join(f"{idx}. {capital(item)}" for idx, item in enumerate(items, start=1))
        return "\n".join(f"- {capital(item)}" for item in items)
    return capital(joined(items)) + "."
