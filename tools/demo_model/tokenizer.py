"""The tokenizer of the demo model: byte-level BPE, trained on the text of the model. Digits stand alone, so that
sums can be learnt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_model.chat import CHAT_TEMPLATE_FILE, END, END_OF_TEXT, MARKS, PAD, SPECIAL_TOKENS, Piece

if TYPE_CHECKING:
    from collections.abc import Iterable

# A contraction, a word with the mark or space before it, one digit, marks with line ends, spaces.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Texts must not hold the special tokens; those come in front of the vocabulary by themselves."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL_TOKENS, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=3,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _with_visible_marks(tokenizer)


def _with_visible_marks(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer makes all added tokens special, and special ones are left out of the text that a client gets."""
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(content))


def tokenizer_config(tokenizer: Tokenizer, positions: int) -> dict[str, Any]:
    """`tokenizer_config.json` of the model folder."""
    decoder = {
        str(idx): {"content": token.content, "special": token.special, **_AS_IT_STANDS}
        for idx, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "added_tokens_decoder": decoder,
        "chat_template": CHAT_TEMPLATE_FILE.read_text(encoding="utf-8"),
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
    }


_AS_IT_STANDS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def text_without_marks(pieces: list[Piece]) -> str:
    """What of a document the vocabulary is learnt from."""
    text = "".join(piece.text for piece in pieces)
    for mark in [*SPECIAL_TOKENS, *MARKS]:
        text = text.replace(mark, "\n")
    return text


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that end an answer: first that of chats."""
    return [tokenizer.token_to_id(END), tokenizer.token_to_id(END_OF_TEXT)]
