"""Continuations of a prefix, the latent averaged over at every step.

Settings are those of transformers' `generate`: they come from the base's generation
config, then from `generation_config`, then from single arguments. The scores that
processors and warpers see are averaged log probabilities.
"""

from __future__ import annotations

from collections.abc import Generator as Coroutine
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from eestim.errors import CapabilityError, DataError
from eestim.llm.averaging import average_log_probabilities
from eestim.llm.batches import check_tokens
from eestim.llm.discrete import TokenPerturbation
from eestim.llm.generation_settings import (
    criteria,
    end_symbols,
    processors,
    settings_in_force,
    token_budget,
)
from eestim.llm.sites import virtual_tokens

__all__ = ["generate"]

Paths = Coroutine[Tensor, Tensor, None]
_BROKEN = (
    "`model` predicts NaN: weights of its base or perturbation are not finite. Load "
    "them again, or go back to a checkpoint."
)


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Any,
    max_new_tokens: int | None = None,
    *,
    draws: int = 8,
    generator: Generator | None = None,
    attention_mask: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    **settings: Any,
) -> Tensor:
    """Continue token sequences, averaging over the latent at every step.

    The K latent paths are kept and extended, with a key-value cache each above the
    site; the next token is chosen from their averaged law.

    Parameters
    ----------
    model : LatentPrefixLM
    input_ids : (B, T) tensor, or mapping with `input_ids` and `attention_mask`
    max_new_tokens : int, optional
        64 where neither it nor `max_length` is set.
    draws : int
        K latent paths for each sequence.
    generator : torch.Generator, optional
        Source of latents and tokens; a fresh one of seed 0 when left out.
    attention_mask : (B, T) tensor, optional
        0 where a row is padded, on the left only.
    generation_config, logits_processor, stopping_criteria
        As in transformers.
    **settings
        `do_sample` (greedy when left out), `temperature`, `top_k` (all tokens when
        left out, where transformers has 50), `top_p`, `min_p`, `repetition_penalty`,
        `no_repeat_ngram_size`, `bad_words_ids`, `eos_token_id`, `pad_token_id`,
        `stop_strings`, `min_new_tokens`, `max_length`, `num_return_sequences`,
        `use_cache`.

    Returns
    -------
    (B R, T + new) tensor
        R sequences for each row; those that end early are filled with `pad_token_id`,
        or with the end symbol where there is none.

    Raises
    ------
    CapabilityError
        If a setting is one that averaged predictions do not follow (beam search, ...).
    ValueError
        If rows are padded on the right, or the base's context is exceeded.
    """
    tokens, mask = _prompt(model, input_ids, attention_mask)
    config = settings_in_force(
        model, generation_config, {**settings, "max_new_tokens": max_new_tokens}
    )
    budget = token_budget(model, config, tokens.shape[1])
    copies = config.num_return_sequences or 1
    tokens, mask = (x.repeat_interleave(copies, 0) for x in (tokens, mask))
    generator = generator or torch.Generator().manual_seed(0)
    process = processors(config, tokens, logits_processor)
    stop = criteria(model, config, stopping_criteria)
    ends = end_symbols(config, tokens)
    pad = config.pad_token_id
    fill = int(ends[0]) if pad is None and len(ends) else int(pad or 0)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    paths = _paths(model, tokens, mask, draws, budget, generator, config)
    model.silence()
    scores = next(paths)
    if bool(scores.isnan().any()):
        raise DataError(_BROKEN)
    for left in reversed(range(budget)):
        broken = scores.isnan().any()
        chosen = _choose(process(tokens, scores), bool(config.do_sample), generator)
        chosen = chosen.masked_fill(ended, fill)
        tokens = torch.cat([tokens, chosen.unsqueeze(1)], dim=1)
        ended = ended | torch.isin(chosen, ends) | stop(tokens, scores)
        all_ended, is_broken = torch.stack([ended.all(), broken]).tolist()  # one wait
        if is_broken:
            raise DataError(_BROKEN)
        if left == 0 or all_ended:
            break
        scores = paths.send(tokens)
    return tokens


