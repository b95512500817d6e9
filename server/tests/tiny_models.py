"""Writes small model folders that any Hugging Face server can load: seeded random weights, and a tokenizer trained on the
spot. No network. Greedy output depends on the whole context, and a forgotten norm weight or bias changes it.
"""

import functools
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
BOS, EOS, PAD = 0, 2, 3
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_CONFIG = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 112,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}


def write_model(
    folder: Path, family: str, *, seed: int = 0, dtype: str = "float32", max_shard_size: str = "5GB", **config: Any
) -> Path:
    """Writes config.json, generation_config.json and safetensors; `config` overrides DEFAULT_CONFIG. Returns `folder`."""
    make_model(family, seed=seed, dtype=dtype, **config).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def write_servable_model(folder: Path, family: str = "llama", **options: Any) -> Path:
    """As `write_model`, with a tokenizer and a ChatML template. Returns `folder`."""
    write_model(folder, family, **options)
    return write_tokenizer(folder, options.get("vocab_size", DEFAULT_CONFIG["vocab_size"]))


def make_model(family: str, *, seed: int = 0, dtype: str = "float32", **config: Any) -> PreTrainedModel:
    """The model in memory, as transformers runs it."""
    model_config = AutoConfig.for_model(family, **{**DEFAULT_CONFIG, **config})
    model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    hidden_size = model_config.hidden_size
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(generator=generator)
            if "norm" in name:
                weight.mul_(0.3).add_(1)
            elif name.endswith("bias"):
                weight.mul_(0.3)
            elif "embed_tokens" in name and not model_config.tie_word_embeddings:
                pass
            elif "lm_head" in name or "embed_tokens" in name:
                # Logits have a deviation of 4: the best token stands out, and others have a chance to be sampled.
                weight.mul_(4 * hidden_size**-0.5)
            else:
                weight.mul_(weight.shape[1] ** -0.5)
    model.generation_config.eos_token_id = EOS
    return model.to(getattr(torch, dtype)).eval()


def write_tokenizer(folder: Path, vocab_size: int = 2048) -> Path:
    """Writes tokenizer.json and tokenizer_config.json with exactly `vocab_size` tokens (at least 300). Returns `folder`."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_train_tokenizer(vocab_size)),
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        chat_template=CHAT_TEMPLATE,
        model_max_length=DEFAULT_CONFIG["max_position_embeddings"],
    )
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def _train_tokenizer(vocab_size: int) -> str:
    """A byte-level BPE over some modules of the standard library, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    library = Path(sysconfig.get_paths()["stdlib"])
    tokenizer.train([str(library / f"{name}.py") for name in ("argparse", "ast", "calendar", "inspect", "tarfile")], trainer)
    # Words that no text has fill the table, so that the tokenizer and the embedding have the same number of rows.
    tokenizer.add_tokens([f" word{i}" for i in range(vocab_size - tokenizer.get_vocab_size())])
    return tokenizer.to_str()
