"""Draws of the latent, and averages of predictions over them."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

__all__ = ["average_log_probabilities", "standard_normal"]


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
    shape: tuple[int, ...], generator: Generator, like: Tensor
) -> Tensor:
    """Return draws made on the generator's device, moved to that of `like`.

    With a CPU generator the same seed gives the same draws on every device.
    """
    draws = torch.randn(
        shape, generator=generator, device=generator.device, dtype=torch.float32
    )
    return draws.to(device=like.device, dtype=like.dtype)
