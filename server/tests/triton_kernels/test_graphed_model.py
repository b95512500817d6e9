"""A real model behind the graph manager, with the Triton kernel interpreted: padded decode steps give the same tokens."""

from pathlib import Path

import torch
from models.driver import CPU, Driver, Sequence, load
from runtime.test_cuda_graphs import FakeCapture
from text_gen_server.cuda_graphs import GraphedModel, GraphLimits
from tiny_models import write_model


def test_graphed_decodes_give_the_tokens_of_eager_ones(tmp_path: Path) -> None:
    model, config = load(write_model(tmp_path, "llama", num_hidden_layers=2), attention="triton")
    answers = []
    for is_graphed in (False, True):
        driver = Driver(model, config, block_size=16)
        capture = FakeCapture()
        if is_graphed:
            limits = GraphLimits(sizes=(2, 4), max_total_tokens=64)
            driver.model = GraphedModel(model, kv_cache=driver.cache, limits=limits, capture=capture, device=CPU)
        sequences = [Sequence([5, 9, 11]), Sequence(list(range(20))), Sequence([7])]
        for sequence in sequences:
            driver.step([(sequence, len(sequence.tokens))])
        for step in range(3):
            # The third sequence ends early, so that its row becomes padding while its blocks stay in the cache.
            running = sequences[: 3 - step // 2]
            for sequence in running:
                sequence.tokens.append(int(sequence.logits[-1][-1].argmax()))
            driver.step([(sequence, 1) for sequence in running])
        answers.append([sequence.tokens for sequence in sequences])
        assert torch.cat([sequence.logits[-1] for sequence in sequences]).isfinite().all()
        assert capture.sizes == ([4, 2] if is_graphed else [])
    assert answers[0] == answers[1]
