"""Does the estimate behave as theory says: rate, halves, influence."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.equations import require
from eestim.errors import EestimError
from eestim.estimation import estimate as estimated
from eestim.findings import Finding
from eestim.roots import solve

__all__ = ["half_sample_stability", "influence_check", "rate_check"]

_SLOWEST = -0.40  # slope of log spread on log size; -1/2 is regular
_SHARE = 0.1  # of the summed squared influence that one unit may have
_LEVEL = 0.05
_INSTEAD = "Only equations that can be reweighted can be refitted on parts."


def influence_check(fit: Any) -> Finding:
    r"""Find units that dominate a variance (Lindeberg's condition).

    The largest share :math:`\max_i IF_i^2 / \sum_i IF_i^2` over parameters, with the
    effective number of units :math:`(\sum IF^2)^2 / \sum IF^4`.
    """
    influence = fit.influence().to_numpy()
    squares = influence**2
    shares = squares.max(axis=0) / squares.sum(axis=0)
    effective = squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0)
    worst = int(np.argmax(shares))
    unit = int(np.argmax(squares[:, worst]))
    value = float(shares[worst])
    warned = value > _SHARE
    return Finding(
        "influence",
        "warn" if warned else "pass",
        value,
        _SHARE,
        f"Unit {unit} carries {value:.1%} of the variance of {fit.names[worst]} "
        f"(effectively {effective[worst]:.0f} units).",
        "The normal law is doubtful: look at that unit, and use a bootstrap or "
        "empirical likelihood."
        if warned
        else "",
    )


def half_sample_stability(fit: Any, rng: np.random.Generator) -> Finding:
    r"""Compare the estimates of two random halves.

    .. math:: (\hat\theta_1 - \hat\theta_2)^\top (V_1 + V_2)^-
              (\hat\theta_1 - \hat\theta_2) \sim \chi^2_r
    """
    n = fit.n_units
    reweighted = require(fit.equation, "reweighted", "half-sample stability", _INSTEAD)
    first = np.zeros(n)
    first[rng.permutation(n)[: n // 2]] = 1.0
    try:
        halves = [_half(reweighted(w), fit) for w in (first, 1.0 - first)]
    except EestimError as error:
        return Finding(
            "half-sample stability",
            "fail",
            np.nan,
            np.nan,
            f"A half of the data has no estimate: {error}",
            "There are too few units for this model.",
        )
    (one, spread_one), (two, spread_two) = halves
    total = spread_one + spread_two
    scale = np.sqrt(np.diag(total))
    half, rank = symmetric_power(total / np.outer(scale, scale), -0.5)
    root = half @ ((one - two) / scale)
    statistic = float(root @ root)
    p = float(stats.chi2.sf(statistic, rank))
    failed = p < _LEVEL
    return Finding(
        "half-sample stability",
        "warn" if failed else "pass",
        statistic,
        float(stats.chi2.isf(_LEVEL, rank)),
        f"Two random halves differ by chi2({rank}) = {statistic:.2f}, p = {p:.3g}.",
        "Repeat with another seed; if it persists, units differ in kind or the "
        "standard errors are too small."
        if failed
        else "",
    )


def _half(equation: Any, fit: Any) -> tuple[Vector, Matrix]:
    """Return estimate and covariance of the units of weight one."""
    made = estimated(equation, start=fit.theta)
    # Zero-weight units count in n and contribute nothing: V is a ratio of sums.
    return made.theta, made.spread.matrix


def rate_check(
    fit: Any,
    rng: np.random.Generator,
    *,
    h: Callable[[Vector], float] | None = None,
    sizes: Sequence[int] | None = None,
    draws: int = 60,
) -> Finding:
    r"""Estimate the rate of convergence by subsampling.

    The slope of the log interquartile range of :math:`h(\hat\theta_m)` on log m, for
    subsamples without replacement, times :math:`(1 - m/n)^{-1/2}` for their overlap.
    A regular estimate has slope -1/2, one at a singular point -1/4.

    Parameters
    ----------
    fit : Estimate
    rng : Generator
    h : callable, optional
        From theta to a number; the first parameter by default.
    sizes : sequence of int, optional
        Sizes m; four between n / 16 and n / 2 by default.
    draws : int
        Subsamples of each size.

    References
    ----------
    Politis, Romano and Wolf (1999), Subsampling, ch. 8; Bertail, Politis and Romano
    (1999), JASA 94, 569-579.
    """
    n = fit.n_units
    reweighted = require(fit.equation, "reweighted", "the rate check", _INSTEAD)
    chosen = list(sizes or np.unique(np.geomspace(n / 16, n / 2, 4).astype(int)))
    smallest = 4 * len(fit.names)
    chosen = [m for m in chosen if smallest <= m < n]
    if len(chosen) < 3:
        return Finding(
            "rate",
            "not applicable",
            np.nan,
            _SLOWEST,
            f"{n} units are too few for subsamples of three sizes.",
        )
    spreads, failures = [], 0
    for m in chosen:
        values = []
        for _ in range(draws):
            weights = np.zeros(n)
            weights[rng.choice(n, m, replace=False)] = 1.0
            try:
                root = solve(reweighted(weights), fit.theta)
            except EestimError:
                failures += 1
                continue
            if root.is_converged:
                values.append(float(root.theta[0] if h is None else h(root.theta)))
            else:
                failures += 1
        spread = float(stats.iqr(values)) if len(values) > draws / 2 else np.nan
        spreads.append(spread / np.sqrt(1.0 - m / n))
    slope = float(np.polyfit(np.log(chosen), np.log(spreads), 1)[0])
    warned = not slope <= _SLOWEST
    return Finding(
        "rate",
        "warn" if warned else "pass",
        slope,
        _SLOWEST,
        f"The spread falls with the sample size to the power {slope:.2f} (regular: "
        f"-0.50); {failures} of {draws * len(chosen)} refits failed.",
        "The estimate converges more slowly than the square root of n: look for a "
        "singular point, a boundary or heavy tails; Wald intervals are not valid."
        if warned
        else "",
    )
