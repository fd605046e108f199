"""Wald tests on a rank, and agreement of a functional over several roots."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.estimable import functional_covariance
from eestim.asymptotics.rank import RankReport, rank_report
from eestim.errors import IdentificationError, InferenceError

__all__ = [
    "RankWald",
    "RootInvariance",
    "estimable_wald",
    "point_wald",
    "root_invariance",
]

_CONSISTENT = 1e-6  # share of a hypothesis outside the range of its covariance
_ROUNDING = 1e-8  # of a covariance that is symmetric and positive semidefinite
_NEAREST = 1e-10  # of theta, along what is free: the accuracy of a nearest root
_TANGENT = 1e-2  # standard errors by which a bent orbit may shift the statistic


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


def _rank_of_covariance(covariance: Matrix, rank: int | None = None) -> RankReport:
    """Return the rank report of a covariance, or raise where it leaves df open."""
    report = rank_report(covariance, rank=rank)
    if report.is_ambiguous:
        ranks = ", ".join(str(cut.rank) for cut in report.cuts)
        raise IdentificationError(
            f"the covariance of the hypothesis has an ambiguous rank ({ranks}: no gap "
            "of 1000 around the cut), and degrees of freedom and statistic depend on "
            "it. Drop nearly dependent rows, or compute it with more digits."
        )
    if report.rank == 0:
        raise InferenceError(
            "the covariance of the hypothesis is zero: the fit interpolates, or the "
            "hypothesis restricts nothing that is identified. There is no test."
        )
    return report


def _rank_quadratic(difference: Vector, argument: str, report: RankReport) -> RankWald:
    """Return d' C^- d on rank(C) degrees of freedom, of the report of a covariance."""
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
        statistic, report.rank, float(stats.chi2.sf(statistic, report.rank))
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
        If a row of R is not estimable, or whether rows are dependent is not clear.
    ValueError
        If dependent rows have contradictory right-hand sides.
    DataError
        If an argument is not finite.

    Examples
    --------
    The same restriction twice has one degree of freedom:

    >>> test = estimable_wald(np.eye(1), np.eye(1), [[1.0], [1.0]], [0.2, 0.2], 100)
    >>> test.df, round(test.statistic, 10)
    (1, 4.0)
    """
    found = functional_covariance(A, M, R, n_units, **options)
    vector = np.atleast_1d(as_float(difference, "difference"))
    check_finite(vector, "difference")
    if vector.shape != found.se.shape:
        raise ValueError(
            f"`difference` has shape {vector.shape}; R has {len(found.se)} rows."
        )
    report = _rank_of_covariance(found.covariance)
    return _rank_quadratic(vector, "difference", report)


def point_wald(
    theta: Any,
    theta_0: Any,
    covariance: Any,
    *,
    rank: int | None = None,
    flat: bool = False,
) -> RankWald:
    r"""Test a point modulo the directions that are not identified.

    .. math:: W = (\hat\theta-\theta_0)' V^{+} (\hat\theta-\theta_0)
       \sim \chi^2_{\operatorname{rank} V}

    with :math:`\hat\theta` the sample root nearest to :math:`\theta_0`: the
    difference is then orthogonal to the orbit of roots. Another root of a bent orbit
    gives another statistic, however true the hypothesis; it is refused where the part
    of the difference along the free directions could shift the root of W by a
    hundredth, the orbit bending with a radius of the size of theta.

    Parameters
    ----------
    theta, theta_0 : (P,) arrays
        The nearest root and the hypothesis.
    covariance : (P, P) array
        Covariance of the root, 1/n included, possibly singular.
    rank : int, optional
        Rank of the covariance, where its numbers leave it open.
    flat : bool
        The free directions are the same at every root, as those of redundant linear
        parameters: then any root serves.

    Raises
    ------
    ValueError
        If shapes do not fit, theta is not the nearest root, or the covariance is not
        symmetric and positive semidefinite.
    IdentificationError
        If the rank of the covariance is not clear.
    InferenceError
        If the covariance is zero.
    DataError
        If an argument is not finite.

    Examples
    --------
    >>> test = point_wald([0.3, 0.0], [0.0, 0.0], [[0.01, 0.0], [0.0, 0.0]])
    >>> test.df, round(test.statistic, 10)
    (1, 9.0)
    """
    matrix = check_finite(as_float(covariance, "covariance", ndim=2), "covariance")
    root = check_finite(as_float(theta, "theta", ndim=1), "theta")
    point = check_finite(as_float(theta_0, "theta_0", ndim=1), "theta_0")
    p = len(root)
    if point.shape != (p,) or matrix.shape != (p, p) or p == 0:
        raise ValueError(
            f"`theta` is {root.shape}, `theta_0` {point.shape}, `covariance` "
            f"{matrix.shape}; give P, P and P by P numbers."
        )
    _check_covariance(matrix)
    matrix = (matrix + matrix.T) / 2
    report = _rank_of_covariance(matrix, rank)
    free = report.null_space
    difference = root - point
    along = free @ (free.T @ difference)
    if not flat and report.rank < p:
        size = max(float(np.linalg.norm(root)), float(np.linalg.norm(point)))
        least = max(float(np.linalg.eigvalsh(matrix)[p - report.rank]), 0.0)
        _check_nearest(float(np.linalg.norm(along)), size, float(np.sqrt(least)))
    return _rank_quadratic(difference - along, "theta", report)


def _check_covariance(matrix: Matrix) -> None:
    """Raise unless a matrix is symmetric and positive semidefinite, free of units."""
    diagonal = np.diag(matrix)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = scale[:, None] * matrix * scale
    gap = float(np.abs(scaled - scaled.T).max())
    least = float(np.linalg.eigvalsh((scaled + scaled.T) / 2)[0])
    if gap > _ROUNDING or least < -_ROUNDING or (diagonal < 0).any():
        raise ValueError(
            "`covariance` is not symmetric and positive semidefinite (asymmetry "
            f"{gap:.1e}, least eigenvalue {least:.1e} after scaling); give that of an "
            "estimate, A^-1 M A^-T / n."
        )


def _check_nearest(along: float, size: float, least: float) -> None:
    """Raise if a part along a bent orbit shifts the difference by much of its error."""
    if along**2 > _TANGENT * size * least + (_NEAREST * size) ** 2:
        raise ValueError(
            f"`theta` is not the root nearest to `theta_0`: {along:.3g} of their "
            "difference lies along directions that are free. Move along the roots to "
            "the nearest one, or pass flat=True if the free directions are the same at "
            "every root."
        )


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
        With fewer than three roots, a standard error that is not positive, or an
        `rtol` that is negative or not finite.
    DataError
        If a value is not finite.

    Examples
    --------
    >>> root_invariance([1.0, 1.0, 1.0], [0.1, 0.1, 0.2]).status
    'se varies (root-dependent)'
    """
    h = check_finite(as_float(values, "values", ndim=1), "values")
    se = as_float(standard_errors, "standard_errors", ndim=1)
    check_finite(se, "standard_errors")
    if not (np.isfinite(rtol) and rtol >= 0):
        raise ValueError(f"`rtol` is {rtol}; give a finite number >= 0.")
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
