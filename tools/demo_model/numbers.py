"""Small arithmetic, counting and comparing. Each function gives (question, answer), and the answer is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo_model.language import capital, choose, phrase
from demo_model.words import person, word

if TYPE_CHECKING:
    from random import Random

QuestionAnswer = tuple[str, str]

_SMALL = [
    *["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
    *["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"],
]
_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(number: int) -> str:
    """0 to 100."""
    if number < 20:
        return _SMALL[number]
    if number == 100:
        return "one hundred"
    return _TENS[number // 10] + ("-" + _SMALL[number % 10] if number % 10 else "")


def calculation(rng: Random) -> QuestionAnswer:
    left, sign, right, result = _terms(rng)
    named = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}[sign]
    if rng.random() < 0.2 and max(left, right, result) <= 100:
        asked = f"{in_words(left)} {named} {in_words(right)}"
        return _ask(asked, rng), f"{capital(asked)} is {in_words(result)}."
    shown = {"*": rng.choice(["*", "x", "\u00d7"]), "/": "/"}.get(sign, sign)
    asked = rng.choice([f"{left} {shown} {right}", f"{left}{shown}{right}", f"{left} {named} {right}"])
    if named in asked:
        return _ask(asked, rng), f"{left} {named} {right} is {result}."
    return _ask(asked, rng), f"{left} {shown} {right} = {result}."


def _ask(asked: str, rng: Random) -> str:
    return phrase("calculations", rng).replace("@", asked)


def _terms(rng: Random) -> tuple[int, str, int, int]:
    sign = rng.choice("+++--**/")
    if sign == "+":
        most = rng.choice([10, 10, 20, 50, 100])
        left, right = rng.randrange(most + 1), rng.randrange(most + 1)
        return left, sign, right, left + right
    if sign == "-":
        most = rng.choice([10, 20, 50, 100])
        left = rng.randrange(1, most + 1)
        right = rng.randrange(left + 1)
        return left, sign, right, left - right
    left, right = rng.randrange(1, 13), rng.randrange(1, 13)
    if sign == "*":
        return left, sign, right, left * right
    return left * right, sign, right, left


def counting(rng: Random) -> QuestionAnswer:
    if rng.random() < 0.3:
        start = rng.randrange(1, 60)
        step = rng.choice([1, 1, 2, 5, 10])
        numbers = [start + step * idx for idx in range(rng.randrange(3, 6))]
        shown = ", ".join(map(str, numbers))
        return choose(f"[which number comes next: {shown}|continue: {shown}|what comes next: {shown}|{shown}]", rng), (
            f"The next number is {numbers[-1] + step}."
        )
    end = rng.choice([3, 4, 5, 5, 6, 7, 8, 9, 10, 10, 10, 12, 15, 20])
    numbers = list(range(1, end + 1))
    if rng.random() < 0.15 and end <= 10:
        asked = choose(f"[count down from {end}|count backwards from {end}|count down from {in_words(end)}]", rng)
        return asked, ", ".join(str(number) for number in reversed(numbers)) + "."
    asked = choose(f"[count to|count from 1 to|count from one to|please count to] [{end}|{in_words(end)}]", rng)
    if in_words(end) in asked:
        return asked, capital(", ".join(in_words(number) for number in numbers)) + "."
    return asked, ", ".join(map(str, numbers)) + "."


def comparing(rng: Random) -> QuestionAnswer:
    left, right = rng.sample(range(101), 2)
    kind = rng.randrange(4)
    if kind == 0:
        asked = choose(
            f"[which number is larger, {left} or {right}|which is bigger, {left} or {right}|what is more, {left} or {right}]",
            rng,
        )
        return asked, f"{max(left, right)} is larger than {min(left, right)}."
    if kind == 1:
        asked = choose(
            f"[which number is smaller, {left} or {right}|which is smaller: {left} or {right}|what is less, {left} or {right}]",
            rng,
        )
        return asked, f"{min(left, right)} is smaller than {max(left, right)}."
    if kind == 2:
        kind_of = rng.choice(["even", "odd"])
        asked = choose(f"[is {left} even or odd|is {left} {kind_of}|is {left} an {kind_of} number]", rng)
        return asked, f"{left} is {'odd' if left % 2 else 'even'}."
    return choose(
        f"[write {left} in words|how do you write {left}|spell the number {left}]", rng
    ), f"{left} is {in_words(left)}."


def letters(rng: Random) -> QuestionAnswer:
    """Spelling: hard for a model that reads tokens, but of short words it can be learnt."""
    short = phrase("short_words", rng)
    kind = rng.randrange(4)
    if kind == 0:
        return choose(f"[spell {short}|how do you spell {short}|spell the word {short}]", rng), "-".join(short.upper()) + "."
    if kind == 1:
        return choose(
            f"[how many letters does {short} have|how many letters are in {short}]", rng
        ), f"{capital(short)} has {len(short)} letters."
    if kind == 2:
        return choose(
            f"[what is the first letter of {short}|with which letter does {short} begin]", rng
        ), f"The first letter is {short[0].upper()}."
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    place = rng.randrange(25)
    if rng.random() < 0.2:
        return choose("[say the alphabet|what is the alphabet|list the letters of the alphabet]", rng), " ".join(alphabet)
    asked = choose(f"[which letter comes after {alphabet[place]}|what comes after {alphabet[place]} in the alphabet]", rng)
    return asked, f"{alphabet[place + 1]} comes after {alphabet[place]}."


def word_problem(rng: Random) -> QuestionAnswer:
    name, pronouns = person(rng)
    other = person(rng)[0]
    thing = word("foods", rng)
    thing = thing if thing.endswith("s") else "coins"
    have, more = rng.randrange(2, 13), rng.randrange(1, 9)
    if rng.random() < 0.5:
        told = f"{name} has {have} {thing}. {other} gives {pronouns.object} {more} more. How many {thing} does {name} have?"
        return told, f"{name} has {have} + {more} = {have + more} {thing}."
    more = min(more, have)
    have += have - more == 1
    told = f"{name} has {have} {thing} and {rng.choice(['eats', 'loses', 'gives away'])} {more}. How many {thing} are left?"
    return told, f"{have} - {more} = {have - more}. {name} has {have - more} {thing} left."


def numbers(rng: Random) -> QuestionAnswer:
    kinds = [calculation, counting, comparing, letters, word_problem]
    return rng.choices(kinds, [10, 3, 3, 2, 2])[0](rng)
