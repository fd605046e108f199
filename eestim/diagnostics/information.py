"""White's information equality: the variance of psi against its derivative."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.diagnostics._families import family_moments, simulated_response
from eestim.diagnostics._verdicts import LEVEL, not_applicable, solved
from eestim.equations import moments_at
from eestim.errors import EestimError
from eestim.findings import Finding
from eestim.roots import solve

__all__ = ["information_matrix_test", "information_ratio_test"]

_ADVICE = (
    "The likelihood is misspecified; use a sandwich, and look for overdispersion or a "
    "missing covariate."
)
_ASSUMES = "psi is the score of the likelihood that is tested."
_NEEDED = "Known moments are needed: a binary logit or Poisson model without weights."


def information_matrix_test(
    estimate: Any,
    *,
    bootstrap: int = 0,
    rng: np.random.Generator | None = None,
    level: float = LEVEL,
) -> Finding:
    r"""Test that the variance of psi equals its derivative (White's equality).

    The efficient form: with indicators :math:`d_i` (entries of :math:`\psi_i
    \psi_i^\top + \partial \psi_i`) and the model's own variances,

    .. math:: n \bar d^\top (V_d - C V_s^{-1} C^\top)^{-1} \bar d \sim \chi^2_m .

    For the binomial and Poisson families with canonical link, whose third and fourth
    moments are known. The outer-product form is not offered: its size at n = 50 is
    about four times the nominal one.

    Parameters
    ----------
    estimate : Estimate
        Of a logistic or Poisson model without weights.
    bootstrap : int
        Draws of a parametric bootstrap of the p value; 0 for the chi-squared law.
    rng : Generator, needed for the bootstrap
    level : float

    References
    ----------
    White (1982), Econometrica 50, 1-25; Orme (1990), J. Econometrics 46, 309-331;
    Horowitz (1994), J. Econometrics 61, 395-411, for the bootstrap.
    """
    equation, theta, _ = solved(estimate)
    moments = family_moments(equation, theta)
    if moments is None:
        return not_applicable("information matrix", _NEEDED)
    statistic, dof = _efficient_statistic(equation.design, *moments)
    if dof == 0:
        return not_applicable(
            "information matrix", "The model is saturated: the equality is an identity."
        )
    if bootstrap:

        def again(refitted: Any, theta: Vector) -> float:
            values = family_moments(refitted, theta)
            return (
                np.nan
                if values is None
                else _efficient_statistic(refitted.design, *values)[0]
            )

        values = _bootstrapped(equation, theta, again, bootstrap, rng)
        p, law = _upper(values, statistic), f"bootstrap of {len(values)} draws"
    else:
        p, law = float(stats.chi2.sf(statistic, dof)), f"chi2({dof})"
    failed = p < level
    return Finding(
        "information matrix",
        "fail" if failed else "pass",
        statistic,
        float(stats.chi2.isf(level, dof)),
        f"Statistic {statistic:.2f}, p = {p:.3g} ({law}).",
        _ADVICE if failed else "",
        _ASSUMES,
        float(dof),
        p,
    )


def information_ratio_test(
    estimate: Any,
    rng: np.random.Generator,
    *,
    draws: int = 99,
    level: float = LEVEL,
) -> Finding:
    r"""Test the mean ratio of sandwich to model information, by parametric bootstrap.

    .. math:: \mathrm{tr}(A^{-1} M) / p

    is one under the model (for a dispersion, in its units). Two-sided: the p value is
    twice the smaller tail of the bootstrap.

    Parameters
    ----------
    estimate : Estimate
        Of a linear, binary logistic or Poisson model without weights.
    rng : Generator
    draws : int
        Refits to simulated outcomes.

    References
    ----------
    Zhou, Song and Thompson (2012), JASA 107, 205-213; Dhaene and Hoorelbeke (2004),
    Economics Letters 82, 341-347, for the bootstrap.
    """
    name = "information ratio"
    equation, theta, _ = solved(estimate)
    if simulated_response(equation, theta) is None:
        return not_applicable(
            name, "Needs an unweighted linear, binary logistic or Poisson model."
        )
    value = _ratio(equation, theta)
    found = _bootstrapped(equation, theta, _ratio, draws, rng)
    below = (1 + int((found <= value).sum())) / (1 + len(found))
    p = min(1.0, 2.0 * min(below, _upper(found, value)))
    failed = p < level
    return Finding(
        name,
        "fail" if failed else "pass",
        value,
        1.0,
        f"Sandwich over model information is {value:.2f} on average, where the model "
        f"gives {found.mean():.2f} (p = {p:.3g}, bootstrap of {len(found)} draws).",
        _ADVICE if failed else "",
        _ASSUMES,
        p=p,
    )


def _ratio(equation: Any, theta: Vector) -> float:
    moments = moments_at(equation, theta)
    slope, meat = moments.sensitivity, moments.meat
    if equation.has_dispersion:
        meat = meat / equation.working(theta).dispersion
    return float(np.trace(np.linalg.solve(slope, meat)) / len(slope))


def _upper(values: Vector, statistic: float) -> float:
    return (1 + int((values >= statistic).sum())) / (1 + len(values))


def _efficient_statistic(
    design: Matrix, residual: Vector, second: Vector, third: Vector, fourth: Vector
) -> tuple[float, int]:
    rows, columns = np.triu_indices(design.shape[1])
    products = design[:, rows] * design[:, columns]
    n = len(design)
    # d = products (e^2 - v), s = x e: model moments given the design.
    variance_d = (products.T * (fourth - second**2)) @ products / n
    cross = (products.T * third) @ design / n
    variance_s = (design.T * second) @ design / n
    spread = variance_d - cross @ np.linalg.solve(variance_s, cross.T)
    mean = (products * (residual**2 - second)[:, None]).mean(axis=0)
    scale = np.sqrt(np.where(np.diag(variance_d) > 0, np.diag(variance_d), 1.0))
    spread = spread / np.outer(scale, scale)
    if np.abs(spread).max() < 1e-9:  # of correlations: d is a function of the score
        return 0.0, 0
    half, rank = symmetric_power(spread, -0.5, rcond=1e-9)
    root = half @ (mean / scale)
    return float(n * root @ root), rank


def _bootstrapped(
    equation: Any,
    theta: Vector,
    statistic: Callable[[Any, Vector], float],
    draws: int,
    rng: np.random.Generator | None,
) -> Vector:
    """Return the statistic at refits to simulated outcomes, failures left out."""
    if rng is None:
        raise ValueError("`rng` is needed for a bootstrap; pass a numpy Generator.")
    draw = simulated_response(equation, theta)
    if draw is None:
        raise ValueError("no outcomes of this model can be simulated; use bootstrap=0.")
    values = []
    for _ in range(draws):
        again = replace(equation, response=draw(rng))
        try:
            root = solve(again, theta)
        except EestimError:
            continue
        if root.is_converged:
            values.append(statistic(again, root.theta))
    found: Vector = np.asarray(values, dtype=np.float64)
    return found[np.isfinite(found)]
