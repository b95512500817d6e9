"""Talk that leans on what was said: names remembered, facts given in the chat, words repeated, system messages obeyed.

And questions about things that nobody knows, which are answered with not knowing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo_model.chat import Message, assistant, user
from demo_model.language import (
    article,
    capital,
    choose,
    fill,
    joined,
    phrase,
    read_blocks,
    read_pairs,
    read_table,
    sentence,
    typed,
)
from demo_model.words import first_name, full_name, invented_name, person, several, word

if TYPE_CHECKING:
    from random import Random

QuestionAnswer = tuple[str, str]


def remembered(rng: Random) -> list[Message]:
    """Somebody tells a thing about themselves, and asks for it a little later."""
    pet, colour, hobby = word("pets", rng), word("colours", rng), word("hobbies", rng)
    job = rng.choice(read_table("jobs"))["name"]
    values = {"name": first_name(rng), "home": word("cities", rng), "colour": colour, "hobby": hobby, "job": job}
    values |= {"a_pet": article(pet), "a_job": article(job), "Colour": capital(colour), "Hobby": capital(hobby)}
    values |= {"A_pet": capital(article(pet)), "A_job": capital(article(job))}
    line = rng.choice(read_blocks("patterns.txt")["told"])
    told, reply, question, answer = [fill(part, values, rng) for part in line.split(" => ")]
    messages = [user(typed(told, rng)), assistant(reply)]
    if rng.random() < 0.75:
        messages += [user(typed(question, rng)), assistant(answer)]
    return messages


def read_closely(rng: Random) -> QuestionAnswer:
    """Two or three sentences and a question about them."""
    (one, _), (two, _) = person(rng), person(rng)
    while two == one:
        two = person(rng)[0]
    if rng.random() < 0.2:
        one = invented_name(rng)
    things = several("things", 2, rng)
    places = several("cities", 2, rng)
    pets = several("pets", 2, rng)
    pairs = rng.choice(
        [
            ("has a", things, "what does @ have", "@ has a %."),
            ("lives in", places, "where does @ live", "@ lives in %."),
            ("likes", several("foods", 2, rng), "what does @ like", "@ likes %."),
            ("wants to go to", several("goals", 2, rng), "where does @ want to go", "@ wants to go to %."),
            ("has a", pets, "which animal does @ have", "@ has a %."),
            ("plays", several("hobbies", 2, rng), "what does @ play", "@ plays %."),
        ]
    )
    verb, values, question, answer = pairs
    told = f"{one} {verb} {values[0]}. {two} {verb} {values[1]}."
    about = rng.randrange(2)
    name = (one, two)[about]
    if rng.random() < 0.25:
        asked, reply = f"who {verb} {values[about]}", f"{name} {verb} {values[about]}."
    else:
        asked, reply = question.replace("@", name), answer.replace("@", name).replace("%", values[about])
    return f"{told} {sentence(asked)}", reply


def repeated(rng: Random) -> QuestionAnswer:
    text = rng.choice(
        [
            lambda: word("things", rng),
            lambda: first_name(rng),
            lambda: (
                f"the {word('traits', rng)} {word('heroes', rng)} {rng.choice(['sings', 'sleeps', 'dances', 'runs', 'laughs'])}"
            ),
            lambda: joined(several("foods", 3, rng)),
            lambda: f"{word('foods', rng)} and {word('drinks', rng)}",
            lambda: f"{full_name(rng)} lives in {word('cities', rng)}",
        ]
    )()
    kind = rng.randrange(5)
    if kind == 0:
        return f"{choose('[Write in capital letters|Make it upper case|Put this in capitals]', rng)}: {text}", text.upper()
    if kind == 1:
        return choose(f"[Say only: {text}|Answer only with: {text}|Just say {text}|Say {text}]", rng), sentence(
            text
        ) if "Just" in text else text
    return choose(f"[Repeat after me|Repeat|Repeat this|Say this|Copy this text]: {text}", rng), text


def summarized(rng: Random) -> QuestionAnswer:
    name, pronouns = person(rng)
    thing, where, friend = word("foods", rng), word("cities", rng), person(rng)[0]
    weather, feeling = word("weathers", rng), word("feelings", rng)
    text = (
        f"On a {weather} {rng.choice(['morning', 'day', 'evening'])}, {name} went to {where}. "
        f"{capital(pronouns.subject)} met {friend} there, and they ate {thing} together. "
        f"In the evening {pronouns.subject} came home and was {feeling}."
    )
    ask = phrase("summaries", rng)
    return f"{ask}: {text}", f"{name} met {friend} in {where}, ate {thing} and came home {feeling}."


_UNKNOWN = [
    (
        "[what is a @|what does a @ do|tell me about the @|explain a @|where can I buy a @]",
        "I do not know what a @ is. I am a very small model.",
    ),
    (
        "[who is #|who was #|tell me about #|what did # do|when was # born]",
        "I do not know #. I am a very small model and know only simple facts.",
    ),
    (
        "[where is %|what is the capital of %|how far is %|how many people live in %]",
        "I do not know %. I am a very small model and know only simple facts.",
    ),
]
_HARD_REPLY = "I do not know that. I am a very small model and know only simple facts."


def unknown(rng: Random) -> QuestionAnswer:
    if rng.random() < 0.3:
        return typed(word("too_hard", rng).replace("~", str(rng.randrange(1800, 2031))), rng), _HARD_REPLY
    question, answer = rng.choice(_UNKNOWN)
    thing, somebody, place = invented_name(rng).lower(), f"{invented_name(rng)} {word('surnames', rng)}", invented_name(rng)

    def named(text: str) -> str:
        return text.replace("@", thing).replace("#", somebody).replace("%", place)

    return sentence(named(choose(question, rng))), named(answer)


def helpful_system(rng: Random) -> Message:
    return Message("system", word("systems", rng))


def played(rng: Random) -> list[Message]:
    """A system message that gives the assistant a name, a job or a voice."""
    kind = rng.randrange(3)
    if kind == 0:
        name = first_name(rng)
        system = phrase("names_of_assistants", rng).replace("@", name)
        question = choose("[what is your name|who are you|what's your name|tell me your name|how are you called]", rng)
        return [Message("system", system), user(typed(question, rng)), assistant(f"My name is {name}. How can I help you?")]
    if kind == 1:
        row = rng.choice(read_table("jobs"))
        system = choose(
            f"[You are {article(row['name'])}.|Act as {article(row['name'])}.|Play the role of {article(row['name'])}.]", rng
        )
        question = choose("[who are you|what do you do|what is your job|tell me about yourself]", rng)
        return [
            Message("system", system),
            user(typed(question, rng)),
            assistant(f"I am {article(row['name'])}. What can I do for you?"),
        ]
    system = choose("[You are a pirate.|Talk like a pirate.|You are a pirate captain.|Answer like a pirate.]", rng)
    asks, answers = rng.choice(read_pairs("questions.txt"))
    return [
        Message("system", system),
        user(typed(choose(rng.choice(asks), rng), rng)),
        assistant(f"Arrr! {rng.choice(answers)}"),
    ]
