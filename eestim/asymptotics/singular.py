"""Singular strata: tests where the information of a parameter vanishes."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from eestim._arrays import Vector, as_float, check_finite
from eestim.asymptotics.rank import rank_report
from eestim.errors import IdentificationError, InferenceError

__all__ = [
    "RateSlope",
    "ScoreTest",
    "boundary_critical_value",
    "boundary_p_value",
    "efficient_score",
    "one_sided_score_test",
    "rate_slope",
]

_SLOW = -0.40  # a slope above this is slower than root n


@dataclass(frozen=True, slots=True)
class ScoreTest:
    """One-sided score test that a variance is zero."""

    statistic: float
    p_value: float


def efficient_score(
    psi_tau: Any, psi_nuisance: Any, cross_sensitivity: Any, nuisance_sensitivity: Any
) -> Vector:
    r"""Return the score of tau with the estimation of nuisance parameters removed.

    .. math:: s_i = \psi_{\tau,i} - A_{\tau\eta}A_{\eta\eta}^{-1}\psi_{\eta,i}

    Parameters
    ----------
    psi_tau : (n,) array
        Score of tau at tau = 0 and the nuisance estimate.
    psi_nuisance : (n, k) array
        Equations of the nuisance parameters.
    cross_sensitivity : (k,) array
        Minus the mean derivative of psi_tau in the nuisance parameters.
    nuisance_sensitivity : (k, k) array
        Minus the mean derivative of psi_nuisance.

    Raises
    ------
    IdentificationError
        If the nuisance sensitivity is singular.

    Examples
    --------
    >>> efficient_score([1.0, 2.0], [[1.0], [0.0]], [0.5], [[1.0]])
    array([0.5, 2. ])
    """
    inner = as_float(nuisance_sensitivity, "nuisance_sensitivity", ndim=2)
    report = rank_report(inner)
    if report.rank < len(inner):
        raise IdentificationError(
            f"`nuisance_sensitivity` has rank {report.rank} of {len(inner)}; free "
            f"direction: {report.free_directions()[0]}. Fix a parameter in it."
        )
    cross = as_float(cross_sensitivity, "cross_sensitivity", ndim=1)
    rows = as_float(psi_nuisance, "psi_nuisance", ndim=2)
    score: Vector = as_float(psi_tau, "psi_tau", ndim=1) - rows @ np.linalg.solve(
        inner.T, cross
    )
    return score


def one_sided_score_test(score: Any) -> ScoreTest:
    r"""Test that a variance tau is zero against its being positive.

    .. math:: T = \sum_i s_i \Big/ \big\{\sum_i (s_i - \bar s)^2\big\}^{1/2},
       \quad p = 1 - \Phi(T)

    The score in tau = scale^2 is regular at tau = 0, where the information of the
    scale itself vanishes and Wald and likelihood-ratio tests are not standard.

    Parameters
    ----------
    score : (n,) array
        Derivative of each unit's log-likelihood in tau at zero; with estimated
        nuisance parameters use `efficient_score`.

    Raises
    ------
    InferenceError
        If the score does not vary.

    References
    ----------
    Silvapulle and Silvapulle (1995), J. Am. Stat. Assoc. 90, 342-349.

    Examples
    --------
    >>> round(one_sided_score_test([1.0, -1.0, 1.0, -1.0]).p_value, 12)
    0.5
    """
    s = check_finite(as_float(score, "score", ndim=1), "score")
    spread = float(np.sqrt(np.sum((s - s.mean()) ** 2)))
    if not spread > 0:
        raise InferenceError(
            "`score` does not vary over units, so the test has no scale; check that it "
            "is the derivative in the variance, not in the scale (which is zero there)."
        )
    statistic = float(s.sum()) / spread
    return ScoreTest(statistic, float(stats.norm.sf(statistic)))


def boundary_p_value(statistic: float, *, n_directions: int = 1) -> float:
    r"""Return the p-value of a likelihood ratio for one variance on its boundary.

    The null distribution is :math:`\tfrac12\chi^2_0 + \tfrac12\chi^2_1`, for one
    scalar variance along a known direction only.

    Parameters
    ----------
    statistic : float
        Twice the log-likelihood ratio, >= 0.
    n_directions : int
        Number of directions that the perturbation may take.

    Raises
    ------
    InferenceError
        With more than one direction, where the mixture is another.

    References
    ----------
    Self and Liang (1987), J. Am. Stat. Assoc. 82, 605-610, case 5.

    Examples
    --------
    >>> round(boundary_p_value(2.705543), 6), boundary_p_value(0.0)
    (0.05, 1.0)
    """
    _refuse_many(n_directions)
    if not statistic >= 0:
        raise ValueError(f"`statistic` is {statistic}; a likelihood ratio is >= 0.")
    return 1.0 if statistic == 0 else 0.5 * float(stats.chi2.sf(statistic, 1))


def boundary_critical_value(level: float = 0.05, *, n_directions: int = 1) -> float:
    """Return the critical value of the half-half mixture.

    Raises
    ------
    InferenceError
        With more than one direction.
    ValueError
        If the level is outside (0, 1/2).

    Examples
    --------
    >>> round(boundary_critical_value(0.05), 4)
    2.7055
    """
    _refuse_many(n_directions)
    if not 0 < level < 0.5:
        raise ValueError(f"`level` is {level}; choose one inside (0, 0.5).")
    return float(stats.chi2.isf(2 * level, 1))


def _refuse_many(n_directions: int) -> None:
    if n_directions != 1:
        raise InferenceError(
            f"`n_directions` is {n_directions}: the mixture of chi-squares 0 and 1 "
            "holds only for one scalar variance along a known direction. Use "
            "`simulated_null`."
        )


@dataclass(frozen=True, slots=True)
class RateSlope:
    """Slope of log spread on log sample size: -1/2 if regular, -1/4 if singular."""

    slope: float
    status: Literal["regular", "slower than root n"]


def rate_slope(sizes: Any, spreads: Any, *, n_units: int | None = None) -> RateSlope:
    r"""Return the rate at which an estimate concentrates.

    The least-squares slope of :math:`\log\{\mathrm{IQR}(m)(1 - m/n)^{-1/2}\}` on
    :math:`\log m`, the factor correcting for subsamples of size m drawn without
    replacement from n units.

    Parameters
    ----------
    sizes : (k,) array
        Sample sizes m, at least three.
    spreads : (k,) array
        Interquartile range of the estimate at each size.
    n_units : int, optional
        Size of the sample that subsamples come from; None if they are independent.

    Raises
    ------
    ValueError
        With fewer than three sizes, or sizes and spreads out of range.

    Examples
    --------
    >>> sizes = np.array([100.0, 400.0, 1600.0])
    >>> rate_slope(sizes, sizes**-0.25)
    RateSlope(slope=-0.25, status='slower than root n')
    """
    m = as_float(sizes, "sizes", ndim=1)
    spread = as_float(spreads, "spreads", ndim=1)
    limit = np.inf if n_units is None else float(n_units)
    if len(m) < 3 or m.shape != spread.shape or len(np.unique(m)) < 3:
        raise ValueError("give `sizes` and `spreads` of at least three sample sizes.")
    if not ((m > 0) & (m < limit) & (spread > 0)).all():
        raise ValueError(
            "`sizes` must lie between 0 and `n_units`, and `spreads` be positive."
        )
    adjusted = np.log(spread) - 0.5 * np.log1p(-m / limit)
    centred = np.log(m) - np.log(m).mean()
    slope = round(float(centred @ adjusted / (centred @ centred)), 12)
    return RateSlope(slope, "slower than root n" if slope > _SLOW else "regular")
