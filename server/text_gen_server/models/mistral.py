"""Mistral is Llama without biases and with a sliding window in every layer, both of which the configuration says."""

from text_gen_server.models.llama import Llama


class Mistral(Llama):
    """See `Llama`."""
