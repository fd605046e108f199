r"""Intervals by inverting tests: profile likelihood, and scores of any psi.

Both are sets of values that a test does not reject, so a change of parameters maps the
interval as it maps the parameter: nothing is assumed about the scale on which the
estimate is nearly normal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy

from eestim._arrays import Vector
from eestim._differentiate import jumping_columns
from eestim.equations import EstimatingEquation
from eestim.errors import ConvergenceError, EestimError, InferenceError
from eestim.inference._crossing import (
    checked_level,
    crossing,
    interval_frame,
    wanted_places,
)
from eestim.inference._dual import DualCriterion, Profiled, euclidean
from eestim.inference._restricted import (
    RestrictedEquation,
    require_independent_units,
    restriction_of,
)
from eestim.inference.score_tests import log_likelihood_of
from eestim.roots import solve

__all__ = ["Profile", "ScoreInverted", "profiled_interval"]


_FAR = 100.0  # Wald half widths, beyond which a set counts as unbounded


@dataclass(frozen=True, slots=True)
class Profile:
    r"""Profile-likelihood intervals.

    .. math:: \{c : 2 \{\ell(\hat\theta) - \max_{\theta_j = c} \ell(\theta)\}
              \le \chi^2_{1, level}\}

    Right if the model is, whatever covariance rule the fit has; for robust intervals
    of the same shape see `ScoreInverted`. A dispersion is profiled out with the other
    parameters. A bound is infinite where the likelihood never falls below the
    critical value.

    Attributes
    ----------
    names : sequence of str, optional
        Parameters whose intervals are wanted; all by default.

    References
    ----------
    Venzon and Moolgavkar (1988), Appl. Stat. 37, 87-94; Cox and Snell (1989),
    Analysis of Binary Data, appendix 1.4.

    Examples
    --------
    Eight events in four units of exposure: the interval of a Poisson mean.

    >>> import eestim as ee
    >>> fit = ee.estimate(ee.glm([2.0, 1.0, 3.0, 2.0], np.ones((4, 1)),
    ...                          family="poisson"))
    >>> np.exp(fit.interval(method=Profile())).round(3).values.tolist()
    [[2.0, 0.914, 3.723]]
    """

    names: Sequence[str] | None = None

    def interval(self, estimate: Any, level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter.

        Raises
        ------
        CapabilityError
            If the equation has no likelihood.
        InferenceError
            If the covariance of the fit says that the units depend on each other.
        """
        checked_level(level)
        log_likelihood_of(estimate.equation, "Profile()")
        require_independent_units(estimate, "Profile()")
        critical = float(scipy.stats.chi2.ppf(level, 1))
        places = wanted_places(self.names, estimate.names, "Profile()")
        bounds = [_likelihood_bounds(estimate, j, critical) for j in places]
        return _framed(estimate, places, bounds)


def _likelihood_bounds(estimate: Any, j: int, critical: float) -> tuple[float, float]:
    """Return the profile-likelihood interval of one parameter."""
    equation = estimate.equation
    likelihood = log_likelihood_of(equation, "Profile()")
    highest = likelihood(estimate.theta)
    errors = np.sqrt(np.diag(estimate.spread.matrix))

    def side(sign: float) -> float:
        search = _Constrained(equation, estimate.theta, j, errors)

        def statistic(value: float) -> float:
            return float(2.0 * (highest - likelihood(search.root(value))))

        try:
            step = sign * np.sqrt(critical) * errors[j]
            return crossing(statistic, float(estimate.theta[j]), step, critical)
        except ConvergenceError as error:
            raise InferenceError(
                f"the profile of {estimate.names[j]!r} could not be followed to its "
                f"{'upper' if sign > 0 else 'lower'} bound: {error}"
            ) from error

    return side(-1.0), side(1.0)


class _Constrained:
    """Roots with one parameter fixed, each search starting from the last."""

    def __init__(
        self, equation: EstimatingEquation, theta: Vector, j: int, errors: Vector
    ) -> None:
        names = tuple(equation.names)
        self.equation, self.j, self.last = equation, j, theta.copy()
        self.basis = restriction_of({names[j]: 0.0}, names).free_space(errors)

    def root(self, value: float) -> Vector:
        base = self.last.copy()
        base[self.j] = value
        if self.basis.shape[1]:
            inner = RestrictedEquation(self.equation, base, self.basis)
            found = solve(inner, np.zeros(self.basis.shape[1])).require_converged()
            base = inner.theta(found.theta)
        self.last = base
        return base