def _prompt(model: Any, input_ids: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (tokens, mask of ones and zeros) on the model's device."""
    if isinstance(input_ids, Mapping) or hasattr(input_ids, "keys"):
        mask = input_ids.get("attention_mask") if mask is None else mask
        input_ids = input_ids["input_ids"]
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or not len(input_ids.T):
        shown = (
            f"has shape {tuple(input_ids.shape)}"
            if isinstance(input_ids, Tensor)
            else f"is a {type(input_ids).__name__}"
        )
        raise ValueError(
            f"`input_ids` {shown}; expected (B, T) tokens, at least one a row, "
            "such as tokenizer(text, return_tensors='pt') gives."
        )
    check_tokens(input_ids, model.base.get_input_embeddings().weight.shape[0])
    mask = torch.ones_like(input_ids) if mask is None else mask
    if mask.shape != input_ids.shape or bool((mask[:, 1:] < mask[:, :-1]).any()):
        raise ValueError(
            "`attention_mask` must have the shape of `input_ids` and pad on the left, "
            "so that each row ends where its continuation begins; tokenize with "
            "padding_side='left'."
        )
    return input_ids.to(model.device), mask.to(model.device)


def _paths(
    model: Any,
    tokens: Tensor,
    mask: Tensor,
    draws: int,
    budget: int,
    generator: Generator,
    config: GenerationConfig,
) -> Paths:
    """Return a coroutine: given all tokens, the next token's averaged log law."""
    is_padded = not bool(mask.all())
    if isinstance(model.perturbation, TokenPerturbation):
        if is_padded:
            raise CapabilityError(
                f"{model.perturbation} does not take padded rows; continue rows of one "
                "length at a time."
            )
        return _changed_paths(model, tokens, draws, budget, generator)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    first = (mask == 0).sum(1, keepdim=True)
    start = torch.where(mask == 0, place, first) if is_padded or model.site else None
    cached = config.use_cache is not False and not virtual_tokens(model.base)
    return _latent_paths(model, tokens, start, draws, generator, cached)


def _latent_paths(
    model: Any,
    tokens: Tensor,
    start: Tensor | None,
    draws: int,
    generator: Generator,
    cached: bool,
) -> Paths:
    """Yield averaged log laws of continuous latents, each path with its own cache.

    Without a cache every step runs the whole rows again, with the same latents.
    """
    site, table = model._site(), model.base.get_input_embeddings()
    caches = [DynamicCache(config=model.base.config) for _ in range(2)]
    lower, upper = caches if cached else (None, None)
    watch = None if model.reference is None else model.reference.watch(cached=cached)
    fresh, clean, latents = tokens, None, None
    while True:
        embeddings = table(fresh if cached else tokens)
        states = model.widened(site.states(embeddings, start, lower))
        if watch is not None:
            if not cached:
                watch = model.reference.watch()
            known = watch.extend(fresh if cached else tokens, start)
            states = torch.cat([states, known.to(states.dtype)], -1)
        clean = states if clean is None or not cached else torch.cat([clean, states], 1)
        latents = _extended(
            model, latents, states[:, -fresh.shape[1] :], draws, generator
        )
        shown = states.shape[1]
        if not getattr(model.perturbation, "sees_prefix", True):
            moved = model.moved(states, latents[:, :, -shown:], start)
        else:
            moved = model.moved(clean, latents, start)[:, :, -shown:]
        logits = site.logits(
            model.narrowed(moved.flatten(0, 1)), start, upper, only_last=True
        )
        last = logits[:, -1].view(len(moved), len(tokens), -1)
        tokens = yield average_log_probabilities(last)
        fresh = tokens[:, -1:]
        if start is not None:
            start = torch.cat([start, start[:, -1:]], 1)


def _extended(
    model: Any,
    latents: Tensor | None,
    fresh: Tensor,
    draws: int,
    generator: Generator,
) -> Tensor:
    """Return the latents of all positions, after drawing those of the fresh ones."""
    if latents is None:
        found: Tensor = model.latents(fresh, draws, generator)
        return found
    if model.latent == "sequence":
        return torch.cat([latents, latents[:, :, -1:]], 2)
    return torch.cat([latents, model.latents(fresh, draws, generator)], 2)


def _changed_paths(
    model: Any, tokens: Tensor, draws: int, budget: int, generator: Generator
) -> Paths:
    """Yield averaged log laws of changed prefixes, each token's change drawn once."""
    rows, length = tokens.shape
    noise = model.perturbation.noise(draws, rows, length + budget, generator)
    while True:
        logits = model.of_changed(tokens, noise[:, :, : tokens.shape[1]])
        tokens = yield average_log_probabilities(logits[:, :, -1])


def _choose(scores: Tensor, do_sample: bool, generator: Generator) -> Tensor:
    """Return one token a row: the likeliest, or a draw made by the generator."""
    if not do_sample:
        return scores.argmax(-1)
    law = scores.softmax(-1).to(generator.device)
    token = torch.multinomial(law, 1, generator=generator).squeeze(1)
    return token.to(scores.device)
