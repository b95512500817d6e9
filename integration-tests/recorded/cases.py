"""What was recorded: requests that TGI answered with its answers, the flags of the servers that answered, and the list of the
answers that differ on purpose."""

import base64
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answers import Answer, recorded

REPOSITORY = Path(__file__).parents[2]
RECORDED = REPOSITORY / "router/tests/data/recorded.jsonl"
MODEL = REPOSITORY / "router/tests/data/compat"
# The name under which TGI served the model.
MODEL_NAME = "compat"
MEANT_DIFFERENCES = REPOSITORY / "docs/differences-from-tgi.json"

SMALL = ("--max-input-tokens", "512", "--max-total-tokens", "768", "--max-batch-prefill-tokens", "1024")
# Every page may call TGI; text-gen asks for a flag first.
ANY_ORIGIN = ("--cors-allow-origin", "*")
PROFILES: dict[str, tuple[str, ...]] = {
    "default": (*SMALL, *ANY_ORIGIN),
    "auth": (*SMALL, *ANY_ORIGIN, "--api-key", "Sekret-Key"),
    "cors": (*SMALL, "--cors-allow-origin", "http://good.example", "--cors-allow-origin", "http://also.example"),
    "limits": (
        *(*SMALL, *ANY_ORIGIN, "--disable-grammar-support", "--enable-prefill-logprobs", "--max-best-of", "1"),
        *("--payload-limit", "1000", "--max-client-batch-size", "1", "--max-top-n-tokens", "0", "--max-stop-sequences", "1"),
    ),
    "overload": (*SMALL, *ANY_ORIGIN, "--max-concurrent-requests", "1"),
    "legs": ("--max-input-tokens", "512", "--max-total-tokens", "2040", "--max-batch-prefill-tokens", "512", *ANY_ORIGIN),
    "legs2": ("--max-input-tokens", "1500", "--max-total-tokens", "2100", "--max-batch-prefill-tokens", "2048", *ANY_ORIGIN),
}
# One case that took TGI down, and must not take down what answers the others.
SHARED_PROFILES = {"fatal": "default"}


@dataclass(frozen=True)
class Case:
    name: str
    profile: str
    greedy: bool
    request: dict[str, Any]
    # By outcome; more than one only where several equal requests were sent at once.
    answers: dict[str, Answer]

    @property
    def num_requests(self) -> int:
        return int(self.request.get("parallel", 1))

    @property
    def body(self) -> bytes | None:
        request = self.request
        if "raw_body_b64" in request:
            return base64.b64decode(request["raw_body_b64"])
        if "raw_body" in request:
            return str(request["raw_body"]).encode("utf-8", "surrogatepass")
        if "body" in request:
            return json.dumps(request["body"], ensure_ascii=False).encode("utf-8", "surrogatepass")
        if "body_repeat" in request:
            parts = request["body_repeat"]
            return str(parts["prefix"] + parts["unit"] * parts["count"] + parts["suffix"]).encode()
        return None


@dataclass(frozen=True)
class Meant:
    """`checks`: what may differ. `sometimes`: and may not, as chance has it."""

    reason: str
    checks: frozenset[str]
    sometimes: bool


@functools.cache
def cases() -> tuple[Case, ...]:
    """All, in the order of the file."""
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    return tuple(_case(json.loads(line)) for line in lines)


def cases_of(profile: str) -> list[Case]:
    """Those that a server with the flags of this profile answers."""
    return [case for case in cases() if SHARED_PROFILES.get(case.profile, case.profile) == profile]


def _case(line: dict[str, Any]) -> Case:
    response = line["response"]
    answers = [recorded(one) for one in response.get("parallel", {"": response}).values()]
    by_outcome = {answer.outcome: answer for answer in answers}
    return Case(line["id"], line["profile"], line["det"], line["request"], by_outcome)


@functools.cache
def meant_differences() -> dict[str, Meant]:
    """By the name of the case."""
    entries = json.loads(MEANT_DIFFERENCES.read_text(encoding="utf-8"))
    return {
        name: Meant(entry["reason"], frozenset(entry["checks"]), entry.get("sometimes", False))
        for name, entry in entries.items()
    }
