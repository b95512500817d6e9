"""Asks a model folder fixed questions and prints its greedy answers: `python -m demo_model.evaluate FOLDER`.

Nothing here is taken from the training text on purpose, but simple questions are simple questions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Prompt:
    """A chat, or plain text where there are no messages. `must_hold` are texts of which a good answer holds all."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    must_hold: tuple[str, ...] = ()


def asked(question: str, *must_hold: str) -> Prompt:
    return Prompt([{"role": "user", "content": question}], must_hold=must_hold)


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool("get_weather", "Get the current weather", location="string")
TIMER = tool("set_timer", "Set a timer", minutes="integer")
BOAT = tool("paint_boat", "Paint a boat", boat_name="string")


def called(question: str, tools: list[dict[str, Any]], *must_hold: str) -> Prompt:
    return Prompt([{"role": "user", "content": question}], tools=tools, must_hold=must_hold)


_CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"location": "Rome"}}}

PROMPTS = [
    asked("Hello"),
    asked("hi, how are you?"),
    asked("Who are you?", "text-gen"),
    asked("What is this?", "text-gen", "server"),
    asked("What can you do?"),
    asked("What is deep learning?", "neural networks"),
    asked("what is the capital of France", "Paris"),
    asked("Which city is the capital of Japan?", "Tokyo"),
    asked("Why is the sky blue?", "light"),
    asked("How many legs does a spider have?", "8"),
    asked("What is the opposite of hot?", "cold"),
    asked("What day comes after Tuesday?", "Wednesday"),
    asked("What is 2+2?", "4"),
    asked("how much is 7 times 8", "56"),
    asked("Count to five.", "1, 2, 3, 4, 5"),
    asked("Name three fruits."),
    asked("Tell me a joke"),
    asked("Write a short story about a fox named Ruby.", "Ruby", "fox"),
    asked("Write a poem about the sea.", "sea"),
    asked("How do I serve a larger model?", "MODEL_ID"),
    asked("What does --num-shard do?", "num-shard"),
    asked("What is a zorbel?", "zorbel"),
    Prompt(
        [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Nice to meet you, Ada!"},
            {"role": "user", "content": "What is my name?"},
        ],
        must_hold=("Ada",),
    ),
    asked("Give me a JSON object for a person with name Alice and age 30.", '"Alice"', "30"),
    asked("Extract name and city as JSON: Bruno is 41 years old and lives in Lisbon.", '"Bruno"', '"Lisbon"'),
    asked("I saw a puppy, a cat and a raccoon during my bike ride in the park", "puppy"),
    called("What is the weather like in Oslo?", [WEATHER, TIMER], '"get_weather"', '"Oslo"'),
    called("Please set a timer for 12 minutes", [WEATHER, TIMER], '"set_timer"', "12"),
    called("Paint the boat Kelbo.", [TIMER, BOAT], '"paint_boat"', '"Kelbo"'),
    called("What is the capital of Spain?", [WEATHER], "Madrid"),
    Prompt(
        [
            {"role": "user", "content": "How is the weather in Rome?"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": '{"temperature": 24, "condition": "sunny"}'},
        ],
        tools=[WEATHER],
        must_hold=("24", "sunny"),
    ),
    Prompt(text="What is deep learning?"),
    Prompt(text="Once upon a time"),
]


@dataclass(frozen=True)
class Answer:
    prompt: Prompt
    text: str
    ended: bool

    @property
    def good(self) -> bool:
        """Holds what it must, has an end, and every tool call in it parses."""
        calls = [part.split("</tool_call>")[0] for part in self.text.split("<tool_call>")[1:]]
        return self.ended and all(must in self.text for must in self.prompt.must_hold) and all(map(_parses, calls))


def _parses(text: str) -> bool:
    try:
        return set(json.loads(text)) == {"name", "arguments"}
    except ValueError:
        return False


def answer_all(folder: Path, *, max_tokens: int = 220) -> list[Answer]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return [_answer(prompt, tokenizer, model, max_tokens) for prompt in PROMPTS]


def _answer(prompt: Prompt, tokenizer: Any, model: Any, max_tokens: int) -> Answer:
    text = prompt.text
    if prompt.messages:
        text = tokenizer.apply_chat_template(
            prompt.messages, tools=prompt.tools or None, tokenize=False, add_generation_prompt=True
        )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    new = out[0, ids.shape[1] :]
    return Answer(prompt, tokenizer.decode(new, skip_special_tokens=True), len(new) < max_tokens)


def shown(prompt: Prompt) -> str:
    """The prompt in a line."""
    if not prompt.messages:
        return f"{prompt.text} (plain text)"
    text = " / ".join(message["content"] or "(call)" for message in prompt.messages)
    names = [offered["function"]["name"] for offered in prompt.tools]
    return text + (f" (tools: {', '.join(names)})" if names else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="model folder")
    parser.add_argument("--max-tokens", type=int, default=220)
    arguments = parser.parse_args()
    answers = answer_all(arguments.folder, max_tokens=arguments.max_tokens)
    for answer in answers:
        print(f"{'ok ' if answer.good else 'BAD'} {shown(answer.prompt)}\n    {answer.text!r}")
    print(f"{sum(answer.good for answer in answers)} of {len(answers)} hold what they must")


if __name__ == "__main__":
    main()
