"""Qwen2 is Llama with biases at query, key and value, and a sliding window in some layers, as the configuration says."""

from text_gen_server.models.llama import Llama


class Qwen2(Llama):
    """See `Llama`."""
