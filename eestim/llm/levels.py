r"""Multilevel Monte Carlo for the exact score: a comparator.

The exact score is the limit of importance-weighted scores in the number of draws; a
random level of a telescoping sum estimates it without bias, at a random cost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eestim.llm.surrogates import (
    LatentEquation,
    log_probabilities,
    only_kept,
    pick,
)

__all__ = ["MLMC"]


@dataclass(frozen=True, slots=True)
class MLMC(LatentEquation):
    r"""Randomised multilevel estimate of the likelihood score.

    .. math::
        \psi = \nabla \ell_1 + \nabla \Delta_L / P(L), \quad
        \Delta_l = \ell_{2^{l+1}} - \tfrac12 (\ell^a_{2^l} + \ell^b_{2^l}), \quad
        P(l) \propto 2^{-r l},\ 0 \le l < m

    with :math:`\ell_k` the log of the mean of q_Y over k draws, and a and b the two
    halves of the draws. `fit` draws the level L of a step, then :math:`2^{L+1}` latents
    for each row, so that `draws` is the largest number, :math:`2^m`. Its mean over
    levels is exactly the importance-weighted score of :math:`2^m` draws: a bias of
    order :math:`2^{-m}` is left, and a variance that the unbiased equations do not
    have. Called with K draws, `surrogate` is that of level log2(K) - 1.

    Parameters
    ----------
    levels : int
        m.
    decay : float
        r, between 1 (finite mean cost) and 2 (finite variance).

    References
    ----------
    Rhee and Glynn (2015), Oper. Res. 63(5); Shi and Cornish (2021), AISTATS.
    """

    levels: int = 4
    decay: float = 1.5

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"`levels` is {self.levels}; it must be at least 1.")
        if not self.decay > 0:
            raise ValueError(f"`decay` is {self.decay}; it must be positive.")

    @property
    def smallest_draws(self) -> int:
        """The two draws of level 0."""
        return 2

    @property
    def is_unbiased(self) -> bool:
        """Biased by the levels left out, as importance weighting with 2^m draws."""
        return False

    def probabilities(self) -> tuple[float, ...]:
        """Return P(l) of each level.

        Examples
        --------
        >>> MLMC(levels=2, decay=1.0).probabilities()
        (0.6666666666666666, 0.3333333333333333)
        """
        share = [2.0 ** (-self.decay * level) for level in range(self.levels)]
        return tuple(value / sum(share) for value in share)

    def draws_of_step(self, draws: int, rng: np.random.Generator) -> int:
        """Return the draws of a random level; `draws` must be 2^levels."""
        if draws != 2**self.levels:
            raise ValueError(
                f"`draws` is {draws}, but {self} uses up to 2**levels = "
                f"{2**self.levels}; set draws to that."
            )
        return int(2 ** (rng.choice(self.levels, p=self.probabilities()) + 1))

    def surrogate(
        self,
        moving: Tensor,
        still: Tensor,  # noqa: ARG002 - a loss in its own right
        targets: Tensor,
    ) -> Tensor:
        """Return S(u, t) at each position, see `LatentEquation.surrogate`."""
        draws = len(moving)
        level = draws.bit_length() - 2
        if draws != 2 ** (level + 1) or level >= self.levels:
            raise ValueError(
                f"`logits` has {draws} draws; {self} takes 2, 4, ..., {2**self.levels}."
            )
        log_q = pick(log_probabilities(moving), targets)
        fine = _log_mean(log_q)
        coarse = (_log_mean(log_q[: draws // 2]) + _log_mean(log_q[draws // 2 :])) / 2
        value = log_q.mean(0) + (fine - coarse) / self.probabilities()[level]
        return only_kept(-value, targets)


def _log_mean(log_q: Tensor) -> Tensor:
    count = torch.tensor(len(log_q), dtype=log_q.dtype, device=log_q.device)
    return log_q.logsumexp(0) - count.log()
