"""The lists of words, and people and names made of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo_model.language import capital, read_blocks

if TYPE_CHECKING:
    from random import Random


@functools.cache
def words(name: str) -> list[str]:
    return [word.strip() for line in read_blocks("words.txt")[name] for word in line.split(",")]


def word(name: str, rng: Random) -> str:
    return rng.choice(words(name))


def several(name: str, count: int, rng: Random) -> list[str]:
    return rng.sample(words(name), count)


@dataclass(frozen=True)
class Pronouns:
    subject: str
    object: str
    possessive: str


HE, SHE = Pronouns("he", "him", "his"), Pronouns("she", "her", "her")


def person(rng: Random) -> tuple[str, Pronouns]:
    """A first name and its pronouns."""
    return (word("girls", rng), SHE) if rng.random() < 0.5 else (word("boys", rng), HE)


def first_name(rng: Random) -> str:
    """Now and then a name that exists nowhere: who reads it must copy it."""
    return invented_name(rng) if rng.random() < 0.3 else person(rng)[0]


def full_name(rng: Random) -> str:
    return f"{first_name(rng)} {word('surnames', rng)}"


def invented_name(rng: Random) -> str:
    return capital("".join(several("syllables", rng.choice([2, 2, 3]), rng)))


def city(rng: Random) -> str:
    return invented_name(rng) if rng.random() < 0.15 else word("cities", rng)


def clock_time(rng: Random) -> str:
    return f"{rng.randrange(24):02}:{rng.choice(['00', '15', '30', '45'])}"


def date(rng: Random) -> str:
    return f"{rng.randrange(2020, 2031)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
