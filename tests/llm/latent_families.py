"""Tiny causal models of four families at random initialisation, for tests."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from eestim.llm.base import byte_model

WIDTH, CONTEXT, LAYERS = 16, 32, 3


def built(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = kind(config).eval()
        # Larger weights: at the usual start every prediction is nearly uniform.
        for parameter in model.parameters():
            parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def gpt2(layers=LAYERS):
    return built(GPT2LMHeadModel, GPT2Config(
        vocab_size=259, n_positions=CONTEXT, n_embd=WIDTH, n_layer=layers, n_head=2,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    ))  # fmt: skip


def llama(layers=LAYERS):
    """Untied, with two queries a key."""
    return built(LlamaForCausalLM, LlamaConfig(
        vocab_size=300, hidden_size=WIDTH, intermediate_size=32,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=CONTEXT, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=1, pad_token_id=0,
    ))  # fmt: skip


def qwen2(layers=LAYERS):
    return built(Qwen2ForCausalLM, Qwen2Config(
        vocab_size=259, hidden_size=WIDTH, intermediate_size=32,
        num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=1,
        pad_token_id=0, tie_word_embeddings=True,
    ))  # fmt: skip


def byte(layers=LAYERS):
    model = byte_model(CONTEXT, width=WIDTH, layers=layers, heads=2, seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


FAMILIES = [gpt2, llama, qwen2, byte]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ids(rows=3, length=10, seed=5):
    found = torch.randint(2, 250, (rows, length), generator=seeded(seed))
    found[:, 0] = 1
    return found
