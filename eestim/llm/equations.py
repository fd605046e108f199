r"""Estimating equations for models with a latent, as frozen values.

A latent model gives K independent draws of the next-token law, q_v(Z_k). With two
independent copies Z1 and Z2,

.. math:: \psi = \sum_v w_v \, (1\{Y = v\} - q_v(Z_1)) \, \nabla q_v(Z_2)

has mean zero at the truth for all weights w that know neither Y nor Z1: the simulated
residual and its instrument do not share noise. Every equation here is a *surrogate*
S(u, t) of two copies of the parameters, with psi(t) = - dS(u, t) / du at u = t:
``surrogate(moving, still, targets)`` takes the logits of both copies, so that one
backward pass gives psi (with ``still`` detached) and the derivative of psi through
**both** copies gives the sensitivity A. The surrogate with a detached copy has the
right psi but not the right A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eestim.errors import CapabilityError
from eestim.llm.surrogates import (
    LatentEquation,
    centred,
    check_draws,
    check_targets,
    leave_one_out,
    log_probabilities,
    only_kept,
    pick,
)

__all__ = [
    "IWAE",
    "Brier",
    "CentredIWAE",
    "NoiseAveraged",
    "Power",
    "ScoreWeighted",
    "SharedDraw",
    "Split",
]


@dataclass(frozen=True, slots=True)
class Brier(LatentEquation):
    r"""All pairs of draws with weight one: the unbiased Brier (energy) score.

    .. math::
        \psi = \frac{1}{K(K-1)} \sum_{i \ne j} \sum_v
               (1\{Y=v\} - q_v(Z_i)) \nabla q_v(Z_j)

    The loss is minus the mean probability of Y plus half the mean inner product over
    pairs: (Brier score - 1) / 2 in expectation.

    Examples
    --------
    >>> logits = torch.zeros(2, 1, 4)
    >>> Brier().loss(logits, torch.tensor([0]))
    tensor(-0.1250)
    """

    @property
    def smallest_draws(self) -> int:
        """Two copies: one for the residual, one to differentiate."""
        return 2

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        q = log_probabilities(moving).exp()
        others = (q.sum(0) - q) / (len(q) - 1)
        return centred(others, still, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss; a loss in its own right, not only a gradient."""
        check_draws(self, logits.shape[0])
        kept = check_targets(logits, targets)
        q = log_probabilities(logits).exp()
        pairs = q.sum(0).square().sum(-1) - q.square().sum((0, -1))
        value = -pick(q, targets).mean(0) + pairs / (2 * len(q) * (len(q) - 1))
        return only_kept(value, targets).sum() / kept


@dataclass(frozen=True, slots=True)
class Power(LatentEquation):
    r"""The density-power family: weights ``(mean of the other draws) ** -gamma``.

    .. math::
        \psi = \frac1K \sum_i \sum_v (1\{Y=v\} - q_v(Z_i)) \,
               \bar q_{-i,v}^{\,-\gamma} \, \nabla \bar q_{-i,v}

    gamma = 0 is `Brier`, gamma = 1 is `CentredIWAE`. Exactly unbiased for every K,
    because the weights never see Z_i.
    """

    gamma: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(
                f"`gamma` is {self.gamma}; it must lie in [0, 1], from 0 (Brier) to "
                "1 (centred IWAE)."
            )

    @property
    def smallest_draws(self) -> int:
        """Two copies: one for the residual, one to weight and differentiate."""
        return 2

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        log_mean = leave_one_out(log_probabilities(moving))
        if self.gamma == 1.0:
            return centred(log_mean, still, targets)
        rest = 1.0 - self.gamma
        return centred((rest * log_mean).exp() / rest, still, targets)


