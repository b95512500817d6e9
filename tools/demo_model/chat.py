"""A document of the training text: a chat in ChatML, as the chat template of the model folder renders it, or plain text.

A document is a list of pieces, each with the weight that its tokens have in the loss. It must never differ from what
`chat_template.jinja` makes of the same messages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_OF_TEXT, START, END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
# Each is one token. A client sees the marks of tool calls, so that they are no special tokens in the sense of the tokenizer.
SPECIAL_TOKENS = [END_OF_TEXT, START, END, PAD]
MARKS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]
CHAT_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")

ANSWER_WEIGHT, REST_WEIGHT = 1.0, 0.1

TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """`calls` only for the assistant. The role `tool` carries the result of a call."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Chat:
    messages: list[Message]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Piece:
    text: str
    weight: float


def chat_pieces(chat: Chat) -> list[Piece]:
    """The assistant's words, with the mark that ends them, count in full; all else counts little."""
    pieces = []
    messages = list(chat.messages)
    system = messages.pop(0).content if messages[0].role == "system" else ""
    if chat.tools:
        tools = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in chat.tools)
        system = (system + "\n\n" if system else "") + TOOLS_BEFORE + tools + TOOLS_AFTER
    if system:
        pieces.append(Piece(f"{START}system\n{system}{END}\n", REST_WEIGHT))
    for idx, message in enumerate(messages):
        if message.role == "assistant":
            pieces.append(Piece(f"{START}assistant\n", REST_WEIGHT))
            pieces.append(Piece(assistant_text(message) + END, ANSWER_WEIGHT))
            pieces.append(Piece("\n", REST_WEIGHT))
        elif message.role == "tool":
            opens = idx == 0 or messages[idx - 1].role != "tool"
            closes = idx + 1 == len(messages) or messages[idx + 1].role != "tool"
            response = f"\n<tool_response>\n{message.content}\n</tool_response>"
            text = (f"{START}user" if opens else "") + response + (f"{END}\n" if closes else "")
            pieces.append(Piece(text, REST_WEIGHT))
        else:
            pieces.append(Piece(f"{START}{message.role}\n{message.content}{END}\n", REST_WEIGHT))
    return pieces


def plain_pieces(text: str) -> list[Piece]:
    """Text without a chat around it, for clients of the routes that apply no template."""
    return [Piece(text + END_OF_TEXT, ANSWER_WEIGHT)]


def assistant_text(message: Message) -> str:
    text = message.content
    for idx, call in enumerate(message.calls):
        text += "\n" if idx or text else ""
        arguments = json.dumps(call.arguments, ensure_ascii=False)
        text += f'<tool_call>\n{{"name": "{call.name}", "arguments": {arguments}}}\n</tool_call>'
    return text


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str) -> Message:
    return Message("assistant", content)
