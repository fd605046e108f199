"""Sequences that a model makes itself, beside the observed ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from eestim.errors import CapabilityError
from eestim.llm.averaging import RowGenerators
from eestim.llm.batches import as_token_batch
from eestim.llm.documents import TokenBatch
from eestim.llm.prefix import LatentPrefixLM

__all__ = ["replicated"]


def replicated(model: nn.Module, batch: Any, generator: Any) -> Any:
    """Return a batch of 2 B rows, each observed row followed by its replicate.

    A replicate keeps the first token and the length of its row, and the model draws
    the other tokens under one set of latents of its own. A model other than
    `LatentPrefixLM` has a method ``replicated(batch, generator)``.

    Raises
    ------
    CapabilityError
        If the model cannot make sequences.
    """
    own = getattr(model, "replicated", None)
    if own is not None:
        return own(batch, generator)
    if not isinstance(model, LatentPrefixLM) or hasattr(model.perturbation, "noise"):
        raise CapabilityError(
            "`equation` needs sequences made by the model; give the model a method "
            "`replicated(batch, generator)`, or use LatentPrefixLM with a perturbation "
            "of its states."
        )
    rows = as_token_batch(batch)
    if rows.start is not None:
        raise CapabilityError(
            "`documents` has packed rows, which cannot be made again by the model; "
            "give one document a row."
        )
    made = _made(model, rows.input_ids, generator)
    targets = torch.full_like(rows.targets, -100)
    targets[:, :-1] = made[:, 1:]
    targets = targets.masked_fill(rows.targets == -100, -100)
    return TokenBatch(
        torch.stack([rows.input_ids, made], 1).flatten(0, 1),
        torch.stack([rows.targets, targets], 1).flatten(0, 1),
    )


@torch.no_grad()
def _made(model: LatentPrefixLM, ids: Tensor, generator: Any) -> Tensor:
    """Return tokens sampled from the model after each row's first one, (B, T)."""
    made = ids.clone()
    latents = model.latents(model.embed(ids), 1, generator)
    levels = _uniforms(ids, generator)
    for place in range(ids.shape[1] - 1):
        prefix = made[:, : place + 1]
        moved = model.perturb(model.embed(prefix), latents[:, :, : place + 1], prefix)
        law = model.logits_of(moved, prefix)[0, :, -1].double().softmax(-1).cumsum(-1)
        level = levels[:, place].to(law) * law[:, -1]
        made[:, place + 1] = (
            torch.searchsorted(law, level.unsqueeze(-1)).squeeze(-1).to(made)
        )
    return made


def _uniforms(ids: Tensor, generator: Generator | RowGenerators) -> Tensor:
    """Return (B, T) uniform numbers, each row's from its own generator."""
    length = ids.shape[1]
    if isinstance(generator, RowGenerators):
        rows = [
            torch.rand(length, generator=one, dtype=torch.float64)
            for one in generator.generators
        ]
        return torch.stack(rows)
    return torch.rand(len(ids), length, generator=generator, dtype=torch.float64)