@dataclass(frozen=True, slots=True)
class CentredIWAE(LatentEquation):
    r"""Importance-weighted score of the other draws, centred under one draw.

    .. math::
        \psi = \frac1K \sum_i \Big[ s_{-i}(Y) - \sum_v q_v(Z_i) s_{-i}(v) \Big],
        \quad s_{-i}(v) = \nabla \log \bar q_{-i,v}

    Unbiased for every K >= 2 and nearly efficient; A is not symmetric.

    Parameters
    ----------
    group : int
        Fewest draws accepted in a leave-one-out group. With one draw A can be
        singular, hence 4 by default, so K >= 5.
    """

    group: int = 4

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"`group` is {self.group}; it must be at least 1.")

    @property
    def smallest_draws(self) -> int:
        """One draw for the residual and a group of the rest."""
        return self.group + 1

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        return centred(leave_one_out(log_probabilities(moving)), still, targets)


@dataclass(frozen=True, slots=True)
class ScoreWeighted(LatentEquation):
    r"""Brier pairs weighted by 1 / p, with p estimated from draws of its own.

    .. math::
        \psi = \frac{1}{J(J-1)} \sum_{i \ne j} \sum_v \frac{1\{Y=v\} - q_v(Z_i)}
               {\max(\tilde p_v, f)} \nabla q_v(Z_j)

    The first half of the K draws (rounded down) makes :math:`\tilde p`, the other J
    make the pairs, so that weights and residuals are independent.

    Parameters
    ----------
    floor : float
        Smallest probability in the weights, f.
    """

    floor: float = 1e-6

    def __post_init__(self) -> None:
        if not 0.0 < self.floor < 1.0:
            raise ValueError(f"`floor` is {self.floor}; it must lie in (0, 1).")

    @property
    def smallest_draws(self) -> int:
        """One draw for the weights and two for the pair."""
        return 3

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        n_weights = len(moving) // 2
        log_still = log_probabilities(still)
        mean = log_still[:n_weights].exp().mean(0)
        weight = 1.0 / mean.clamp_min(self.floor)
        others = leave_one_out(log_still[n_weights:]).exp()
        q = log_probabilities(moving[n_weights:]).exp()
        gain = pick(weight * q, targets) - (weight * others * q).sum(-1)
        return only_kept(-gain.mean(0), targets)


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


@dataclass(frozen=True, slots=True)
class Split(LatentEquation):
    """One equation for the base's parameters, another for the perturbation's.

    The two share the forward pass and its draws; each group of parameters gets the
    gradient of its own loss. A model's perturbation is its submodule `perturbation`.

    Parameters
    ----------
    base, perturbation : LatentEquation
        For example ``Split(base=NoiseAveraged(), perturbation=Brier())``.
    """

    base: LatentEquation
    perturbation: LatentEquation

    def __post_init__(self) -> None:
        for name in ("base", "perturbation"):
            if isinstance(getattr(self, name), Split):
                raise ValueError(f"`{name}` is itself a Split; give it one equation.")

    @property
    def smallest_draws(self) -> int:
        """The larger of the two."""
        return max(self.base.smallest_draws, self.perturbation.smallest_draws)

    @property
    def is_unbiased(self) -> bool:
        """Whether both are."""
        return self.base.is_unbiased and self.perturbation.is_unbiased

    def surrogate(
        self,
        moving: Tensor,  # noqa: ARG002 - refused
        still: Tensor,  # noqa: ARG002
        targets: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """Refuse: two groups of parameters have two surrogates."""
        raise CapabilityError(_NO_SINGLE_LOSS)

    def loss(
        self,
        logits: Tensor,  # noqa: ARG002 - refused
        targets: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """Refuse: no single scalar has the gradient of both equations."""
        raise CapabilityError(_NO_SINGLE_LOSS)


_NO_SINGLE_LOSS = (
    "`Split` has no single loss: its base and its perturbation descend different "
    "ones. Use `fit(model, documents, Split(...))`, or `.base.loss` for the base's "
    "parameters and `.perturbation.loss` for the perturbation's."
)
