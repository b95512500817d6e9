"""Short stories from plots, poems, jokes and letters, and the wishes that people ask for them with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo_model.language import article, capital, choose, fill, phrase, read_blocks, split_bars, typed
from demo_model.words import HE, SHE, person, word, words

if TYPE_CHECKING:
    from random import Random

_PLOTS = ["lost", "friend", "storm", "learn", "share", "journey", "garden", "contest", "mystery", "gift"]


def story_request(rng: Random) -> tuple[str, str]:
    """A wish for a story, perhaps with its hero, name, place or thing, and the story."""
    values = _cast(rng)
    abouts = [
        f"about {article(values['kind'])}",
        f"about {article(values['kind'])} named {values['name']}",
        f"about {article(values['kind'])} and a {values['thing']}",
        f"about {values['a_hero']}",
        f"about {values['name']}",
        f"about a {values['thing']}",
        f"about {article(values['kind'])} and {values['friend'].replace('the ', 'a ')}",
    ]
    about = rng.choice(abouts) if rng.random() < 0.7 else rng.choice(["", "", "for children", "for my daughter", "please"])
    plot = rng.choice(["lost", "gift"]) if "thing" in about or values["thing"] in about else rng.choice(_PLOTS)
    request = phrase("story_requests", rng) + (" " + about if about else "")
    return typed(request, rng), story(plot, values, rng)


def plain_story(rng: Random) -> str:
    return story(rng.choice(_PLOTS), _cast(rng), rng)


def story(plot: str, values: dict[str, str], rng: Random) -> str:
    blocks = read_blocks("stories.txt")
    opening, ending = blocks["opening"], blocks["ending"]
    beats = [opening[0], *rng.sample(opening[1:], rng.choice([0, 1])), *blocks[plot], *ending[: rng.choice([1, 2])]]
    parts = [fill(rng.choice(split_bars(beat)), values, rng) for beat in beats]
    if rng.random() < 0.3:
        half = len(parts) // 2
        return " ".join(parts[:half]) + "\n\n" + " ".join(parts[half:])
    return " ".join(parts)


def _cast(rng: Random) -> dict[str, str]:
    name, pronouns = person(rng)
    kind, friend = rng.sample([*words("heroes"), *words("people")], 2)
    if kind in ("girl", "princess", "queen"):
        name, pronouns = word("girls", rng), SHE
    elif kind in ("boy", "prince", "king", "wizard", "knight", "sailor", "fisher"):
        name, pronouns = word("boys", rng), HE
    friend_pronouns = (
        SHE if friend in ("girl", "princess", "queen") or (friend in words("heroes") and rng.random() < 0.5) else HE
    )
    place = word("places", rng)
    values = {
        "name": name,
        "kind": kind,
        "a_hero": article(f"{word('traits', rng)} {kind}"),
        "he": pronouns.subject,
        "him": pronouns.object,
        "his": pronouns.possessive,
        "friend": f"the {friend}",
        "friend_Cap": f"The {friend}",
        "friend_he": friend_pronouns.subject,
        "friend_him": friend_pronouns.object,
        "place": place,
    }
    for slot, block in [
        ("goal", "goals"),
        ("thing", "things"),
        ("food", "foods"),
        ("weather", "weathers"),
        ("skill", "skills"),
    ]:
        values[slot] = word(block, rng)
    values["time"] = rng.choice(["morning", "afternoon", "evening", "day"])
    return values | {"He": capital(values["he"]), "Place": capital(place)}


def poem_request(rng: Random) -> tuple[str, str]:
    topic = word("things_to_write", rng)
    request = choose("[write a|write me a|give me a|can you write a|make a|write a short] poem", rng)
    if rng.random() < 0.8:
        request += f" about {topic}"
    text = rng.choice(read_blocks("verses.txt")["poems"]).replace("{topic}", topic)
    return typed(request, rng), "\n".join(capital(line) for line in text.split(" / "))


def letter_request(rng: Random) -> tuple[str, str]:
    requests, answer = rng.choice(read_blocks("verses.txt")["letters"]).split(" => ")
    values = {
        "name": person(rng)[0],
        "me": person(rng)[0],
        "who": rng.choice(["friend", "teacher", "neighbour", "sister", "colleague"]),
        "day": word("days", rng),
        "hour": str(rng.randrange(1, 13)),
        "food": word("foods", rng),
    }
    request = rng.choice(split_bars(requests))
    if "{name}" not in request:
        values["name"] = values["name"] if "boss" not in request else f"{rng.choice(['Mr', 'Ms'])} {word('surnames', rng)}"
    return typed(fill(request, values, rng), rng), "\n".join(fill(answer, values, rng).split(" / "))


_FUN = {
    "jokes": "[tell me a joke|a joke please|do you know a joke|tell a joke|say something funny|another joke|joke]",
    "riddles": "[tell me a riddle|give me a riddle|do you know a riddle|ask me a riddle|a riddle please]",
    "haiku": "[write a haiku|write me a haiku|can you write a haiku|haiku|give me a haiku|tell me a haiku]",
    "sayings": "[tell me a proverb|tell me a saying|give me a proverb|do you know a saying|give me a wise word]",
}


def fun_request(rng: Random) -> tuple[str, str]:
    kind = rng.choice(["jokes", "jokes", "riddles", "haiku", "sayings"])
    answer = rng.choice(read_blocks("fun.txt")[kind])
    return typed(choose(_FUN[kind], rng), rng), answer.replace(" / ", "\n")
