#!/usr/bin/env python3
"""Tells whether a text carries the watermark of text-gen, by counting green tokens. Needs no model and no PyTorch, only the
tokenizer of the model that may have written the text, and the --watermark-gamma that it was served with.

    python detect_watermark.py --tokenizer FOLDER text.txt       a file, or - for standard input
    python detect_watermark.py --token-ids 17,4,9,...

Token v is green after token p exactly when uniform(p + KEY, v) < gamma (server/text_gen_server/sampling/watermark.py, rng.py).
Without a watermark each pair of tokens is green with probability gamma; a pair that comes again says nothing new and is counted
once. z is how many standard deviations the count lies above that. A z above 4 happens by chance once in 30,000 texts.
"""

import argparse
import itertools
import math
import sys
from pathlib import Path

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
KEY = 0x7E476E6DA2C0FFEE


def mix(bits: int) -> int:
    """The finalizer of splitmix64."""
    bits = (bits ^ (bits >> 30)) * MIX_1 & MASK
    bits = (bits ^ (bits >> 27)) * MIX_2 & MASK
    return bits ^ (bits >> 31)


def is_green(previous: int, token_id: int, gamma: float) -> bool:
    key = mix((previous + KEY + GOLDEN) & MASK)
    return (mix((key + (token_id + 1) * GOLDEN) & MASK) >> 11) * 2.0**-53 < gamma


def detect(token_ids: list[int], gamma: float) -> tuple[int, int, float]:
    """The number of distinct pairs, how many are green, and z."""
    pairs = set(itertools.pairwise(token_ids))
    num_green = sum(is_green(previous, token_id, gamma) for previous, token_id in pairs)
    if not pairs:
        return 0, 0, 0.0
    expected = gamma * len(pairs)
    return len(pairs), num_green, (num_green - expected) / math.sqrt(expected * (1 - gamma))


def read_token_ids(arguments: argparse.Namespace) -> list[int]:
    if arguments.token_ids is not None:
        return [int(token_id) for token_id in arguments.token_ids.split(",")]
    from tokenizers import Tokenizer

    text = sys.stdin.read() if arguments.text == "-" else Path(arguments.text).read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(Path(arguments.tokenizer) / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def main() -> None:
    parser = argparse.ArgumentParser(description="Counts green tokens and prints how unlikely their number is.")
    parser.add_argument("text", nargs="?", help="file with the text, or - for standard input")
    parser.add_argument("--tokenizer", help="folder of the model, with tokenizer.json")
    parser.add_argument("--token-ids", help="in place of a text: ids with commas between them")
    parser.add_argument("--gamma", type=float, default=0.5, help="as the server's --watermark-gamma (default: 0.5)")
    arguments = parser.parse_args()
    if (arguments.token_ids is None) == (arguments.text is None):
        parser.error("give a text or --token-ids")
    if arguments.text is not None and arguments.tokenizer is None:
        parser.error("--tokenizer is needed to read a text")
    if not 0 < arguments.gamma < 1:
        parser.error("--gamma must be above 0 and below 1")
    num_pairs, num_green, z = detect(read_token_ids(arguments), arguments.gamma)
    print(f"pairs {num_pairs}  green {num_green}  z {z:.2f}")


if __name__ == "__main__":
    main()
