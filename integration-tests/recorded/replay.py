"""Sends the recorded requests to a server and tells where its answers differ from the recorded ones."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
from answers import Answer, Json, live
from cases import MODEL, MODEL_NAME, Case
from comparison import Difference, differences
from serving import Server

# Together they take a third of the time; what is answered must not depend on what else runs.
AT_ONCE = 8


@dataclass(frozen=True)
class Replayed:
    case: Case
    found: list[Difference]


def replay(server: Server, cases: list[Case]) -> list[Replayed]:
    """Cases of several requests come last, alone, because they are about what else runs."""
    alone = [case for case in cases if case.num_requests == 1]
    crowds = [case for case in cases if case.num_requests > 1]
    with server.client() as client:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            replayed = list(pool.map(lambda case: _replayed(client, case), alone))
        return replayed + [_replayed(client, case) for case in crowds]


def _replayed(client: httpx.Client, case: Case) -> Replayed:
    got = _answers(client, case)
    if case.answers.keys() != got.keys():
        return Replayed(case, [Difference("status", f"{list(case.answers)} -> {[str(answer) for answer in got.values()]}")])
    found = [
        difference for outcome, answer in case.answers.items() for difference in differences(answer, got[outcome], case.greedy)
    ]
    return Replayed(case, found)


def _answers(client: httpx.Client, case: Case) -> dict[str, Answer]:
    if case.num_requests == 1:
        # Without another to be told from, the status is a difference like others.
        (outcome,) = case.answers
        return {outcome: _send(client, case)}
    with ThreadPoolExecutor(case.num_requests) as pool:
        answers = list(pool.map(lambda _: _send(client, case), range(case.num_requests)))
    return {answer.outcome: answer for answer in reversed(answers)}


def _send(client: httpx.Client, case: Case) -> Answer:
    request = case.request
    path = str(request["path"])
    response = client.request(str(request["method"]), path, content=case.body, headers=request["headers"])
    answer = live(path, response.status_code, dict(response.headers), response.content)
    return Answer(answer.status, answer.headers, answer.kind, _as_recorded(answer.content), answer.framing)


def _as_recorded(content: Json) -> Json:
    """With the model's name as it was when TGI served it."""
    if isinstance(content, dict):
        return {name: _as_recorded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_as_recorded(value) for value in content]
    return MODEL_NAME if content == str(MODEL) else content
