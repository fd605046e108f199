"""Continuations of a prefix, the latent averaged over at every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eestim.llm.averaging import average_log_probabilities

__all__ = ["generate"]


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    max_new_tokens: int = 64,
    *,
    draws: int = 8,
    do_sample: bool = True,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Continue token sequences, averaging over the latent at every step.

    The K latent paths are kept and extended, with a key-value cache each; the
    next token is chosen from their averaged law.

    Parameters
    ----------
    model : LatentPrefixLM
    input_ids : (B, T) tensor
    max_new_tokens, do_sample, temperature, top_k, top_p, eos_token_id
        As in transformers.
    draws : int
        K latent paths for each sequence.
    generator : torch.Generator, optional
        Source of latents and tokens; a fresh one of seed 0 when left out.

    Returns
    -------
    (B, T + new) tensor
        Rows that end early are filled with `eos_token_id`.
    """
    if input_ids.ndim != 2:
        raise ValueError(
            f"`input_ids` has shape {tuple(input_ids.shape)}; expected (B, T)."
        )
    model.check_context(input_ids.shape[1] + max_new_tokens)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    warpers: Any = _warpers(temperature, top_k, top_p)
    tokens = input_ids.to(model.device)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    fresh, cache = tokens, None
    for _ in range(max_new_tokens):
        embeddings = model.widened(model.base.get_input_embeddings()(fresh))
        latents = model.latents(embeddings, draws, generator)
        moved = model.perturb(embeddings, latents)
        output = model.base(
            inputs_embeds=model.narrowed(moved.flatten(0, 1)),
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
        last = output.logits[:, -1].reshape(len(moved), len(tokens), -1)
        log_p = average_log_probabilities(last)
        chosen = _choose(warpers(tokens, log_p), do_sample, generator)
        if eos_token_id is not None:
            chosen = chosen.masked_fill(ended, eos_token_id)
            ended = ended | (chosen == eos_token_id)
        fresh = chosen.unsqueeze(1)
        tokens = torch.cat([tokens, fresh], dim=1)
        if bool(ended.all()):
            break
    return tokens


def _warpers(
    temperature: float, top_k: int | None, top_p: float | None
) -> LogitsProcessorList:
    """Return transformers' processors for the options that are set."""
    chosen = LogitsProcessorList()
    if temperature != 1.0:
        chosen.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1.0:
        chosen.append(TopPLogitsWarper(top_p))
    return chosen


def _choose(scores: Tensor, do_sample: bool, generator: Generator) -> Tensor:
    """Return one token a row: the likeliest, or a draw made by the generator."""
    if not do_sample:
        return scores.argmax(-1)
    law = scores.softmax(-1).to(generator.device)
    token = torch.multinomial(law, 1, generator=generator).squeeze(1)
    return token.to(scores.device)
