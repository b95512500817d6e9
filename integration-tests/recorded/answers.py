"""An answer over HTTP in a form that two servers can be compared in: JSON, the events of a stream, a text, or a summary of
metrics or of an OpenAPI document. Recorded answers and live ones come out alike, so that nothing later knows which is which."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["json", "events", "text", "metrics", "openapi"]
Json = Any

DONE = "[DONE]"
RECORDED_TEXT_CHARS = 4000
METRIC_LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? \S+$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Answer:
    """`content` is what `kind` says; of a stream the parsed data of its events."""

    status: int
    headers: dict[str, str]
    kind: Kind
    content: Json
    # How the bytes of a stream stray from "data: ...", blank line. Recorded streams and ours do so alike, or not at all.
    framing: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """What distinguishes the answers to equal requests: the status, and whether a stream tells of an error."""
        failed = self.kind == "events" and any(is_error(event) for event in self.content)
        return f"{self.status} error event" if failed else str(self.status)


def is_error(event: Json) -> bool:
    """Whether an event tells of an error."""
    return isinstance(event, dict) and "error" in event


def recorded(response: dict[str, Any]) -> Answer:
    """An answer as `recorded.jsonl` holds it."""
    status, headers = response["status"], response["headers"]
    if "raw_sse" in response:
        return _stream(status, headers, response["raw_sse"])
    kinds: dict[str, Kind] = {"body": "json", "metrics": "metrics", "openapi": "openapi", "text": "text"}
    (name,) = (name for name in kinds if name in response)
    return Answer(status, headers, kinds[name], response[name])


def live(path: str, status: int, headers: dict[str, str], body: bytes) -> Answer:
    """An answer as it came; the names of `headers` are in lower case."""
    text = body.decode("utf-8", "backslashreplace")
    content_type = headers.get("content-type", "").partition(";")[0]
    if content_type == "text/event-stream":
        return _stream(status, headers, text)
    if status == 200 and path == "/metrics":
        return Answer(status, headers, "metrics", metrics(text))
    if content_type == "application/json" and text:
        content = json.loads(text)
        if status == 200 and path == "/api-doc/openapi.json":
            return Answer(status, headers, "openapi", openapi(content))
        return Answer(status, headers, "json", content)
    return Answer(status, headers, "text", text)


def _stream(status: int, headers: dict[str, str], text: str) -> Answer:
    *blocks, rest = text.split("\n\n")
    strays = ["the last event has no end"] if rest else []
    events: list[Json] = []
    for block in blocks:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        strays += [f"{line[:20]!r} is no data" for line in lines if not line.startswith("data: ")]
        data = "\n".join(line.removeprefix("data:").removeprefix(" ") for line in lines)
        if not lines:
            continue  # a comment, which keeps the connection alive
        try:
            events.append(DONE if data == DONE else json.loads(data))
        except ValueError:
            strays.append(f"{data[:20]!r} is not JSON")
    return Answer(status, headers, "events", events, tuple(strays))


def metrics(text: str) -> dict[str, dict[str, Any]]:
    """Of each metric: its type, the names of its labels and its buckets or quantiles."""
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            found.setdefault(name, {})["type"] = kind
        elif (sample := METRIC_LINE.match(line)) and not line.startswith("#"):
            base = re.sub("_(bucket|sum|count)$", "", sample["name"])
            metric = found.setdefault(base if base in found else sample["name"], {})
            for label, value in LABEL.findall(sample["labels"] or ""):
                _add(metric.setdefault("labels", []), label)
                if label in ("le", "quantile"):
                    _add(metric.setdefault("buckets", []), value)
    return found


def _add(entries: list[str], entry: str) -> None:
    if entry not in entries:
        entries.append(entry)


def openapi(document: Json) -> Json:
    """The methods of each path and the fields of each schema."""
    schemas = document.get("components", {}).get("schemas", {})
    return {
        "paths": {path: sorted(item) for path, item in document.get("paths", {}).items()},
        "schemas": {name: sorted(schema.get("properties", {})) for name, schema in schemas.items()},
    }
