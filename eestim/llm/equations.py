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

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eestim.errors import CapabilityError
from eestim.llm.biased import IWAE, NoiseAveraged, SharedDraw
from eestim.llm.slopes import brier_slope, centred_slope, distant_slope
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

    def slope(
        self,
        logits: Tensor,
        targets: Tensor,
        outside: Tensor | None = None,  # noqa: ARG002 - no weights
    ) -> tuple[Tensor, Tensor]:
        """Return losses and their gradient, see `LatentEquation.slope`."""
        return brier_slope(logits, targets)


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

    def slope(
        self,
        logits: Tensor,
        targets: Tensor,
        outside: Tensor | None = None,  # noqa: ARG002 - no weights
    ) -> tuple[Tensor, Tensor]:
        """Return losses and their gradient, see `LatentEquation.slope`."""
        return _power_slope(logits, targets, self.gamma)


@dataclass(frozen=True, slots=True, repr=False)
class CentredIWAE(LatentEquation):
    r"""Importance-weighted score of a group of draws, centred under another draw.

    .. math::
        \psi = \frac1K \sum_i \Big[ s_{G_i}(Y) - \sum_v q_v(Z_i) s_{G_i}(v) \Big],
        \quad s_G(v) = \nabla \log \tfrac{1}{|G|} \sum_{j \in G} q_v(Z_j),
        \quad i \notin G_i

    Unbiased for every K >= 2 and nearly efficient; A is not symmetric. By default
    :math:`G_i` is all the other draws.

    Parameters
    ----------
    group : int
        Fewest draws in a group. With one draw A can be singular, hence 4 by default,
        so K >= 5.
    exact : bool
        Groups of exactly `group` draws, the next ones in cyclic order. Under
        misspecification the root depends on the size of the groups; with exact groups
        it does not depend on K.
    """

    group: int = 4
    exact: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.group < 1:
            raise ValueError(f"`group` is {self.group}; it must be at least 1.")

    @property
    def smallest_draws(self) -> int:
        """One draw for the residual and a group of the rest."""
        return self.group + 1

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        log_q = log_probabilities(moving)
        if not self._has_groups(len(log_q)):
            return centred(leave_one_out(log_q), still, targets)
        members = [log_q.roll(-step, 0) for step in range(1, self.group + 1)]
        total = torch.stack(members).logsumexp(0)
        return centred(total - math.log(self.group), still, targets)

    def _has_groups(self, draws: int) -> bool:
        """Whether groups are smaller than all the other draws."""
        return self.exact and self.group < draws - 1

    def slope(
        self,
        logits: Tensor,
        targets: Tensor,
        outside: Tensor | None = None,  # noqa: ARG002 - no weights
    ) -> tuple[Tensor, Tensor]:
        """Return losses and their gradient, see `LatentEquation.slope`."""
        if self._has_groups(len(logits)):
            return LatentEquation.slope(self, logits, targets)
        return _power_slope(logits, targets, 1.0)


