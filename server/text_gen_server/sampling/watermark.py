"""The watermark of Kirchenbauer et al. (A watermark for large language models, 2023): the token before splits the vocabulary
into green and red ones, and green logits are raised a little. Whoever knows the split can count (`docs/detect_watermark.py`).

The split is a pure function: token `v` is green after token `p` exactly when `uniform(p + KEY, v) < gamma`, with `uniform` of
`rng.py`. It depends on neither the vocabulary's size nor the device nor the seed of a request.
"""

import torch
from torch import Tensor

from text_gen_server.sampling.rng import to_signed, uniform

KEY = 0x7E47_6E6D_A2C0_FFEE  # keeps the split apart from the draws of a request whose seed is a token id


def green(previous: Tensor, gammas: Tensor, vocab_size: int) -> Tensor:
    """Which tokens are green.

    previous: [n] int64, the token before
    gammas:   [n] float64, share of the vocabulary that is green
    returns:  [n, V] bool
    """
    seeds = (previous + to_signed(KEY)).unsqueeze(1)
    token_ids = torch.arange(vocab_size, device=previous.device)
    return uniform(seeds, token_ids) < gammas.unsqueeze(1)
