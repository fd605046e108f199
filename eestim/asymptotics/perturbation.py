"""Null distribution of a likelihood ratio for perturbations in several directions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.rank import rank_report
from eestim.errors import ConvergenceError, IdentificationError

__all__ = ["NullDistribution", "half_vector", "simulated_null"]

_ITERATIONS = 20_000
_SETTLED = 1e-9  # last step, in units of the standard deviation of the matrix
_STARTS = 8


@dataclass(frozen=True, slots=True)
class NullDistribution:
    """Draws of a likelihood ratio under the hypothesis of no perturbation.

    Attributes
    ----------
    draws : (N,) array
        Simulated values.
    """

    draws: Vector

    @property
    def probability_zero(self) -> float:
        """Return the share of draws at zero."""
        return float(np.mean(self.draws <= 0.0))

    def p_value(self, statistic: float) -> float:
        """Return the Monte Carlo p-value, never zero."""
        exceed = int(np.sum(self.draws >= statistic))
        return (1 + exceed) / (1 + len(self.draws))

    def critical_value(self, level: float = 0.05) -> float:
        """Return the value exceeded with probability `level`."""
        return float(np.quantile(self.draws, 1.0 - level))


def half_vector(matrices: Matrix) -> Matrix:
    """Return the upper triangles of symmetric matrices (..., m, m), row by row.

    >>> half_vector(np.array([[1.0, 2.0], [2.0, 3.0]]))
    array([1., 2., 3.])
    """
    rows, columns = np.triu_indices(matrices.shape[-1])
    return np.asarray(matrices[..., rows, columns], dtype=np.float64)


def _full_matrix(vectors: Matrix, m: int) -> Matrix:
    rows, columns = np.triu_indices(m)
    full: Matrix = np.zeros((*vectors.shape[:-1], m, m))
    full[..., rows, columns] = vectors
    full[..., columns, rows] = vectors
    return full


def _nearest_psd(matrices: Matrix, rank: int) -> Matrix:
    """Return the nearest positive semidefinite matrices of at most the given rank."""
    values, vectors = np.linalg.eigh(matrices)
    values[..., : values.shape[-1] - rank] = 0.0
    values = np.clip(values, 0.0, None)
    nearest: Matrix = (vectors * values[..., None, :]) @ np.swapaxes(vectors, -1, -2)
    return nearest


def _climb(score: Matrix, information: Matrix, start: Matrix, rank: int) -> Vector:
    """Return max 2 score'D - D' information D over D = half_vector(C C'), by draw.

    Accelerated projected gradient in coordinates where off-diagonal entries count
    twice, so that the projection is that of the Frobenius norm. Draws that have
    settled leave the iteration.
    """
    m = start.shape[-1]
    weight = half_vector(2.0 * np.ones((m, m)) - np.eye(m))
    scaled = information / np.sqrt(np.outer(weight, weight))
    step = 1.0 / float(np.linalg.eigvalsh(scaled)[-1])
    final, moving = start.copy(), np.arange(len(score))
    current, ahead, momentum = start, start, 1.0
    for _ in range(_ITERATIONS):
        slope = (score[moving] - half_vector(ahead) @ information) / weight
        following = _nearest_psd(ahead + step * _full_matrix(slope, m), rank)
        momentum, previous = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)), momentum
        # without convexity (a bound on the rank) momentum may leave the best basin
        push = (previous - 1.0) / momentum if rank == m else 0.0
        change = following - current
        final[moving] = following
        going = np.abs(change).max(axis=(1, 2)) > _SETTLED
        moving, current = moving[going], following[going]
        ahead = current + push * change[going]
        if not len(moving):
            break
    if len(moving):
        raise ConvergenceError(
            f"`information` is too ill-conditioned for {len(moving)} of {len(score)} "
            "draws of the likelihood ratio. Merge or drop directions that the data "
            "hardly tell apart."
        )
    d = half_vector(final)
    value: Vector = 2.0 * np.sum(score * d, 1) - np.sum((d @ information) * d, 1)
    return np.clip(value, 0.0, None)


def simulated_null(
    information: Any,
    n_directions: int,
    rng: np.random.Generator,
    *,
    rank: int = 1,
    draws: int = 10_000,
) -> NullDistribution:
    r"""Return the null distribution of the likelihood ratio for no perturbation.

    The likelihood near C = 0 is a function of :math:`\Delta = CC'`, with a regular
    score and information in :math:`d = \mathrm{vech}\Delta`, so that

    .. math:: LR \to \sup_{\Delta \succeq 0,\ \mathrm{rank} \le k}
       2U'd - d'Id, \quad U \sim N(0, I).

    It is zero exactly when the matrix of scores is negative semidefinite.

    Parameters
    ----------
    information : (m (m + 1) / 2,) * 2 array
        Efficient information of vech(Delta) over all units, upper triangle row by
        row; an off-diagonal coordinate moves both symmetric entries.
    n_directions : int
        m, the number of rows of C.
    rng : numpy.random.Generator
        Source of the draws.
    rank : int
        Number of latent dimensions k (columns of C); at least m means no limit.
    draws : int
        Number of draws.

    Raises
    ------
    IdentificationError
        If the information is singular.
    ConvergenceError
        If the search of the supremum does not settle.
    ValueError
        If shapes do not fit.

    References
    ----------
    Self and Liang (1987), J. Am. Stat. Assoc. 82, 605-610, theorem 3.

    Examples
    --------
    One direction gives the half-half mixture:

    >>> null = simulated_null([[2.0]], 1, np.random.default_rng(0), draws=20_000)
    >>> abs(null.probability_zero - 0.5) < 0.015
    True
    """
    matrix = check_finite(as_float(information, "information", ndim=2), "information")
    size = n_directions * (n_directions + 1) // 2
    if matrix.shape != (size, size) or rank < 1 or draws < 1:
        raise ValueError(
            f"`information` has shape {matrix.shape}; {n_directions} directions need "
            f"({size}, {size}), with `rank` and `draws` >= 1."
        )
    report = rank_report(matrix)
    if report.rank < size or np.linalg.eigvalsh(matrix)[0] <= 0:
        raise IdentificationError(
            f"`information` has rank {report.rank} of {size} in the squared "
            "perturbation, so the expansion needs higher order terms. Reduce the "
            "directions to those that the data inform on."
        )
    # rows of C in units of their information: the cone and the law do not change
    rows, columns = np.triu_indices(n_directions)
    unit = np.diag(matrix)[rows == columns] ** -0.25
    factors = unit[rows] * unit[columns]
    matrix = factors[:, None] * matrix * factors
    score = rng.standard_normal((draws, size)) @ np.linalg.cholesky(matrix).T
    return NullDistribution(_likelihood_ratios(score, matrix, n_directions, rank, rng))


def _likelihood_ratios(
    score: Matrix, information: Matrix, m: int, rank: int, rng: np.random.Generator
) -> Vector:
    """Return the supremum for each draw of the score, exactly zero where it is."""
    kept = min(rank, m)
    # an off-diagonal coordinate moves two entries, so its score is shared by them
    weight = half_vector(2.0 * np.ones((m, m)) - np.eye(m))
    slopes = _full_matrix(score / weight, m)
    positive = np.linalg.eigvalsh(slopes)[:, -1] > 0
    ratios = np.zeros(len(score))
    if not positive.any():
        return ratios
    active = score[positive]
    free = np.asarray(np.linalg.solve(information, active.T).T, dtype=np.float64)
    starts = [_nearest_psd(_full_matrix(free, m), kept)]
    if kept < m:  # not convex: several starts
        starts += [_random_start(len(active), m, kept, rng) for _ in range(_STARTS)]
        starts.append(_nearest_psd(slopes[positive], kept))
    found = [_climb(active, information, start, kept) for start in starts]
    ratios[positive] = np.maximum(np.max(found, axis=0), np.finfo(float).tiny)
    return ratios


def _random_start(n: int, m: int, rank: int, rng: np.random.Generator) -> Matrix:
    factor = rng.standard_normal((n, m, rank))
    start: Matrix = factor @ np.swapaxes(factor, 1, 2)
    return start
