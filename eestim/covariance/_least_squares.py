r"""Least squares under reweighting and deletion, in closed form.

In the orthonormal basis of the weighted design, :math:`W^{1/2} X = Q R`, what a group
of rows contributes to the normal equations is ``J_g = Q_g' Q_g`` and
``t_g = R^{-T} X_g' r_g``; the J_g add up to the identity and the t_g to zero.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from eestim._arrays import Matrix, Vector
from eestim._linalg import equilibrated_factor
from eestim.covariance._refits import Groups, group_scores, group_slopes
from eestim.covariance._resampling import Seeds, batches, unit_weights
from eestim.covariance._reweighted import VANISHED
from eestim.equations import Working

__all__ = [
    "Whitened",
    "is_linear",
    "is_score_linear",
    "reweighted_moves",
    "whitened",
    "working_slopes",
]

_MOST_ENTRIES = 1 << 24  # of the (G, p, p) contributions that are held


def is_linear(equation: Any) -> bool:
    """Whether psi is linear in theta, so that one Newton step is exact."""
    family = getattr(getattr(equation, "family", None), "name", None)
    link = getattr(getattr(equation, "link", None), "name", None)
    return family == "gaussian" and link == "identity" and _has_working(equation)


def is_score_linear(equation: Any) -> bool:
    """Whether the derivative of psi_i is ``-weight_i x_i x_i'`` of `working`.

    True of linear models and of GLMs with their canonical link, whose observed and
    expected information agree.
    """
    return bool(getattr(equation, "is_canonical", False)) and _has_working(equation)


def _has_working(equation: Any) -> bool:
    return getattr(equation, "working", None) is not None


def working_slopes(working: Working, groups: Groups) -> Matrix:
    """Return sums within groups of ``weight_i x_i x_i'``, (G, p, p)."""
    design = working.design
    rows = working.weight[:, None, None] * design[:, :, None] * design[:, None, :]
    return group_slopes(rows, groups)


@dataclass(frozen=True, slots=True)
class Whitened:
    """A weighted regression in an orthonormal basis of its design.

    Attributes
    ----------
    basis : (n, p) array
        Q.
    scores : (n, p) array
        Rows of psi times the inverse of R.
    triangle : (p, p) array
        R.
    """

    basis: Matrix
    scores: Matrix
    triangle: Matrix

    def fits_in_memory(self, count: int) -> bool:
        """Whether (p, p) contributions of that many groups can be held."""
        return count * len(self.triangle) ** 2 <= _MOST_ENTRIES

    def back(self, moved: Matrix) -> Matrix:
        """Return moves (k, p) of theta from those in the orthonormal basis."""
        result: Matrix = linalg.solve_triangular(self.triangle, moved.T).T
        return result


def whitened(design: Matrix, weight: Vector, residual: Vector) -> Whitened:
    """Return the orthonormal form of a weighted regression.

    Parameters
    ----------
    design : (n, p) array
    weight : (n,) array
        Nonnegative.
    residual : (n,) array
        Score residuals, ``psi_i = x_i r_i``.

    Raises
    ------
    IdentificationError
        If columns are collinear.

    Examples
    --------
    >>> form = whitened(np.ones((4, 1)), np.ones(4), np.array([1.0, -1, 2, -2]))
    >>> float((form.basis**2).sum().round(9)), abs(form.scores.ravel()).tolist()
    (1.0, [0.5, 0.5, 1.0, 1.0])
    """
    scaled = design * np.sqrt(weight)[:, None]
    triangle: Matrix = np.linalg.qr(scaled)[1]
    size = np.abs(np.diag(triangle))
    if size.min() <= 1e-12 * size.max() * len(size):
        equilibrated_factor(scaled.T @ scaled).require_full_rank()
    basis = linalg.solve_triangular(triangle, scaled.T, trans=1).T
    rows = (design * residual[:, None]).T
    scores = linalg.solve_triangular(triangle, rows, trans=1).T
    return Whitened(basis, scores, triangle)


def reweighted_moves(
    form: Whitened,
    groups: Groups,
    scheme: str,
    length: float,
    seeds: Seeds,
    with_spread: bool = False,
) -> tuple[Matrix, Matrix | None, int]:
    r"""Return how far least squares moves under random weights of the groups.

    .. math::
        \delta^* = R^{-1} d, \quad d = J_*^{-1} \sum_g w_g t_g, \quad
        J_* = \sum_g w_g J_g, \quad
        V^* = R^{-1} J_*^{-1} \sum_g w_g u_g u_g^\top J_*^{-1} R^{-\top}

    with :math:`u_g = t_g - J_g d` the contributions at the refitted parameters.

    Parameters
    ----------
    form : Whitened
    groups : Groups
    scheme, length
        Those of `unit_weights`.
    seeds : sequence of SeedSequence
        One a replicate.
    with_spread : bool
        Return V* too.

    Returns
    -------
    moved : (k, p) array
        Of the replicates that identify the parameters.
    spread : (k, p, p) array or None
    failed : int
        Number of the others.
    """
    slopes = group_slopes(form.basis[:, :, None] * form.basis[:, None, :], groups)
    scores = group_scores(form.scores, groups)
    count, p = scores.shape
    moved, spread, failed = [np.empty((0, p))], [np.empty((0, p, p))], 0
    for batch in batches(seeds, count * (p if with_spread else 1)):
        rngs = [np.random.default_rng(seed) for seed in batch]
        weights = np.stack([unit_weights(r, count, scheme, length) for r in rngs])
        inner = (weights @ slopes.reshape(count, -1)).reshape(-1, p, p)
        kept = np.linalg.eigvalsh(inner)[:, 0] > VANISHED
        failed += int((~kept).sum())
        inner, weights = inner[kept], weights[kept]
        summed = (weights @ scores)[:, :, None]
        d = np.asarray(np.linalg.solve(inner, summed)[:, :, 0], dtype=np.float64)
        moved.append(form.back(d))
        if with_spread:
            left = scores - np.einsum("gpq,bq->bgp", slopes, d, optimize=True)
            left *= np.sqrt(weights)[:, :, None]
            half = np.linalg.solve(inner, np.swapaxes(left, 1, 2))
            inverse = linalg.solve_triangular(form.triangle, np.eye(p))
            half = inverse @ half
            spread.append(half @ np.swapaxes(half, 1, 2))
    joined = np.concatenate(spread) if with_spread else None
    return np.concatenate(moved), joined, failed
