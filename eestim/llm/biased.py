"""Biased objectives, kept as baselines and as negative controls.

Each is a loss in its own right, so its surrogate has no stopped factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eestim.llm.slopes import likelihood_slope, mixture_slope
from eestim.llm.surrogates import (
    LatentEquation,
    log_probabilities,
    only_kept,
    pick,
)

__all__ = ["IWAE", "NoiseAveraged", "SharedDraw"]


@dataclass(frozen=True, slots=True)
class NoiseAveraged(LatentEquation):
    r"""Mean over draws of the negative log likelihood (NEFTune style): biased.

    .. math:: \psi = \frac1K \sum_k \nabla \log q_Y(Z_k)

    Its optimum has no noise wherever the clean model can express the data. A baseline,
    and the equation for the base in `Split`. With K = 1 and a model without a latent
    it is plain maximum likelihood.
    """

    @property
    def is_unbiased(self) -> bool:
        """Biased: it estimates another model than the averaged one."""
        return False

    def surrogate(
        self,
        moving: Tensor,
        still: Tensor,  # noqa: ARG002 - a loss in its own right
        targets: Tensor,
    ) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        return only_kept(-pick(log_probabilities(moving), targets).mean(0), targets)

    def slope(
        self,
        logits: Tensor,
        targets: Tensor,
        outside: Tensor | None = None,  # noqa: ARG002 - no weights
    ) -> tuple[Tensor, Tensor]:
        """Return losses and their gradient, see `LatentEquation.slope`."""
        return likelihood_slope(logits, targets)


@dataclass(frozen=True, slots=True)
class SharedDraw(LatentEquation):
    r"""Brier with one copy in both factors: biased, a negative control.

    .. math:: \psi = \frac1K \sum_k \sum_v (1\{Y=v\} - q_v(Z_k)) \nabla q_v(Z_k)

    It adds the variance of q over the latent to the loss, so the noise collapses.
    """

    @property
    def is_unbiased(self) -> bool:
        """Biased by the covariance of residual and instrument."""
        return False

    def surrogate(
        self,
        moving: Tensor,
        still: Tensor,  # noqa: ARG002 - a loss in its own right
        targets: Tensor,
    ) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        q = log_probabilities(moving).exp()
        value = q.square().sum(-1) / 2 - pick(q, targets)
        return only_kept(value.mean(0), targets)


@dataclass(frozen=True, slots=True)
class IWAE(LatentEquation):
    r"""Log of the mean over draws of the likelihood: biased, of order 1 / K.

    .. math:: \psi = \nabla \log \tfrac1K \sum_k q_Y(Z_k)

    A baseline and a negative control: valid intervals need K much larger than
    :math:`\sqrt n`.
    """

    @property
    def is_unbiased(self) -> bool:
        """Biased for every finite K: the log of a mean is not the mean of logs."""
        return False

    def surrogate(
        self,
        moving: Tensor,
        still: Tensor,  # noqa: ARG002 - a loss in its own right
        targets: Tensor,
    ) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        log_q = pick(log_probabilities(moving), targets)
        draws = torch.tensor(len(log_q), dtype=log_q.dtype, device=log_q.device)
        return only_kept(draws.log() - log_q.logsumexp(0), targets)

    def slope(
        self,
        logits: Tensor,
        targets: Tensor,
        outside: Tensor | None = None,  # noqa: ARG002 - no weights
    ) -> tuple[Tensor, Tensor]:
        """Return losses and their gradient, see `LatentEquation.slope`."""
        return mixture_slope(logits, targets)
