"""Does the model fit: information equality, variance ratio, over-identification."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.covariance.hc import HC
from eestim.covariance.model_based import ModelBased
from eestim.errors import CapabilityError, EestimError, InferenceError
from eestim.findings import Finding
from eestim.roots import solve

__all__ = [
    "information_matrix_test",
    "over_identification",
    "unbiasedness",
    "variance_ratio",
]

_LEVEL = 0.05
_RATIO = (0.8, 1.25)  # of variances, warned outside


def unbiasedness(psi: Matrix, level: float = _LEVEL) -> Finding:
    r"""Test that psi has mean zero at the true parameters of simulated data.

    .. math:: T = N \bar\psi^\top \hat C^+ \bar\psi \sim \chi^2_{\mathrm{rank}\,\hat C}

    The rank counts, not the number of columns: contributions of redundant
    parametrisations (softmax) are linearly dependent.

    Parameters
    ----------
    psi : (N, q) array
        Contributions of N simulated units at the parameters that simulated them.
    level : float

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> unbiasedness(rng.normal(size=(500, 2))).status
    'pass'
    >>> unbiasedness(rng.normal(0.3, 1.0, size=(500, 2))).status
    'fail'
    """
    n, mean = len(psi), psi.mean(axis=0)
    centred = psi - mean
    scale = np.where(centred.std(axis=0) > 0, centred.std(axis=0), 1.0)
    half, rank = symmetric_power(
        (centred / scale).T @ (centred / scale) / n, -0.5, rcond=1e-10
    )
    root = half @ (mean / scale)
    statistic = float(n * root @ root)
    p = float(stats.chi2.sf(statistic, rank))
    failed = p < level
    return Finding(
        "unbiasedness",
        "fail" if failed else "pass",
        statistic,
        float(stats.chi2.isf(level, rank)),
        f"chi2({rank}) = {statistic:.2f}, p = {p:.3g}, for a mean of zero.",
        "The equations are biased at the truth: look for draws shared between a "
        "residual and its instrument, or a log of an average."
        if failed
        else "",
    )


def variance_ratio(estimate: Any) -> Finding:
    """Compare sandwich variances with those of the model, parameter by parameter."""
    try:
        model = estimate.with_covariance(ModelBased())
        robust = estimate.with_covariance(HC(0))
    except (CapabilityError, InferenceError) as error:
        return Finding("variance ratio", "not applicable", np.nan, np.nan, str(error))
    ratio = (robust.se / model.se) ** 2
    extreme = float(ratio.iloc[int(np.argmax(np.abs(np.log(ratio.to_numpy()))))])
    name = str(ratio.index[int(np.argmax(np.abs(np.log(ratio.to_numpy()))))])
    low, high = _RATIO
    warned = not low <= extreme <= high
    return Finding(
        "variance ratio",
        "warn" if warned else "pass",
        extreme,
        high,
        f"The sandwich variance of {name} is {extreme:.2f} times that of the model.",
        "Report the sandwich; the model's variance function does not fit."
        if warned
        else "",
    )


def over_identification(
    moments: Matrix, slope: Matrix, weight: Matrix | None = None, level: float = _LEVEL
) -> Finding:
    r"""Test q moment conditions at an efficient estimate of p < q parameters.

    .. math:: J = n \bar g^\top \hat\Omega^{-1} \bar g \sim \chi^2_{q - r},
              \qquad r = \mathrm{rank}\, A.

    Parameters
    ----------
    moments : (n, q) array
        Moment contributions at the estimate.
    slope : (q, p) array
        Their mean derivative; its rank, not p, is subtracted.
    weight : (q, q) array, optional
        The inverse of the covariance used in the efficient step; that of `moments`
        by default.

    References
    ----------
    Hansen (1982), Econometrica 50, 1029-1054.
    """
    n, mean = len(moments), moments.mean(axis=0)
    if weight is None:
        half, _ = symmetric_power(moments.T @ moments / n, -0.5)
        weight = half @ half
    rank = int(np.linalg.matrix_rank(slope))
    excess = moments.shape[1] - rank
    if excess == 0:
        return Finding(
            "over-identification",
            "not applicable",
            np.nan,
            np.nan,
            "There are as many equations as identified parameters.",
        )
    statistic = float(n * mean @ weight @ mean)
    p = float(stats.chi2.sf(statistic, excess))
    failed = p < level
    return Finding(
        "over-identification",
        "fail" if failed else "pass",
        statistic,
        float(stats.chi2.isf(level, excess)),
        f"J = {statistic:.2f} on {excess} degrees of freedom, p = {p:.3g}.",
        "The moment conditions contradict each other; drop the doubtful ones."
        if failed
        else "",
    )


# --------------------------------------------------------- information matrix test


def information_matrix_test(
    estimate: Any,
    *,
    bootstrap: int = 0,
    rng: np.random.Generator | None = None,
    level: float = _LEVEL,
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
    equation = estimate.equation
    moments = _family_moments(equation, estimate.theta)
    if moments is None:
        return Finding(
            "information matrix",
            "not applicable",
            np.nan,
            np.nan,
            "Known moments are needed: a logit or Poisson model without weights.",
        )
    statistic, dof = _efficient_statistic(equation.design, *moments)
    if bootstrap:
        p = _bootstrap_p(equation, estimate, statistic, bootstrap, rng)
        law = f"bootstrap of {bootstrap} draws"
    else:
        p, law = float(stats.chi2.sf(statistic, dof)), f"chi2({dof})"
    failed = p < level
    return Finding(
        "information matrix",
        "fail" if failed else "pass",
        statistic,
        float(stats.chi2.isf(level, dof)),
        f"Statistic {statistic:.2f}, p = {p:.3g} ({law}).",
        "The likelihood is misspecified; use a sandwich, and look for overdispersion "
        "or a missing covariate."
        if failed
        else "",
    )


def _family_moments(
    equation: Any, theta: Vector
) -> tuple[Vector, Vector, Vector, Vector] | None:
    """Return residual and its second, third and fourth central moments."""
    name = getattr(getattr(equation, "family", None), "name", None)
    if name not in ("binomial", "poisson") or not equation.is_canonical:
        return None
    if equation.row_weights is not None:
        return None
    prediction = equation.design @ theta
    if equation.offset is not None:
        prediction = prediction + equation.offset
    mu = equation.link.inverse(prediction)
    residual = equation.response - mu
    if name == "poisson":
        return residual, mu, mu, mu + 3 * mu**2
    variance = mu * (1 - mu)
    return (
        residual,
        variance,
        variance * (1 - 2 * mu),
        variance * (1 - 3 * variance),
    )


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
    half, rank = symmetric_power(spread / np.outer(scale, scale), -0.5, rcond=1e-9)
    root = half @ (mean / scale)
    return float(n * root @ root), rank


def _bootstrap_p(
    equation: Any,
    estimate: Any,
    statistic: float,
    draws: int,
    rng: np.random.Generator | None,
) -> float:
    if rng is None:
        raise ValueError("`rng` is needed for a bootstrap; pass a numpy Generator.")
    prediction = equation.design @ estimate.theta
    if equation.offset is not None:
        prediction = prediction + equation.offset
    mu = equation.link.inverse(prediction)
    draw: Callable[[], Vector] = (
        (lambda: rng.poisson(mu).astype(float))
        if equation.family.name == "poisson"
        else (lambda: (rng.random(len(mu)) < mu).astype(float))
    )
    exceeded = counted = 0
    for _ in range(draws):
        again = replace(equation, response=draw())
        try:
            root = solve(again, estimate.theta)
        except EestimError:
            continue
        if not root.is_converged:
            continue
        moments = _family_moments(again, root.theta)
        if moments is not None:
            value, _ = _efficient_statistic(equation.design, *moments)
            exceeded += value >= statistic
            counted += 1
    return (1 + exceeded) / (1 + counted)
