"""Generalised score tests and distance tests, for any psi."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import scipy
from scipy import optimize

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.covariance.base import Covariance, CovarianceRule, sensitivity_factor
from eestim.covariance.hc import HC
from eestim.covariance.model_based import OPG, ModelBased
from eestim.equations import EstimatingEquation, require
from eestim.errors import ConvergenceError, InferenceError
from eestim.inference._restricted import (
    Restriction,
    restricted_root,
    restriction_of,
)
from eestim.inference.wald import independent_restrictions
from eestim.roots import root_at

__all__ = [
    "Criterion",
    "RestrictedTest",
    "distance_test",
    "log_likelihood_of",
    "score_test",
]

Criterion: TypeAlias = Literal["likelihood", "psi"]

_SLACK = 1e-7  # by which a restricted log-likelihood may pass the free one: rounding
_MODEL = "model-based"
_VANISHES = 1e-12  # a variance, of the terms that it is the sum of


@dataclass(frozen=True, slots=True, eq=False)
class RestrictedTest:
    """A test of a restriction that solves the equations under it.

    Attributes
    ----------
    kind : str
        "score", "likelihood ratio" or "distance".
    statistic : float
    dof : int
        Number of independent restrictions.
    p : float
        From the chi-squared law.
    theta : Series
        The root under the restriction, by name.
    rule : str
        The covariance or the criterion behind the statistic.
    citation : str
    """

    kind: str
    statistic: float
    dof: int
    p: float
    theta: "pd.Series[float]"
    rule: str
    citation: str

    def __str__(self) -> str:
        return (
            f"{self.kind}: chi2({self.dof}) = {self.statistic:.4g}, p = {self.p:.4g} "
            f"[{self.rule}]"
        )


def _test(
    kind: str,
    statistic: float,
    dof: int,
    names: tuple[str, ...],
    theta: Vector,
    rule: str,
    citation: str,
) -> RestrictedTest:
    p = float(scipy.stats.chi2.sf(statistic, dof))
    values = pd.Series(theta, index=list(names), name="restricted")
    return RestrictedTest(kind, statistic, dof, p, values, rule, citation)


# --------------------------------------------------------------------------- score


def score_test(
    estimate: Any,
    restriction: Any,
    *,
    covariance: CovarianceRule | None = None,
) -> RestrictedTest:
    r"""Return the generalised score test of :math:`R\theta = r`.

    With :math:`\tilde\theta` the root under the restriction and A and V there,

    .. math::
        T = g^\top (R V R^\top)^{-} g, \qquad g = R A^{-1} \bar\psi(\tilde\theta),

    is chi-squared with as many degrees of freedom as restrictions. Nothing is
    estimated without the restriction, and T does not change when the free parameters
    are written in another way. With a model-based covariance it is Rao's test.

    Parameters
    ----------
    estimate : Estimate
    restriction : str, sequence of str, mapping, (R, r), or (m, p) array
        Parameters that are zero, ``{"x": 1.0}``, or R and r.
    covariance : covariance rule, optional
        What V is, at the restricted root; by default that of the fit, for HC, OPG and
        model-based fits (with the dispersion estimated under the restriction).

    Raises
    ------
    ConvergenceError
        If there is no root under the restriction.
    InferenceError
        If the covariance rule of the fit has to be given again.

    References
    ----------
    Boos (1992), Am. Stat. 46, 327-333, eqs. 6 and 12; Rao (1948).

    Examples
    --------
    The score test of a mean uses the spread about the value tested:

    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 6.0]))
    >>> print(score_test(fit, {"mean": 1.0}))
    score: chi2(1) = 1.385, p = 0.2393 [HC0]
    """
    asked = restriction_of(restriction, estimate.names)
    rule = covariance if covariance is not None else _rule_of(estimate.spread)
    equation = estimate.equation
    theta = restricted_root(equation, asked, estimate.theta, estimate.spread.matrix)
    spread = rule(equation, root_at(equation, theta))
    found = independent_restrictions(
        _newton_step(equation, theta), spread.matrix, asked.matrix, 0.0 * asked.values
    )
    return _test(
        "score",
        found.quadratic,
        found.rank,
        estimate.names,
        theta,
        spread.rule,
        "Boos (1992), Am. Stat. 46, 327-333",
    )


def _newton_step(equation: EstimatingEquation, theta: Vector) -> Vector:
    error = float(getattr(equation, "derivative_error", 0.0))
    factor = sensitivity_factor(equation.sensitivity(theta), equation.names, error)
    return factor.solve(equation.psi(theta).mean(axis=0))


def _rule_of(spread: Covariance) -> CovarianceRule:
    """Return the rule of a fit, where its name says all of it."""
    named: dict[str, CovarianceRule] = {
        f"HC{kind}": HC(kind) for kind in (0, 1, 2, 3, 4, 5, "4m")
    }
    named["outer product of gradients"] = OPG()
    for text in (_MODEL, f"{_MODEL}, /n"):
        named[text] = ModelBased(df_adjust=False)
    if spread.rule not in named:
        raise InferenceError(
            f"the score test needs the covariance rule ({spread.rule}) at the "
            "restricted root; pass it again, as in fit.score(restriction, "
            "covariance=ee.Clustered('firm'))."
        )
    return named[spread.rule]


# ------------------------------------------------------------------------ distance


def distance_test(
    estimate: Any, restriction: Any, *, criterion: Criterion | None = None
) -> RestrictedTest:
    r"""Return the distance test of :math:`R\theta = r`.

    "likelihood" is the likelihood ratio,

    .. math:: D = 2 \{\ell(\hat\theta) - \ell(\tilde\theta)\},

    chi-squared where the model is right. "psi" is the minimum-distance statistic,

    .. math::
        D = \min_{R\theta = r} \bar\psi^\top (A V A^\top)^{-1} \bar\psi

    with A and V those of the fit: :math:`A V A^\top` is the variance of the mean of psi
    under its covariance rule, clustered or not. It is chi-squared whether or not a
    model is right.

    Parameters
    ----------
    estimate : Estimate
    restriction : str, sequence of str, mapping, (R, r), or (m, p) array
    criterion : {"likelihood", "psi"}, optional
        By default "likelihood" for a model-based covariance of an equation with a
        likelihood, "psi" otherwise.

    Raises
    ------
    CapabilityError
        If "likelihood" is asked of an equation without one.
    InferenceError
        If V is singular.

    References
    ----------
    Newey and West (1987), Int. Econ. Rev. 28, 777-787; Wilks (1938).

    Examples
    --------
    For a linear psi the minimum distance is the Wald statistic:

    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 6.0]))
    >>> print(distance_test(fit, {"mean": 1.0}))
    distance: chi2(1) = 2.571, p = 0.1088 [psi, HC0]
    """
    if criterion is not None and criterion not in get_args(Criterion):
        raise ValueError(
            f'`criterion` must be "likelihood" or "psi"; got {criterion!r}.'
        )
    asked = restriction_of(restriction, estimate.names)
    is_model = estimate.spread.rule.startswith(_MODEL)
    has_likelihood = getattr(estimate.equation, "log_likelihood", None) is not None
    if criterion is None:
        criterion = "likelihood" if is_model and has_likelihood else "psi"
    if criterion == "likelihood":
        return _likelihood_ratio(estimate, asked)
    return _minimum_distance(estimate, asked)


def log_likelihood_of(equation: EstimatingEquation, wanted_by: str) -> Any:
    """Return the log-likelihood of an equation as a function of theta.

    Raises
    ------
    CapabilityError
        If it has none.
    """
    return require(
        equation,
        "log_likelihood",
        wanted_by,
        "Use `score`, `wald` or ScoreInverted(), which take any psi.",
    )


def _likelihood_ratio(estimate: Any, asked: Restriction) -> RestrictedTest:
    equation = estimate.equation
    likelihood = log_likelihood_of(equation, "the likelihood ratio")
    theta = restricted_root(equation, asked, estimate.theta, estimate.spread.matrix)
    free, restricted = likelihood(estimate.theta), likelihood(theta)
    if restricted - free > _SLACK * (1.0 + abs(free)):
        raise ConvergenceError(
            f"the log-likelihood is higher under the restriction ({restricted:.8g}) "
            f"than without it ({free:.8g}): the estimate is not its maximum. Pass "
            "another `start` to `estimate`."
        )
    return _test(
        "likelihood ratio",
        max(2.0 * (free - restricted), 0.0),
        asked.count,
        estimate.names,
        theta,
        "likelihood",
        "Wilks (1938), Ann. Math. Stat. 9, 60-62",
    )


def _minimum_distance(estimate: Any, asked: Restriction) -> RestrictedTest:
    equation, spread = estimate.equation, estimate.spread
    weight = _noise_root(equation, estimate.theta, spread)
    base = asked.nearest(estimate.theta, spread.matrix)
    errors = np.sqrt(np.diag(spread.matrix))
    basis = asked.free_space(errors)
    theta = base
    if basis.shape[1]:
        lengths = np.sqrt(np.square(basis / errors[:, None]).sum(axis=0))
        theta = _nearest_in_noise(equation, weight, base, basis / lengths)
    gap = weight @ equation.psi(theta).mean(axis=0)
    return _test(
        "distance",
        float(gap @ gap),
        asked.count,
        estimate.names,
        theta,
        f"psi, {spread.rule}",
        "Newey and West (1987), Int. Econ. Rev. 28, 777-787",
    )


def _nearest_in_noise(
    equation: EstimatingEquation, weight: Matrix, base: Vector, basis: Matrix
) -> Vector:
    """Return the point of ``base + basis eta`` with the smallest weighted psi."""

    def residual(eta: Vector) -> Vector:
        value: Vector = weight @ equation.psi(base + basis @ eta).mean(axis=0)
        return value

    def slope(eta: Vector) -> Matrix:
        value: Matrix = -weight @ equation.sensitivity(base + basis @ eta) @ basis
        return value

    found = optimize.least_squares(
        residual,
        np.zeros(basis.shape[1]),
        jac=slope,
        xtol=1e-13,
        ftol=1e-13,
        gtol=1e-13,
    )
    nearest: Vector = base + basis @ found.x
    return nearest


def _noise_root(
    equation: EstimatingEquation, theta: Vector, spread: Covariance
) -> Matrix:
    r"""Return a root of :math:`(A V A^\top)^{-1}`, (p, p)."""
    slope = equation.sensitivity(theta)
    noise = slope @ spread.matrix @ slope.T
    terms = np.abs(slope) @ np.abs(spread.matrix) @ np.abs(slope).T
    silent = np.flatnonzero(np.diag(noise) <= _VANISHES * np.diag(terms))
    if len(silent):
        raise InferenceError(
            f"the distance test needs the variance of the mean of psi, and equation "
            f"{int(silent[0])} has none (a relation without noise); leave it out and "
            "use `functional`, or use `wald`."
        )
    scale = np.sqrt(np.diag(noise))
    half, rank = symmetric_power(noise / np.outer(scale, scale), -0.5)
    if rank < len(slope):
        raise InferenceError(
            "the distance test inverts the variance of the mean of psi, whose rank is "
            f"{rank} of {len(slope)} ({spread.rule}); there may be too few clusters, "
            "or an equation without noise. Use `wald`."
        )
    return half / scale