def _power_slope(
    logits: Tensor, targets: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return losses and gradient; in logarithms where sums over draws underflow."""
    made = centred_slope(logits, targets, gamma)
    return distant_slope(logits, targets, gamma) if made is None else made


@dataclass(frozen=True, slots=True, repr=False)
class ScoreWeighted(LatentEquation):
    r"""Brier pairs weighted by 1 / p, with p estimated from draws of its own.

    .. math::
        \psi = \frac{1}{J(J-1)} \sum_{i \ne j} \sum_v \frac{1\{Y=v\} - q_v(Z_i)}
               {\max(\tilde p_v, f)} \nabla q_v(Z_j)

    The first half of the K draws (rounded down) makes :math:`\tilde p`, the other J
    make the pairs, so that weights and residuals are independent. With `lag`,
    `fit` takes :math:`\tilde p` from `outside` draws of a copy of the model that is up
    to `lag` steps old, and all K draws make pairs. After the first epoch that copy has
    seen Y, so psi has mean zero to first order only. Where no outside draws are given
    (`scores`, `infer`), the K draws are split as without `lag`: the same equation at a
    fixed parameter, with more latent noise.

    Parameters
    ----------
    floor : float
        Smallest probability in the weights, f.
    lag : int, optional
        Steps after which the copy is renewed.
    outside : int
        Draws of the copy.
    """

    floor: float = 1e-6
    lag: int | None = field(default=None, kw_only=True)
    outside: int = field(default=4, kw_only=True)

    def __post_init__(self) -> None:
        if not 0.0 < self.floor < 1.0:
            raise ValueError(f"`floor` is {self.floor}; it must lie in (0, 1).")
        for name in ("lag", "outside"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; it must be at least 1.")

    @property
    def smallest_draws(self) -> int:
        """One draw for the weights and two for the pair."""
        return 3

    @property
    def lagged(self) -> tuple[int, int] | None:
        """Age at which the copy is renewed, and its draws; None without a copy."""
        return None if self.lag is None else (self.lag, self.outside)

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position.

        `still` may hold more draws than `moving`: the extra ones make the weights.
        """
        log_still, draws = log_probabilities(still), len(moving)
        own = 0 if len(still) > draws else draws // 2
        for_weight = log_still[draws:] if own == 0 else log_still[:own]
        weight = 1.0 / for_weight.exp().mean(0).clamp_min(self.floor)
        others = leave_one_out(log_still[own:draws]).exp()
        q = log_probabilities(moving[own:]).exp()
        gain = pick(weight * q, targets) - (weight * others * q).sum(-1)
        return only_kept(-gain.mean(0), targets)


@dataclass(frozen=True, slots=True, repr=False)
class Split(LatentEquation):
    r"""One equation for the base's parameters, another for the perturbation's.

    The two share the forward pass and its draws; each group of parameters gets the
    gradient of its own loss. A model's perturbation is its submodule `perturbation`.

    Two losses send two gradients down the layers. Of a step's matrix products, forward
    F, gradients of weights F and of inputs F, the second loss repeats the last: 4/3 of
    the cost of one loss at the least. With `perturbation_draws` m it goes down through
    m of the K draws alone,

    .. math:: \psi = \frac1m \sum_{j \le m} \psi_j \quad\text{for}\quad
              \psi = \frac1K \sum_{j \le K} \psi_j,
              \quad \psi_j \text{ the part through } q(Z_j),

    where each part still meets the residuals of all the other draws: unbiased for the
    same root, noisier, at 1 + m / (3 K) of the cost.

    Parameters
    ----------
    base, perturbation : LatentEquation
        For example ``Split(base=NoiseAveraged(), perturbation=Brier())``.
    perturbation_draws : int, optional
        m; all K by default.
    """

    base: LatentEquation
    perturbation: LatentEquation
    perturbation_draws: int | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        """Return the constructor's call."""
        few = self.perturbation_draws
        tail = "" if few is None else f", perturbation_draws={few}"
        return f"Split(base={self.base}, perturbation={self.perturbation}{tail})"

    def __post_init__(self) -> None:
        few = self.perturbation_draws
        if few is not None and few < 1:
            raise ValueError(f"`perturbation_draws` is {few}; it must be at least 1.")
        is_even = not isinstance(self.perturbation, ScoreWeighted)
        if few is not None and not (is_even or self.perturbation.lagged):
            raise ValueError(
                f"`perturbation_draws` is {few}, but {self.perturbation} uses its "
                "draws unevenly: the first half makes weights and has no gradient. "
                "Give it weights from an older copy (`lag`), or leave "
                "`perturbation_draws` out."
            )
        for name in ("base", "perturbation"):
            if isinstance(getattr(self, name), Split):
                raise ValueError(f"`{name}` is itself a Split; give it one equation.")
            if getattr(self, name).needs_replicates:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, whose rows come in pairs; it "
                    "cannot share them with another equation in a Split."
                )

    @property
    def smallest_draws(self) -> int:
        """The larger of the two."""
        return max(self.base.smallest_draws, self.perturbation.smallest_draws)

    @property
    def is_unbiased(self) -> bool:
        """Whether both are."""
        return self.base.is_unbiased and self.perturbation.is_unbiased

    @property
    def is_local(self) -> bool:
        """Whether both are."""
        return self.base.is_local and self.perturbation.is_local

    @property
    def lagged(self) -> tuple[int, int] | None:
        """The stricter of the two: the smaller age and the larger number of draws."""
        wanted = [x for x in (self.base.lagged, self.perturbation.lagged) if x]
        if not wanted:
            return None
        return min(lag for lag, _ in wanted), max(draws for _, draws in wanted)

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