@dataclass(frozen=True, slots=True)
class ScoreInverted:
    r"""Intervals of the values whose scores are within their noise, for any psi.

    .. math:: \{c : \min_{\theta_j = c} n \bar\psi(\theta)^\top M(\theta)^{-1}
              \bar\psi(\theta) \le \chi^2_{1, level}\}

    with M the variance of psi at the same theta. The interval does not change when psi
    is multiplied by an invertible matrix, even one that depends on theta, nor when
    parameters are written in another way. For a quantile it is the interval of the
    sign test, which needs no density.

    Notes
    -----
    M is about zero, not about the mean of psi, so the statistic is at most n. With
    many nuisance parameters the minimum takes up to a hundred evaluations of psi for
    each value tried. It is searched from the minima passed before. Where psi grows
    exponentially (a Poisson, or a binomial with a cloglog link) one unit far out makes
    all of M, and the criterion falls to 1: in small samples sides are often open there,
    and the minimum near the estimate may give a bound that a far one would not.

    Attributes
    ----------
    names : sequence of str, optional
        Parameters whose intervals are wanted; all by default.

    References
    ----------
    Boos (1992), Am. Stat. 46, 327-333; Hansen, Heaton and Yaron (1996), J. Bus. Econ.
    Stat. 14, 262-280, for the criterion with psi and M at one theta.

    Examples
    --------
    For a mean, a closed form: :math:`(\bar y - c)^2 \le q s^2 / (n - q)`.

    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 4.0, 5.0, 8.0, 10.0]))
    >>> fit.interval(method=ScoreInverted()).round(3).values.tolist()
    [[5.0, 0.781, 9.219]]
    """

    names: Sequence[str] | None = None

    def interval(self, estimate: Any, level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a parameter.

        Raises
        ------
        InferenceError
            If units depend on each other, an equation has no noise, or psi jumps and
            there is more than one parameter.
        """
        critical = float(scipy.stats.chi2.ppf(checked_level(level), 1))
        method = "ScoreInverted()"
        places = wanted_places(self.names, estimate.names, method)
        return profiled_interval(estimate, euclidean, critical, method, places)


def profiled_interval(
    estimate: Any,
    criterion: DualCriterion,
    critical: float,
    method: str,
    places: list[int],
) -> pd.DataFrame:
    """Return intervals of the parameters at some places by profiling a criterion.

    Raises
    ------
    InferenceError
        If the criterion cannot be profiled for this fit.
    """
    require_independent_units(estimate, method)
    equation = estimate.equation
    if len(estimate.names) > 1:
        _refuse_jumps(equation, estimate.theta, method)
    errors = np.sqrt(np.diag(estimate.spread.matrix))
    bounds = []
    for j in places:
        sides = []
        for sign in (-1.0, 1.0):
            profiled = Profiled(
                equation, estimate.theta, j, criterion, critical, method
            )
            step = sign * np.sqrt(critical) * errors[j]
            try:
                bound = crossing(
                    profiled, float(estimate.theta[j]), step, critical, farthest=_FAR
                )
            except EestimError as error:
                raise InferenceError(
                    f"the interval of {estimate.names[j]!r} could not be followed to "
                    f"its {'upper' if sign > 0 else 'lower'} bound: {error}"
                ) from error
            sides.append(bound)
        bounds.append((sides[0], sides[1]))
    return _framed(estimate, places, bounds)


def _framed(
    estimate: Any, places: list[int], bounds: list[tuple[float, float]]
) -> pd.DataFrame:
    names = tuple(estimate.names[j] for j in places)
    return interval_frame(names, estimate.theta[places], bounds)


def _refuse_jumps(equation: EstimatingEquation, theta: Vector, method: str) -> None:
    if bool(jumping_columns(equation.psi, theta).any()):
        raise InferenceError(
            f"{method} minimises over the other parameters, and psi of this equation "
            "jumps (a quantile or a sign), so there is no derivative to follow. Use "
            "the Wald interval, or a bootstrap with percentile intervals."
        )
