"""text-gen answers as TGI answered, except where `docs/differences-from-tgi.json` says otherwise, and why. Every recorded
request is sent to a real server that has the flags of the one that answered it."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import answers
import comparison
import pytest
from cases import MODEL, PROFILES, cases, cases_of, meant_differences
from replay import Replayed, replay
from serving import serve

# Starting a server is most of the work, and half of that is waiting.
SERVERS_AT_ONCE = 3


def replay_profile(profile: str) -> tuple[list[Replayed], str]:
    """The replayed cases, and the metrics at the end."""
    # The recorded texts were found equal in float32; under a grammar some tokens are nearly as likely as others.
    with serve(MODEL, *PROFILES[profile], "--dtype", "float32", OMP_NUM_THREADS="1") as server:
        replayed = replay(server, cases_of(profile))
        return replayed, server.get("/metrics").text


def complaints(replayed: Replayed) -> list[str]:
    """What is different and should not be, or should be and is not."""
    name, found = replayed.case.name, replayed.found
    meant = meant_differences().get(name)
    if meant is None:
        return [f"{name}: {difference}" for difference in found]
    if not found and not meant.sometimes:
        return [f"{name} is answered as TGI did, and does not belong into the list"]
    return [f"{name}: {difference}" for difference in found if difference.check not in meant.checks]


@pytest.fixture(scope="module")
def replays() -> Iterator[dict[str, Future[tuple[list[Replayed], str]]]]:
    """By profile; the longest is started first."""
    with ThreadPoolExecutor(SERVERS_AT_ONCE) as pool:
        yield {profile: pool.submit(replay_profile, profile) for profile in PROFILES}


@pytest.mark.parametrize("profile", PROFILES)
def test_answers_differ_from_tgi_only_where_it_is_meant(
    replays: dict[str, Future[tuple[list[Replayed], str]]], profile: str
) -> None:
    replayed, _ = replays[profile].result()
    unmeant = [complaint for one in replayed for complaint in complaints(one)]
    assert len(replayed) == len(cases_of(profile))
    assert not unmeant, "\n".join(unmeant)


def test_the_metrics_of_tgi_are_there(replays: dict[str, Future[tuple[list[Replayed], str]]]) -> None:
    (recorded,) = (case for case in cases() if "200" in case.answers and case.answers["200"].kind == "metrics")
    _, metrics = replays["default"].result()
    found = comparison.metrics(recorded.answers["200"].content, answers.metrics(metrics))
    assert [str(difference) for difference in found] == []


def test_every_difference_is_of_a_recorded_case_and_has_a_reason() -> None:
    names = {case.name for case in cases()}
    assert meant_differences().keys() <= names
    assert [name for name, meant in meant_differences().items() if len(meant.reason.split()) < 3] == []


def test_every_recorded_case_has_a_server() -> None:
    assert sum(len(cases_of(profile)) for profile in PROFILES) == len(cases()) > 400
