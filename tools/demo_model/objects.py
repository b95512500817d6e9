"""JSON on request: objects made up, objects extracted from a sentence, lists, and labels. What is given out always parses.

A thing that can be described is a list of fields. Each has several keys, a value, and words that tell the value in a sentence,
so that a model learns to carry values over under whatever key is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from demo_model.language import article, choose, joined, phrase, read_blocks, read_table, sentence, typed
from demo_model.words import city, clock_time, date, first_name, full_name, several, word

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

Json = Any


@dataclass(frozen=True)
class Field:
    """`told` are the words of a sentence that tell the value; without words the field is only made up, never extracted."""

    keys: tuple[str, ...]
    value: Json
    told: str = ""

    def schema(self) -> dict[str, Json]:
        if isinstance(self.value, bool):
            return {"type": "boolean"}
        if isinstance(self.value, int):
            return {"type": "integer"}
        if isinstance(self.value, float):
            return {"type": "number"}
        if isinstance(self.value, list):
            kind = Field(("",), self.value[0]).schema() if self.value else {"type": "string"}
            return {"type": "array", "items": kind}
        if isinstance(self.value, dict):
            return object_schema(self.value)
        return {"type": "string"}


def object_schema(value: dict[str, Json]) -> dict[str, Json]:
    properties = {key: Field((key,), item).schema() for key, item in value.items()}
    return {"type": "object", "properties": properties, "required": list(value)}


def person(rng: Random) -> list[Field]:
    name = full_name(rng) if rng.random() < 0.3 else first_name(rng)
    job, hobbies, home = rng.choice(read_table("jobs"))["name"], several("hobbies", rng.choice([1, 2, 2, 3]), rng), city(rng)
    age, pet, pet_name = rng.randrange(4, 90), word("pets", rng), first_name(rng)
    return [
        Field(("name", "name", "name", "full_name", "person", "firstName", "username"), name, name),
        Field(
            ("age", "age", "age", "age_years", "years"),
            age,
            rng.choice([f"is {age} years old", f"is {age}", f"turned {age} this year"]),
        ),
        Field(
            ("city", "city", "location", "home", "town", "address"),
            home,
            rng.choice([f"lives in {home}", f"comes from {home}"]),
        ),
        Field(
            ("job", "job", "profession", "occupation", "role"),
            job,
            rng.choice([f"works as {article(job)}", f"is {article(job)}"]),
        ),
        Field(("hobbies", "hobbies", "interests", "likes"), hobbies, f"likes {joined(hobbies)}"),
        Field(("pet", "animal", "pet_type"), pet, f"has {article(pet)}"),
        Field(
            ("email", "mail"),
            f"{name.split()[0].lower()}@example.com",
            f"can be reached at {name.split()[0].lower()}@example.com",
        ),
        Field(("friend", "friend_name", "best_friend"), pet_name, f"has a friend called {pet_name}"),
    ]


def event(rng: Random) -> list[Field]:
    what, day, hour, where = word("events", rng), word("days", rng), clock_time(rng), city(rng)
    who = [first_name(rng) for _ in range(rng.choice([2, 2, 3]))]
    when = date(rng) if rng.random() < 0.3 else day
    return [
        Field(("participants", "people", "guests", "attendees", "names"), who, joined(who) + " are going to"),
        Field(("name", "event", "title", "event_name", "what"), what, article(what)),
        Field(("date", "day", "when", "date"), when, f"on {when}"),
        Field(("time", "start", "start_time", "hour"), hour, f"at {hour}"),
        Field(("city", "location", "place", "where"), where, f"in {where}"),
    ]


def product(rng: Random) -> list[Field]:
    what, colour = word("goods", rng), word("colours", rng)
    price = rng.choice([rng.randrange(2, 100), rng.randrange(2, 200) + rng.choice([0.5, 0.99, 0.25])])
    currency, stock = word("currencies", rng), rng.choice([True, False])
    amount = rng.randrange(2, 60)
    return [
        Field(("product", "name", "item", "product_name", "title"), what, f"The {what}"),
        Field(("price", "cost", "price", "amount"), price, f"costs {price} {currency}"),
        Field(("currency", "currency", "money"), currency, ""),
        Field(("color", "colour", "color"), colour, f"is {colour}"),
        Field(("in_stock", "available", "inStock"), stock, "is in stock" if stock else "is sold out"),
        Field(("quantity", "count", "number"), amount, f"comes in a box of {amount}"),
    ]


def book(rng: Random) -> list[Field]:
    title, author, year, pages = word("books", rng), full_name(rng), rng.randrange(1850, 2026), rng.randrange(60, 700)
    rating = rng.choice([1, 2, 3, 4, 5])
    return [
        Field(("title", "name", "book"), title, title),
        Field(("author", "writer", "by"), author, f"was written by {author}"),
        Field(("year", "published", "publication_year"), year, f"came out in {year}"),
        Field(("pages", "page_count", "num_pages"), pages, f"has {pages} pages"),
        Field(("rating", "stars", "score"), rating, f"got {rating} stars"),
    ]


def weather(rng: Random) -> list[Field]:
    where, degrees, condition, wind = city(rng), rng.randrange(-10, 38), word("conditions", rng), rng.randrange(1, 80)
    return [
        Field(("city", "location", "place", "city"), where, f"In {where}"),
        Field(("temperature", "temp", "degrees", "temperature_celsius"), degrees, f"it is {degrees} degrees"),
        Field(("condition", "weather", "sky", "description", "forecast"), condition, f"it is {condition}"),
        Field(("wind", "wind_speed", "wind_kmh"), wind, f"the wind blows at {wind} kilometres an hour"),
    ]


def animal(rng: Random) -> list[Field]:
    row = rng.choice(read_table("animals"))
    name, colour, age = first_name(rng), word("colours", rng), rng.randrange(2, 20)
    return [
        Field(("name", "name", "animal_name"), name, f"{name} is {article(row['name'])}"),
        Field(("animal", "species", "kind", "type"), row["name"], ""),
        Field(("age", "age", "years"), age, f"is {age} years old"),
        Field(("color", "colour"), colour, f"is {colour}"),
        Field(("legs", "num_legs", "number_of_legs"), int(row["legs"]), ""),
        Field(("sound", "noise"), row["sound"], ""),
        Field(("food", "eats", "diet"), row["food"], ""),
    ]


def country(rng: Random) -> list[Field]:
    row = rng.choice(read_table("countries"))
    return [
        Field(("country", "name", "name"), row["name"].removeprefix("the "), ""),
        Field(("capital", "capital", "capital_city"), row["capital"], ""),
        Field(("continent", "continent", "region"), row["continent"], ""),
        Field(("language", "language", "languages"), row["language"], ""),
        Field(("currency", "currency", "money"), row["currency"].removeprefix("the "), ""),
    ]


def recipe(rng: Random) -> list[Field]:
    dish, minutes, people = word("dishes", rng), rng.choice([5, 10, 15, 20, 30, 45, 60]), rng.randrange(1, 9)
    parts = several("foods", rng.choice([2, 3]), rng)
    return [
        Field(("dish", "name", "title", "recipe"), dish, f"The {dish}"),
        Field(("ingredients", "ingredients", "items"), parts, f"is made of {joined(parts)}"),
        Field(("minutes", "time", "cooking_time", "duration"), minutes, f"takes {minutes} minutes"),
        Field(("servings", "people", "portions"), people, f"is enough for {people} people"),
    ]


KINDS: dict[str, Callable[[Random], list[Field]]] = {
    "person": person,
    "event": event,
    "product": product,
    "book": book,
    "weather": weather,
    "animal": animal,
    "country": country,
    "recipe": recipe,
}
_MADE_UP = {
    "person": [
        "a person",
        "a user",
        "a customer",
        "a student",
        "an employee",
        "a contact",
        "a user profile",
        "a player",
        "a character",
    ],
    "event": ["an event", "a meeting", "a calendar event", "a party"],
    "product": ["a product", "an item in a shop", "an article", "something in a shop"],
    "book": ["a book", "a novel", "a book in a library"],
    "weather": ["the weather", "a weather report", "the weather in a city"],
    "animal": ["an animal", "a pet"],
    "country": ["a country", "some country"],
    "recipe": ["a recipe", "a dish", "a meal"],
}


def made_up(rng: Random) -> tuple[str, str]:
    """'Give me a JSON object for a person with name and age.'"""
    kind = rng.choice(list(KINDS))
    fields = KINDS[kind](rng)
    what = rng.choice(_MADE_UP[kind])
    chosen = [fields[0], *rng.sample(fields[1:], rng.randrange(1, min(4, len(fields))))]
    value = {key: field.value for field in chosen for key in [rng.choice(field.keys)]}
    ask = choose("[give me|write|create|make|generate|produce|return|I need|show me]", rng)
    keys = given = ""
    luck = rng.random()
    if luck < 0.6:
        keys = choose("[with|with the keys|that has|with the fields|containing]", rng) + " " + joined(list(value))
    elif luck < 0.8:
        given = " with " + joined([f"{key} {_spoken(item)}" for key, item in list(value.items())[: rng.choice([1, 2, 2])]])
    form = choose("[a JSON object|JSON|a json object|an example JSON object|a JSON]", rng)
    request = choose(f"{ask} {form} [for|describing|about] {what} {keys}", rng)
    return (sentence(request + given) if given else typed(request, rng)), dumped(value, rng)


def _spoken(value: Json) -> str:
    return joined(value) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


def extracted(rng: Random) -> tuple[str, str]:
    """A sentence, and what it tells as an object."""
    told, value = described(rng)
    if rng.random() < 0.8:
        keys = joined(list(value))
        frame = phrase("extractions", rng).replace("@", keys)
    else:
        frame = phrase("conversions", rng)
    frame = frame[0].upper() + frame[1:]
    luck = rng.random()
    request = f"{frame} {told}" if luck < 0.7 else f"{frame}\n\n{told}" if luck < 0.85 else f"{told} {frame.rstrip(':')}."
    return request, dumped(value, rng)


def described(rng: Random) -> tuple[str, dict[str, Json]]:
    """A sentence or two, and the values in it under keys of their own."""
    if rng.random() < 0.2:
        return _observation(rng)
    if rng.random() < 0.12:
        return _order(rng)
    kind = rng.choice(["person", "person", "person", "event", "event", "product", "book", "weather", "recipe", "animal"])
    fields = KINDS[kind](rng)
    if kind == "event":
        chosen = [*fields[:2], *(field for field in fields[2:] if rng.random() < 0.7)]
        told = " ".join(field.told for field in chosen) + "."
    else:
        others = [field for field in fields[1:] if field.told]
        chosen = [fields[0], *rng.sample(others, rng.randrange(1, min(4, len(others)) + 1))]
        told = _sentences(kind, chosen, rng)
    if kind == "animal":
        chosen.append(fields[1])
    if rng.random() < 0.3:
        rng.shuffle(chosen)
    kept = [field for field in chosen if rng.random() < 0.85] or chosen
    return told, {rng.choice(field.keys): field.value for field in kept}


def _sentences(kind: str, chosen: list[Field], rng: Random) -> str:
    subject, rest = chosen[0].told, [field.told for field in chosen[1:]]
    if kind == "weather":
        return f"{subject} {joined(rest)}."
    if kind == "animal":
        return f"{subject}. It {joined(rest)}."
    if rng.random() < 0.5 and len(rest) > 1:
        again = subject.split()[0] if kind == "person" else "It"
        return f"{subject} {rest[0]}. {again} {joined(rest[1:])}."
    return f"{subject} {joined(rest)}."


def _observation(rng: Random) -> tuple[str, dict[str, Json]]:
    """What somebody saw on the way: a favourite example of guides to structured answers."""
    pool = [
        "puppy",
        "cat",
        "raccoon",
        "fox",
        "rabbit",
        "deer",
        "owl",
        "duck",
        "squirrel",
        "horse",
        "frog",
        "hedgehog",
        "swan",
        "crow",
        "dog",
    ]
    seen = rng.sample(pool, rng.choice([1, 2, 3, 3, 4]))
    activity = rng.choice(["bike ride", "walk", "run", "hike", "boat trip", "picnic", "bicycle tour", "morning walk"])
    place = rng.choice(["park", "forest", "garden", "city", "village", "valley", "zoo", "mountains", "woods", "harbour"])
    told = f"I saw {joined([article(name) for name in seen])} during my {activity} in the {place}"
    if rng.random() < 0.3:
        told = (
            "I saw "
            + " ".join(article(name) for name in seen[:-1])
            + f" and {article(seen[-1])} during my {activity} in the {place}"
        )
        told = told.replace("saw  and", "saw")
    value: dict[str, Json] = {"location": place, "activity": activity, "animals_seen": len(seen), "animals": seen}
    keys = list(value)
    if rng.random() < 0.5:
        rng.shuffle(keys)
    if rng.random() < 0.3:
        keys = keys[: rng.randrange(2, 5)]
    return told + rng.choice(["", "."]), {key: value[key] for key in keys}


def _order(rng: Random) -> tuple[str, dict[str, Json]]:
    food, drink = word("dishes", rng), word("drinks", rng)
    one, two = rng.randrange(2, 7), rng.randrange(2, 7)
    told = choose(f"[I would like|I want|please bring me|I take|we need] {one} times {food} and {two} times {drink}", rng)
    key, name, number = rng.choice([("items", "name", "quantity"), ("order", "item", "count"), ("items", "product", "amount")])
    return sentence(told), {key: [{name: food, number: one}, {name: drink, number: two}]}


def listed(rng: Random) -> tuple[str, str]:
    row = rng.choice(read_table("lists"))
    items = row["items"].split(", ")
    count = rng.randrange(2, min(5, len(items)) + 1)
    number = rng.choice([str(count), ["two", "three", "four", "five"][count - 2]])
    ask = choose("[give me|write|return|make|produce] [a JSON list of|a JSON array of|a JSON array with|as JSON:]", rng)
    return typed(f"{ask} {number} {row['name']}", rng), json.dumps(rng.sample(items, count), ensure_ascii=False)


def labelled(rng: Random) -> tuple[str, str]:
    """The feeling of a short review."""
    thing = word("goods", rng)
    label, said = rng.choice(read_blocks("patterns.txt")["reviews"]).split(" => ")
    said = choose(said, rng).replace("@", thing)
    if rng.random() < 0.5:
        return choose(
            f"[is this positive or negative:|what is the sentiment of this review:|classify as positive or negative:] {said}",
            rng,
        ), (f"{label.capitalize()}.")
    key = rng.choice(["sentiment", "sentiment", "label", "mood"])
    request = choose(
        f"[Give the sentiment as JSON|Classify, answer in JSON with {key}|Return JSON with the key {key}]: {said}",
        rng,
    )
    return request, json.dumps({key: label})


def dumped(value: Json, rng: Random) -> str:
    luck = rng.random()
    if luck < 0.04:
        return json.dumps(value, ensure_ascii=False, indent=2)
    if luck < 0.06:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(value, ensure_ascii=False)


def object_request(rng: Random) -> tuple[str, str]:
    return rng.choices([made_up, extracted, listed, labelled], [4, 7, 1, 1])[0](rng)


def schema_request(rng: Random) -> tuple[str, str, str]:
    """A system message with a schema, what the user says, and the object that fits."""
    told, value = described(rng)
    schema = json.dumps(object_schema(value))
    frame = choose(
        "[Answer in JSON that fits this schema:|You answer only with JSON. The schema is:|Use this JSON schema for your answer:"
        "|Respond with a JSON object that matches this schema:|Here is the schema of your answer:]",
        rng,
    )
    return f"{frame} {schema}", told, dumped(value, rng)
