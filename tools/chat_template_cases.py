"""Writes what transformers renders for the chat templates and conversations in `router/tests/data/chat_templates`, to compare
the router with. It must use transformers as it is: only the clock is fixed, and nothing is corrected.

    python tools/chat_template_cases.py            write `rendered.json`
    python tools/chat_template_cases.py --check    fail if it is not what would be written
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils

FOLDER = Path(__file__).resolve().parent.parent / "router/tests/data/chat_templates"
RENDERED = FOLDER / "rendered.json"
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class FixedClock(datetime):
    """What `strftime_now` reads."""

    @classmethod
    def now(cls, tz: Any = None) -> "FixedClock":  # noqa: ARG003
        return cls(2026, 2, 3, 14, 5, 6)


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def render(source: str, conversation: dict[str, Any]) -> dict[str, str]:
    """`{"text"}`, or `{"error"}` with transformers' words where it refuses."""
    continue_final = conversation.get("continue_final", False)
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[conversation["messages"]],
            tools=conversation.get("tools"),
            documents=conversation.get("documents"),
            chat_template=source,
            continue_final_message=continue_final,
            add_generation_prompt=conversation.get("add_generation_prompt", True),
            **SPECIAL_TOKENS,
            **conversation.get("variables", {}),
        )
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"text": texts[0]}


def templates() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}


def expressions() -> list[str]:
    return (FOLDER / "expressions.txt").read_text(encoding="utf-8").splitlines()


def rendered() -> dict[str, Any]:
    """Everything, by template and conversation, and by expression."""
    chat_template_utils.datetime = FixedClock
    conversations = load("conversations.json")
    of_expressions = {"messages": [{"role": "user", "content": "Hi"}], "variables": {"data": load("data.json")}}
    return {
        "templates": {
            name: {conversation["name"]: render(source, conversation) for conversation in conversations}
            for name, source in templates().items()
        },
        "expressions": {source: render(source, of_expressions) for source in expressions()},
    }


def as_text(cases: dict[str, Any]) -> str:
    """One line for each case."""
    lines = []
    for name, renderings in cases["templates"].items():
        of_template = ",\n".join(f"   {as_json(key)}: {as_json(value)}" for key, value in renderings.items())
        lines.append(f"  {as_json(name)}: {{\n{of_template}\n  }}")
    of_expressions = ",\n".join(f"  {as_json(key)}: {as_json(value)}" for key, value in cases["expressions"].items())
    return '{\n "templates": {\n' + ",\n".join(lines) + '\n },\n "expressions": {\n' + of_expressions + "\n }\n}\n"


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def main(arguments: list[str]) -> int:
    text = as_text(rendered())
    if arguments == ["--check"]:
        return int(text != RENDERED.read_text(encoding="utf-8"))
    RENDERED.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
