"""The training of the demo model, on a tiny network: it can be stopped anywhere, and what it writes is an ordinary model."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from demo_model import export
from demo_model.batches import Batches
from demo_model.evaluate import PROMPTS, Answer, shown
from demo_model.model import Shape, new_model
from demo_model.train import Recipe, Training
from text_gen_server.demo import check_demo_model

transformers = pytest.importorskip("transformers")

SHAPE = Shape(hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocabulary=420, positions=256)
RECIPE = Recipe(steps=6, tokens=256, lengths=(32, 64), warmup=2, shape=SHAPE, tokenizer_documents=100)


def training(folder, recipe=RECIPE) -> Training:
    return Training(recipe, folder, device="cpu", bfloat16=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Training:
    trained = training(tmp_path_factory.mktemp("undisturbed"))
    trained.run(minutes=1, report_every=100)
    return trained


def test_a_training_that_was_stopped_gives_the_same_weights(undisturbed, tmp_path):
    first = training(tmp_path)
    for _ in range(3):
        first.train_step()
    first.save()
    second = training(tmp_path)
    assert second.step == 3
    second.run(minutes=1, report_every=100)
    assert all(
        torch.equal(one, two) for one, two in zip(second.model.parameters(), undisturbed.model.parameters(), strict=True)
    )


def test_no_minutes_left_means_no_step(tmp_path):
    trained = training(tmp_path)
    trained.run(minutes=0, report_every=100)
    assert trained.step == 0
    assert trained.checkpoint_file.is_file()


def test_a_checkpoint_of_another_recipe_is_refused(undisturbed):
    with pytest.raises(ValueError, match="seed"):
        training(undisturbed.checkpoint_file.parent, Recipe(**{**vars(RECIPE), "seed": 1}))


def test_a_training_can_be_shortened_until_the_rate_falls(tmp_path):
    first = training(tmp_path, Recipe(**{**vars(RECIPE), "steps": 100}))
    for _ in range(3):
        first.train_step()
    first.save()
    shorter = training(tmp_path, Recipe(**{**vars(RECIPE), "steps": 5, "falling_part": 0.4}))
    assert shorter.step == 3
    with pytest.raises(ValueError, match=r"steps, falling_part"):
        training(tmp_path, Recipe(**{**vars(RECIPE), "steps": 5, "falling_part": 0.6}))


def test_the_loss_falls(undisturbed):
    untrained = training(undisturbed.checkpoint_file.parent / "new")
    untrained.measure()
    assert undisturbed.losses[-1].all < untrained.losses[-1].all - 0.1


def test_a_target_is_the_next_token_with_its_own_weight(undisturbed):
    tokenizer = undisturbed.tokenizer
    batch = Batches(tokenizer, seed=0, tokens=512, lengths=[512]).batch(0)
    assert torch.equal(batch.token_ids[:, 1:], batch.targets[:, :-1])
    targets, weights = batch.targets[0].tolist(), batch.weights[0].tolist()
    head = tokenizer.encode("<|im_start|>assistant\n").ids
    begins = [idx + len(head) for idx in range(len(targets) - len(head)) if targets[idx : idx + len(head)] == head]
    ends = [targets.index(tokenizer.token_to_id("<|im_end|>"), idx) for idx in begins if idx < 400]
    assert ends
    for begin, end in zip(begins, ends, strict=False):
        assert weights[begin - len(head) : begin] == pytest.approx([0.1] * len(head))
        assert weights[begin : end + 1] == [1.0] * (end + 1 - begin)
        assert weights[end + 1] == pytest.approx(0.1)


def test_every_step_has_documents_of_its_own_and_lengths_come_in_turn(undisturbed):
    batches = Batches(undisturbed.tokenizer, seed=0, tokens=128, lengths=[64, 128])
    assert [batches.batch(step).token_ids.shape for step in range(3)] == [(2, 64), (1, 128), (2, 64)]
    assert not torch.equal(batches.batch(0).token_ids, batches.batch(2).token_ids)


def test_the_rate_rises_stays_and_falls():
    recipe = Recipe(steps=100, warmup=10, falling_part=0.4, learning_rate=1.0)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[10:60]) == {1.0}
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert rates[-1] < 0.05


def test_transformers_computes_the_same_logits():
    ours = new_model(SHAPE, seed=1)
    config = transformers.LlamaConfig(
        hidden_size=SHAPE.hidden,
        num_hidden_layers=SHAPE.layers,
        num_attention_heads=SHAPE.heads,
        num_key_value_heads=SHAPE.kv_heads,
        head_dim=SHAPE.head_dim,
        intermediate_size=SHAPE.intermediate,
        vocab_size=SHAPE.vocabulary,
        rms_norm_eps=SHAPE.epsilon,
        tie_word_embeddings=True,
    )
    theirs = transformers.LlamaForCausalLM(config)
    theirs.load_state_dict(ours.state_dict() | {"lm_head.weight": ours.model["embed_tokens"].weight})
    ids = torch.arange(50)[None]
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_folder_is_a_model_with_a_template_for_tools(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "answer_all", lambda _folder: [])
    export.write_model(undisturbed, tmp_path, grammatical=17)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tools = [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}}
    ]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tools=tools, add_generation_prompt=True, tokenize=False
    )
    assert json.dumps(tools[0]) in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    ids = tokenizer(prompt)["input_ids"]
    assert max(ids) < model.config.vocab_size
    assert tokenizer.decode(ids) == prompt
    assert len(model.generation_config.eos_token_id) == 2
    assert not (set(tokenizer.all_special_tokens) & {"<tool_call>", "</tool_call>"})


def test_the_card_and_the_checksums_are_those_of_the_folder(undisturbed, tmp_path, monkeypatch):
    answers = [Answer(prompt, f"answer {idx}", True) for idx, prompt in enumerate(PROMPTS)]
    monkeypatch.setattr(export, "answer_all", lambda _folder: answers)
    for _ in range(2):  # The second time the folder is there.
        export.write_model(undisturbed, tmp_path, grammatical=17)
        assert check_demo_model(tmp_path) == tmp_path
    card = (tmp_path / "README.md").read_text()
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() in card
    assert f"| {undisturbed.losses[-1].step} | {undisturbed.losses[-1].answers:.4f} |" in card
    assert len(PROMPTS) >= 30
    assert all(shown(prompt) in card and f"answer {idx}" in card for idx, prompt in enumerate(PROMPTS))
    assert "17 of these, as judged by reading" in card
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o444 == 0o444
