"""Wald tests on a rank, and agreement of a functional over several roots."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.estimable import functional_covariance
from eestim.asymptotics.rank import rank_report

__all__ = [
    "RankWald",
    "RootInvariance",
    "estimable_wald",
    "point_wald",
    "root_invariance",
]

_CONSISTENT = 1e-6  # share of a hypothesis outside the range of its covariance


@dataclass(frozen=True, slots=True)
class RankWald:
    """A Wald test whose degrees of freedom are a rank."""

    statistic: float
    df: int
    p_value: float


@dataclass(frozen=True, slots=True)
class RootInvariance:
    """Whether a functional and its standard error agree over several roots."""

    status: Literal[
        "invariant", "h varies (not estimable)", "se varies (root-dependent)"
    ]
    value_spread: float
    se_spread: float


def _rank_quadratic(difference: Vector, covariance: Matrix, argument: str) -> RankWald:
    """Return d' C^- d on rank(C) degrees of freedom, C a covariance."""
    report = rank_report(covariance)
    svd = report.decomposition
    kept = svd.right[:, : report.rank]
    # pseudo-inverse of the scaled covariance; d is scaled by the rows alike
    scaled = difference * svd.rows
    outside = scaled - svd.left[:, : report.rank] @ (
        svd.left[:, : report.rank].T @ scaled
    )
    if np.linalg.norm(outside) > _CONSISTENT * np.linalg.norm(scaled):
        raise ValueError(
            f"`{argument}` has a part that the covariance says cannot vary: the rows "
            "of the hypothesis are dependent, and their right-hand sides contradict "
            "each other. Drop the redundant rows."
        )
    solution = (kept / svd.values[: report.rank]) @ (
        svd.left[:, : report.rank].T @ scaled
    )
    statistic = float(difference @ (solution * svd.columns))
    return RankWald(
        statistic, report.rank, float(stats.chi2.sf(statistic, max(report.rank, 1)))
    )


def estimable_wald(
    A: Any, M: Any, R: Any, difference: Any, n_units: int, **options: Any
) -> RankWald:
    r"""Test :math:`R\theta = \rho` when A may be singular.

    .. math:: W = (R\hat\theta - \rho)'(R V R')^{-}(R\hat\theta - \rho)
       \sim \chi^2_{\operatorname{rank}(RVR')}

    Parameters
    ----------
    A, M, n_units, **options
        See `functional_covariance`.
    R : (k, P) array
        Rows of the hypothesis; each must be estimable, they may be dependent.
    difference : (k,) array
        :math:`R\hat\theta - \rho`.

    Raises
    ------
    IdentificationError
        If a row of R is not estimable.
    ValueError
        If dependent rows have contradictory right-hand sides.

    Examples
    --------
    The same restriction twice has one degree of freedom:

    >>> test = estimable_wald(np.eye(1), np.eye(1), [[1.0], [1.0]], [0.2, 0.2], 100)
    >>> test.df, round(test.statistic, 10)
    (1, 4.0)
    """
    found = functional_covariance(A, M, R, n_units, **options)
    vector = np.atleast_1d(as_float(difference, "difference"))
    if vector.shape != found.se.shape:
        raise ValueError(
            f"`difference` has shape {vector.shape}; R has {len(found.se)} rows."
        )
    return _rank_quadratic(vector, found.covariance, "difference")


def point_wald(theta: Any, theta_0: Any, covariance: Any) -> RankWald:
    r"""Test a point modulo the directions that are not identified.

    .. math:: W = (\hat\theta-\theta_0)' V^{+} (\hat\theta-\theta_0)
       \sim \chi^2_{\operatorname{rank} V}

    with :math:`\hat\theta` the sample root nearest to :math:`\theta_0`: other roots
    of the same orbit have a part along it, which the covariance cannot judge.

    Parameters
    ----------
    theta, theta_0 : (P,) arrays
        The nearest root and the hypothesis.
    covariance : (P, P) array
        Covariance of the root, 1/n included, possibly singular.

    Examples
    --------
    >>> test = point_wald([0.3, 0.0], [0.0, 0.0], [[0.01, 0.0], [0.0, 0.0]])
    >>> test.df, round(test.statistic, 10)
    (1, 9.0)
    """
    matrix = check_finite(as_float(covariance, "covariance", ndim=2), "covariance")
    difference = as_float(theta, "theta", ndim=1) - as_float(theta_0, "theta_0", ndim=1)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    tolerance = 10 * len(matrix) * np.finfo(float).eps * max(values[-1], 0.0)
    kept = values > tolerance
    rank = int(kept.sum())
    coordinates = vectors[:, kept].T @ difference
    statistic = float(np.sum(coordinates**2 / values[kept]))
    return RankWald(statistic, rank, float(stats.chi2.sf(statistic, max(rank, 1))))


def root_invariance(
    values: Any, standard_errors: Any, *, rtol: float = 1e-6
) -> RootInvariance:
    """Return whether a functional and its error agree over several roots.

    A functional may be estimable at every root and still have a standard error
    that depends on which root was found; then neither should be reported alone.

    Parameters
    ----------
    values, standard_errors : (K,) arrays
        The functional and its standard error at K >= 3 roots found from different
        starts.
    rtol : float
        Largest spread, in standard errors for the value and relative for the
        standard error, that solving to finite accuracy explains.

    Raises
    ------
    ValueError
        With fewer than three roots, or a standard error that is not positive.

    Examples
    --------
    >>> root_invariance([1.0, 1.0, 1.0], [0.1, 0.1, 0.2]).status
    'se varies (root-dependent)'
    """
    h = as_float(values, "values", ndim=1)
    se = as_float(standard_errors, "standard_errors", ndim=1)
    if len(h) < 3 or h.shape != se.shape:
        raise ValueError(
            f"`values` has {len(h)} and `standard_errors` {len(se)} entries; give "
            "both at three roots or more."
        )
    if not (se > 0).all():
        raise ValueError("`standard_errors` must be positive at every root.")
    size = float(np.median(se))
    value_spread = float(np.ptp(h)) / size
    se_spread = float(np.ptp(se)) / size
    if value_spread > rtol:
        return RootInvariance("h varies (not estimable)", value_spread, se_spread)
    if se_spread > rtol:
        return RootInvariance("se varies (root-dependent)", value_spread, se_spread)
    return RootInvariance("invariant", value_spread, se_spread)
