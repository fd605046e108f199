"""Draws of the latent, and averages of predictions over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

__all__ = ["RowGenerators", "average_log_probabilities", "standard_normal"]


class RowGenerators:
    """One generator for each row of a batch, where one for the batch is expected.

    Draws of a row then do not depend on which other rows share its batch, so splitting
    a batch over accumulation steps or devices changes nothing. Understood by
    `standard_normal`, hence by models that draw with it.
    """

    def __init__(self, generators: Sequence[Generator]) -> None:
        self.generators = tuple(generators)

    @property
    def device(self) -> torch.device:
        """Where the draws are made."""
        return self.generators[0].device


def average_log_probabilities(logits: Tensor) -> Tensor:
    r"""Return the log of the mean over draws of the predicted law.

    .. math:: \log \bar p_v = \log \frac1K \sum_k \mathrm{softmax}_v(l_k)

    Parameters
    ----------
    logits : (K, ..., V) tensor

    Returns
    -------
    (..., V) tensor

    Examples
    --------
    >>> average_log_probabilities(torch.zeros(3, 4)).exp()
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return wide.log_softmax(-1).logsumexp(0) - math.log(len(logits))


def standard_normal(
    shape: tuple[int, ...], generator: Generator | RowGenerators, like: Tensor
) -> Tensor:
    """Return draws made on the generator's device, moved to that of `like`.

    With a CPU generator the same seed gives the same draws on every device. With
    `RowGenerators`, `shape` is (K, rows, ...).
    """
    if isinstance(generator, RowGenerators):
        each = (shape[0], *shape[2:])
        if len(generator.generators) != shape[1]:
            raise ValueError(
                f"`generator` has {len(generator.generators)} rows for a batch of "
                f"{shape[1]}; give one generator for each row."
            )
        # Stacked where they are made: one copy to the device, not one for each row.
        rows = [_made(each, one) for one in generator.generators]
        return _moved(torch.stack(rows, 1), like)
    return _moved(_made(shape, generator), like)


def _made(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(
        shape, generator=generator, device=generator.device, dtype=torch.float32
    )


def _moved(draws: Tensor, like: Tensor) -> Tensor:
    """Return draws on the device of `like`, without making the host wait for it."""
    if like.is_cuda and not draws.is_cuda:
        draws = draws.pin_memory().to(like.device, non_blocking=True)
    return draws.to(device=like.device, dtype=like.dtype)
