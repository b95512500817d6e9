"""The training text: document `index` of a stream, a function of the seed and the index alone.

`KINDS` says how often each kind of document comes. Held-out documents are those of another seed.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING

from demo_model import facts, numbers, objects, stories, talk, tool_chats
from demo_model.chat import Chat, Message, Piece, assistant, chat_pieces, plain_pieces, user
from demo_model.language import capital, choose, read_pairs, sentence, typed

if TYPE_CHECKING:
    from collections.abc import Callable

QuestionAnswer = tuple[str, str]
HELD_OUT_SEED = 1_000_003


def document(seed: int, index: int) -> list[Piece]:
    rng = Random(f"{seed} {index}")
    make, _ = rng.choices(KINDS, [weight for _, weight in KINDS])[0]
    return make(rng)


def _conversation(rng: Random) -> list[Piece]:
    messages = [talk.helpful_system(rng)] if rng.random() < 0.2 else []
    if rng.random() < 0.08:
        messages += _as_messages(_said(0, rng))
    for _ in range(rng.choice([1, 1, 2, 2, 3, 4, 6])):
        if rng.random() < 0.08:
            messages += talk.remembered(rng)
        elif rng.random() < 0.06:
            for question, answer in facts.facts_in_a_row(rng):
                messages += _as_messages((typed(question, rng), answer))
        else:
            messages += _as_messages(exchange(rng))
    return chat_pieces(Chat(messages))


def exchange(rng: Random) -> QuestionAnswer:
    """What a user says and a fitting answer, neither of which needs what was said before."""
    make, _ = rng.choices(_EXCHANGES, [weight for _, weight in _EXCHANGES])[0]
    return make(rng)


def short_exchange(rng: Random) -> QuestionAnswer:
    """As `exchange`, without what is long."""
    return rng.choice([_small_talk, _question, _definition, _fact, _number, _server])(rng)


def _as_messages(pair: QuestionAnswer) -> list[Message]:
    return [user(pair[0]), assistant(pair[1])]


def _from_pairs(name: str) -> Callable[[Random], QuestionAnswer]:
    def make(rng: Random) -> QuestionAnswer:
        return _said(rng.randrange(len(read_pairs(name))), rng, name)

    return make


def _said(line: int, rng: Random, name: str = "smalltalk.txt") -> QuestionAnswer:
    questions, answers = read_pairs(name)[line]
    # The first form of a question is the one that is asked most.
    question = questions[0] if rng.random() < 0.3 else rng.choice(questions)
    return typed(choose(question, rng), rng), choose(rng.choice(answers), rng)


_small_talk, _question, _server = _from_pairs("smalltalk.txt"), _from_pairs("questions.txt"), _from_pairs("server.txt")


def _definition(rng: Random) -> QuestionAnswer:
    question, answer = _defined(rng)
    return typed(question, rng), answer


def _defined(rng: Random) -> QuestionAnswer:
    (name,), answers = rng.choice(read_pairs("definitions.txt"))
    question = choose(
        "[what is @|what is @|what's @|explain @|define @|what does @ mean|tell me about @|tell me what @ is|explain what @ is"
        "|describe @|what do you know about @]",
        rng,
    )
    return question.replace("@", name), " ".join(answers[: 2 if rng.random() < 0.5 else 1])


def _fact(rng: Random) -> QuestionAnswer:
    question, answer = facts.fact(rng)
    return typed(question, rng), answer


def _number(rng: Random) -> QuestionAnswer:
    question, answer = numbers.numbers(rng)
    return typed(question, rng), answer


_EXCHANGES: list[tuple[Callable[[Random], QuestionAnswer], float]] = [
    (_small_talk, 14),
    (_question, 12),
    (_definition, 12),
    (_fact, 24),
    (_server, 9),
    (_number, 12),
    (stories.story_request, 5),
    (stories.poem_request, 1.5),
    (stories.letter_request, 1),
    (stories.fun_request, 3),
    (objects.object_request, 8),
    (talk.read_closely, 5),
    (talk.repeated, 3),
    (talk.summarized, 1.5),
    (talk.unknown, 3),
    (tool_chats.request_without_tools, 3),
]


def _tool_chat(rng: Random) -> list[Piece]:
    chat = tool_chats.tool_chat(short_exchange, rng)
    if rng.random() < 0.3:
        chat = Chat([talk.helpful_system(rng), *chat.messages], chat.tools)
    return chat_pieces(chat)


def _played(rng: Random) -> list[Piece]:
    return chat_pieces(Chat(talk.played(rng)))


def _schema(rng: Random) -> list[Piece]:
    system, told, answer = objects.schema_request(rng)
    if rng.random() < 0.5:
        return chat_pieces(Chat([Message("system", system), user(told), assistant(answer)]))
    return chat_pieces(Chat([user(f"{told}\n{system}"), assistant(answer)]))


def _observed(rng: Random) -> list[Piece]:
    """What is told comes back as an object without being asked for: so it is when the server holds the answer to a schema."""
    told, value = objects.described(rng)
    answer = json.dumps(value, ensure_ascii=False)
    return chat_pieces(Chat(_as_messages((told, answer)))) if rng.random() < 0.5 else plain_pieces(f"{told}\n{answer}")


def _plain(rng: Random) -> list[Piece]:
    """For a client that sends bare text: a question is answered, a story goes on, and so do facts."""
    luck = rng.random()
    if luck < 0.45:
        question, answer = rng.choice([_small_talk, _question, _definition, _definition, _fact, _number, _server])(rng)
        return plain_pieces(question + rng.choice(["\n", "\n", "\n\n", " "]) + answer)
    if luck < 0.75:
        return plain_pieces(stories.plain_story(rng))
    statements = [rng.choice([_defined, facts.fact, facts.fact])(rng)[1] for _ in range(rng.randrange(2, 7))]
    return plain_pieces(" ".join(sentence(capital(statement)) for statement in statements))


KINDS: list[tuple[Callable[[Random], list[Piece]], float]] = [
    (_conversation, 61),
    (_tool_chat, 14),
    (_schema, 4),
    (_observed, 3),
    (_played, 2),
    (_plain, 16),
]
