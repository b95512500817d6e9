"""Writes a model for tests that need many different tokens: a seeded Llama with tokenizer and chat template. It babbles, but
never stalls.

The embedding is random and the output layer is the embedding moved on by one token along a fixed shuffled circle, so the most
likely token after each is another one. Needs neither torch nor transformers nor a network.
"""

import json
import struct
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY, POSITIONS = 256, 4, 8, 2, 32, 704, 4096, 4096
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
END_TOKEN_ID = SPECIAL_TOKENS.index("<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Of the standard library: prose and code enough for the merges, little enough to read in a second.
TRAINING_FILES = ["argparse.py", "ast.py", "datetime.py", "doctest.py", "pathlib.py", "pydoc.py", "statistics.py", "typing.py"]
SEED = 0


def write_babbling_model(folder: Path) -> Path:
    """Makes `folder`, the same every time. Returns `folder`."""
    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    _write_json(folder / "config.json", _config())
    _write_json(folder / "generation_config.json", {"eos_token_id": END_TOKEN_ID, "bos_token_id": 0, "pad_token_id": 3})
    _write_safetensors(folder / "model.safetensors", _weights())
    return folder


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": END_TOKEN_ID,
        "pad_token_id": 3,
    }


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    texts = [(standard_library / name).read_text(encoding="utf-8") for name in TRAINING_FILES]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|pad|>",
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": POSITIONS,
            "clean_up_tokenization_spaces": False,
        },
    )


def _weights() -> dict[str, NDArray[np.float32]]:
    generator = np.random.default_rng(SEED)

    def normal(*shape: int, scale: float) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)

    embedding = normal(VOCABULARY, HIDDEN, scale=1.0)
    circle = generator.permutation(np.arange(len(SPECIAL_TOKENS), VOCABULARY))
    output = np.zeros_like(embedding)
    output[np.roll(circle, -1)] = embedding[circle]
    # After a special token, as at the end of a chat template, the circle is entered somewhere.
    output[circle[: len(SPECIAL_TOKENS)]] += embedding[: len(SPECIAL_TOKENS)]
    # A short answer ends by itself now and then.
    output[END_TOKEN_ID] = embedding[circle[:: VOCABULARY // 32]].sum(0)
    weights = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": np.ones(HIDDEN, dtype=np.float32),
        "lm_head.weight": output * np.float32(HIDDEN**-0.5),
    }
    # The layers are kept small beside the embedding, so that they vary what comes next without drowning it.
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        weights[f"{prefix}.input_layernorm.weight"] = np.ones(HIDDEN, dtype=np.float32)
        weights[f"{prefix}.post_attention_layernorm.weight"] = np.ones(HIDDEN, dtype=np.float32)
        for name, rows, columns in (
            ("self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM),
            ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
            ("mlp.up_proj", INTERMEDIATE, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTERMEDIATE),
        ):
            weights[f"{prefix}.{name}.weight"] = normal(rows, columns, scale=columns**-0.5)
    return weights


def _write_safetensors(file: Path, weights: dict[str, NDArray[np.float32]]) -> None:
    """bfloat16, which numpy does not know: the upper half of a float32, rounded to the nearest."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, offset = [], 0
    for name, weight in weights.items():
        bits = np.ascontiguousarray(weight).view(np.uint32)
        part = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [offset, offset + len(part)]}
        parts.append(part)
        offset += len(part)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        stream.writelines(parts)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
