"""Chats with a running server and shows what was said: `python -m demo_model.transcript --url http://localhost:3000`.

With `--write FILE` what was said takes the place of the text between the two marks of that file. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path

BEGIN, END = "<!-- transcript -->\n", "<!-- end of transcript -->\n"
SAID = [
    "Hello",
    "What is this?",
    "What can you do?",
    "Why is the sky blue?",
    "Tell me a joke",
    "How do I serve a larger model?",
    "Thank you!",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="demo_model.transcript", description=__doc__)
    parser.add_argument("--url", default="http://localhost:3000")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put it between the marks of this file")
    arguments = parser.parse_args()
    shown = transcript(arguments.url)
    print(shown, end="")
    if arguments.write:
        text = arguments.write.read_text(encoding="utf-8")
        arguments.write.write_text(replaced(text, shown), encoding="utf-8")


def transcript(url: str) -> str:
    """One conversation: every answer is given in the light of all that was said before."""
    messages: list[dict[str, str]] = []
    lines = []
    for said in SAID:
        messages.append({"role": "user", "content": said})
        answer = _answer(url, messages)
        messages.append({"role": "assistant", "content": answer})
        lines += [f"> {said}", *answer.splitlines(), ""]
    return "```text\n" + "\n".join(lines).rstrip() + "\n```\n"


def replaced(text: str, shown: str) -> str:
    """ValueError where there are no marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + shown + END + after


def _answer(url: str, messages: list[dict[str, str]]) -> str:
    body = {"messages": messages, "temperature": 0, "max_tokens": 200}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


if __name__ == "__main__":
    main()
