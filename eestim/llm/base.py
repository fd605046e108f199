"""The embedded default: a byte-level causal model that needs no download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

__all__ = ["byte_model", "byte_tokenizer"]


def byte_tokenizer() -> Any:
    """Return transformers' UTF-8 byte tokenizer, 259 tokens, without files.

    Its end symbol also starts each document.

    Examples
    --------
    >>> byte_tokenizer()("ab", add_special_tokens=False)["input_ids"]
    [100, 101]
    """
    return ByT5Tokenizer(extra_ids=0)


def byte_model(
    context: int = 128,
    *,
    width: int = 96,
    layers: int = 4,
    heads: int = 4,
    seed: int = 0,
) -> Any:
    """Return a Llama-style causal model over bytes at random initialisation.

    Parameters
    ----------
    context : int
        Longest sequence, in bytes.
    width, layers, heads : int
        Sizes of the transformer; the defaults give 0.47 million parameters.
    seed : int
        Seed of the initialisation; the global generator is left as it was.

    Examples
    --------
    >>> byte_model(32, width=8, layers=1, heads=2).config.vocab_size
    259
    """
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    return model.eval()
