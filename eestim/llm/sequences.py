r"""Equations for one latent per sequence, where positions no longer factorise.

With one Z for a whole sequence, :math:`p(y) = E_Z \prod_t q_t(y_t; Z)`. Targets have
the positions of a sequence on their last axis, and a row is a whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eestim.llm.surrogates import (
    IGNORED,
    LatentEquation,
    leave_one_out,
    log_probabilities,
    only_kept,
    pick,
)

__all__ = ["SequenceCentred", "SequenceContrast", "SequenceIWAE"]


def _before(log_q: Tensor, targets: Tensor) -> Tensor:
    """Return the log probability of the observed tokens before each, (K, ..., T)."""
    seen = pick(log_q, targets).masked_fill(targets == IGNORED, 0.0)
    return seen.cumsum(-1) - seen


@dataclass(frozen=True, slots=True)
class SequenceCentred(LatentEquation):
    r"""The exact equation for one latent per sequence: short sequences only.

    .. math::
        \psi = \frac1K \sum_i \sum_t w_{it} \Big[ s_{it}(Y_t)
               - \sum_v q_{tv}(Z_i) s_{it}(v) \Big], \quad
        w_{it} = \frac{\prod_{s<t} q_s(Z_i)}
                      {\operatorname{mean}_{j \ne i} \prod_{s<t} q_s(Z_j)}, \quad
        s_{it}(v) = \nabla \log \sum_{j \ne i} q_{tv}(Z_j) \prod_{s<t} q_s(Z_j)

    where :math:`q_s(Z)` is the probability of the observed :math:`Y_s`. The mean over
    :math:`Z_i` of the product times the residual is zero given the past, and all other
    factors know only the other draws and the past. The weights' variance grows
    exponentially in the number of positions, hence `longest`.

    Parameters
    ----------
    longest : int
        Most positions accepted; beyond use `SequenceContrast`.
    """

    longest: int = 16

    @property
    def smallest_draws(self) -> int:
        """One draw for the residual, one to differentiate."""
        return 2

    @property
    def is_local(self) -> bool:
        """Each position reads those before it."""
        return False

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        if targets.shape[-1] > self.longest:
            raise ValueError(
                f"`targets` has {targets.shape[-1]} positions, but the weights of "
                f"{self} vary too much beyond {self.longest}; use SequenceContrast(), "
                "or a larger `longest` with many draws."
            )
        log_u, log_t = log_probabilities(moving), log_probabilities(still)
        past = _before(log_t, targets)
        weight = (past - leave_one_out(past)).exp()
        joint = _before(log_u, targets).unsqueeze(-1) + log_u
        instrument = leave_one_out(joint)
        centre = (log_t.exp() * instrument).sum(-1)
        gain = weight * (pick(instrument, targets) - centre)
        return only_kept(-gain.mean(0), targets)


@dataclass(frozen=True, slots=True)
class SequenceIWAE(LatentEquation):
    r"""Log of the mean over draws of a sequence's likelihood: biased.

    .. math:: \psi = \nabla \log \tfrac1K \sum_k \prod_t q_t(Y_t; Z_k)

    Each position's loss is its share by the chain rule.
    """

    @property
    def is_unbiased(self) -> bool:
        """Biased for every finite K."""
        return False

    @property
    def is_local(self) -> bool:
        """Each position reads those before it."""
        return False

    def surrogate(
        self,
        moving: Tensor,
        still: Tensor,  # noqa: ARG002 - a loss in its own right
        targets: Tensor,
    ) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        log_q = log_probabilities(moving)
        before = _before(log_q, targets)
        after = before + pick(log_q, targets)
        return only_kept(before.logsumexp(0) - after.logsumexp(0), targets)


@dataclass(frozen=True, slots=True)
class SequenceContrast(LatentEquation):
    r"""Score of the observed sequence minus that of one the model made.

    .. math:: \psi = h(Y) - h(Y'), \quad
        h(y) = \nabla \log \tfrac1K \sum_k \prod_t q_t(y_t; Z_k),
        \quad Y' \sim p

    Unbiased for every K and every length, because Y and Y' have one law at the truth
    and h meets each with draws of its own. Targets are (..., 2, T): a sequence and its
    replicate; `fit` makes replicates with one latent of their own by
    `eestim.llm.replicates.replicated`.
    """

    @property
    def is_local(self) -> bool:
        """Each position reads those before it."""
        return False

    @property
    def needs_replicates(self) -> bool:
        """Rows come in pairs, observed and made."""
        return True

    def surrogate(self, moving: Tensor, still: Tensor, targets: Tensor) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        if targets.ndim < 2 or targets.shape[-2] != 2:
            raise ValueError(
                f"`targets` has shape {tuple(targets.shape)}; expected (..., 2, T): "
                "each sequence followed by its replicate."
            )
        value = SequenceIWAE().surrogate(moving, still, targets)
        sign = torch.tensor([[1.0], [-1.0]], dtype=value.dtype, device=value.device)
        return value * sign
