"""The folders that other tests are built on are what they claim to be."""

from pathlib import Path

from text_gen_server.config import load_model_config
from tiny_models import EOS, PAD, write_servable_model
from transformers import AutoTokenizer

from models.driver import Driver, load


def test_a_servable_folder_has_a_tokenizer_as_large_as_its_embedding(tmp_path: Path) -> None:
    write_servable_model(tmp_path, "qwen2", vocab_size=1500)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == load_model_config(tmp_path).vocab_size == 1500
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS, PAD)
    text = "def f(x): return 'ä €' # done"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_greedy_output_depends_on_the_whole_context(tmp_path: Path) -> None:
    driver = Driver(*load(write_servable_model(tmp_path)))
    prompt = list(range(10, 40))
    first, second = driver.greedy(prompt, 12), driver.greedy([9, *prompt[1:]], 12)
    assert len(set(first)) > 6, "it does not repeat one token"
    assert first != second
