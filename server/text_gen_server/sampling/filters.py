"""Temperature and the filters that cut a distribution down: top_k, top_p, typical_p, min_p, in this order.

Each filter keeps what is at or above a threshold *value*, so ties stay together and a row does not depend on its neighbours
or on the order a sort leaves equals in. Each sees what the one before it left, renormalized, and runs only over the rows that
ask for it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from text_gen_server.plan import SamplingParameters
from text_gen_server.transfers import upload

# How many of the most likely tokens are looked at before a whole row is sorted, which costs a CPU milliseconds a row.
NUM_CANDIDATES = (1024, 8192)


def filter_logits(logits: Tensor, parameters: Sequence[SamplingParameters]) -> Tensor:
    """Scaled logits, with minus infinity for what the filters removed. At least one token of each row stays.

    logits:     [N, V] float32, finite
    parameters: N
    returns:    [N, V] float32, at most 0
    """
    vocab_size = logits.shape[-1]
    # The maximum is taken off first, so that a tiny temperature cannot overflow.
    scores = (logits - logits.amax(-1, keepdim=True)).div_(_column([p.temperature for p in parameters], logits))
    _apply(_top_k, scores, [p.top_k if 0 < p.top_k < vocab_size else None for p in parameters])
    _apply(_top_p, scores, [p.top_p if p.top_p < 1 else None for p in parameters])
    _apply(_typical_p, scores, [p.typical_p if p.typical_p < 1 else None for p in parameters])
    _apply(_min_p, scores, [p.min_p if p.min_p > 0 else None for p in parameters])
    return scores


def _apply(find: Callable[[Tensor, list[float]], Tensor], scores: Tensor, values: Sequence[float | None]) -> None:
    """Removes in place what `find` marks in [n, V] bool, in the rows with a value."""
    chosen = [n for n, value in enumerate(values) if value is not None]
    asked = [value for value in values if value is not None]
    if len(chosen) == len(values):
        scores.masked_fill_(find(scores, asked), -math.inf)
    elif chosen:
        index = upload(torch.tensor(chosen), scores.device)
        part = scores[index]
        scores[index] = part.masked_fill_(find(part, asked), -math.inf)


def _top_k(scores: Tensor, values: list[float]) -> Tensor:
    last = upload(torch.tensor([int(value) - 1 for value in values]), scores.device)
    largest = scores.topk(int(max(values))).values
    return scores < largest.gather(-1, last.unsqueeze(1))


def _top_p(scores: Tensor, values: list[float]) -> Tensor:
    """All but the fewest most likely tokens that hold `top_p` of the mass (Holtzman et al., 2019)."""
    probabilities = scores.softmax(-1)
    return probabilities < -_covering_key(-probabilities, probabilities, _column(values, scores))


def _typical_p(scores: Tensor, values: list[float]) -> Tensor:
    """All but the tokens whose surprise is closest to the entropy, up to `typical_p` of the mass (Meister et al., 2022)."""
    log_probabilities = scores.log_softmax(-1)
    probabilities = log_probabilities.exp()
    # A running sum, because the rounding of a plain one may depend on how many rows there are.
    entropy = -(probabilities * log_probabilities).nan_to_num_(nan=0.0).cumsum(-1)[:, -1:]
    distance = (-log_probabilities - entropy).abs()
    return distance > _covering_key(distance, probabilities, _column(values, scores))


def _min_p(scores: Tensor, values: list[float]) -> Tensor:
    """All but the tokens with at least `min_p` times the probability of the most likely one."""
    return scores < scores.amax(-1, keepdim=True) + _column([math.log(value) for value in values], scores)


def _covering_key(keys: Tensor, probabilities: Tensor, mass: Tensor) -> Tensor:
    """[n, 1]: the smallest key such that the tokens with keys up to it hold at least `mass` of the probability.

    On a CPU most rows reach their mass within a few tokens, and the look at the tensor costs nothing there; elsewhere it
    would be a device sync, and sorting is cheap.
    """
    vocab_size = keys.shape[-1]
    if keys.device.type != "cpu":
        return _covering_key_among(vocab_size, keys, probabilities, mass)[0]
    found = torch.empty_like(mass)
    left = torch.arange(len(keys))
    for count in (*NUM_CANDIDATES, vocab_size):
        key, is_covered = _covering_key_among(min(count, vocab_size), keys[left], probabilities[left], mass[left])
        found[left] = key
        left = left[~is_covered]
        if len(left) == 0:
            break
    return found


def _covering_key_among(count: int, keys: Tensor, probabilities: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """The covering key ([n, 1]) as far as the `count` smallest tell, and whether ([n] bool) these hold the mass."""
    ordered, order = keys.topk(count, largest=False)
    covered = probabilities.gather(-1, order).cumsum(-1)
    last = (covered < mass).sum(-1, keepdim=True).clamp_(max=count - 1)
    return ordered.gather(-1, last), covered[:, -1] >= mass[:, 0]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return upload(torch.tensor(values, dtype=torch.float32), like.device).unsqueeze(1)
