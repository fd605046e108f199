"""Does the estimate behave as theory says: influence, halves."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._linalg import symmetric_power
from eestim.covariance.base import leverage
from eestim.diagnostics._verdicts import LEVEL, chi2_finding
from eestim.equations import require
from eestim.errors import CapabilityError, EestimError
from eestim.estimation import estimate as estimated
from eestim.findings import Finding

__all__ = ["half_sample_stability", "influence_check"]

_SHARE = 0.1  # of the summed squared influence that one unit may have
_INSTEAD = "Only equations that can be reweighted can be refitted on parts."


def influence_check(fit: Any) -> Finding:
    r"""Find units that dominate a variance (Lindeberg's condition).

    The largest share :math:`\max_i IF_i^2 / \sum_i IF_i^2` over parameters, with the
    effective number of units :math:`(\sum IF^2)^2 / \sum IF^4` and the kurtosis of
    the influence, and the largest leverage where the equation is a regression.
    """
    influence = fit.influence().to_numpy()
    squares = influence**2
    shares = squares.max(axis=0) / squares.sum(axis=0)
    effective = squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0)
    worst = int(np.argmax(shares))
    unit = int(np.argmax(squares[:, worst]))
    value = float(shares[worst])
    warned = value > _SHARE
    kurtosis = len(influence) / effective[worst]
    return Finding(
        "influence",
        "warn" if warned else "pass",
        value,
        _SHARE,
        f"Unit {unit} carries {value:.1%} of the variance of {fit.names[worst]} "
        f"(effectively {effective[worst]:.0f} units, kurtosis {kurtosis:.1f})"
        f"{_leverage_text(fit)}.",
        "The normal law is doubtful: look at that unit, and use a bootstrap or "
        "empirical likelihood."
        if warned
        else "",
        "Many more units than parameters; influence is that of an infinitesimal "
        "change.",
    )


def _leverage_text(fit: Any) -> str:
    working = getattr(fit.equation, "working", None)
    if working is None:
        return ""
    try:
        h = leverage(working(fit.theta))
    except EestimError:
        return ""
    top = int(np.argmax(h))
    return f"; the largest leverage is {h[top]:.2g}, of row {top}"


def half_sample_stability(
    fit: Any, rng: np.random.Generator, contrasts: Any = None, level: float = LEVEL
) -> Finding:
    r"""Compare the estimates of two random halves.

    .. math:: (R\hat\theta_1 - R\hat\theta_2)^\top (R V_1 R^\top + R V_2 R^\top)^-
              (R\hat\theta_1 - R\hat\theta_2) \sim \chi^2_r

    Parameters
    ----------
    fit : Estimate
    rng : Generator
    contrasts : (m, p) array, optional
        R; all parameters by default.
    """
    name, n = "half-sample stability", fit.n_units
    reweighted = require(fit.equation, "reweighted", name, _INSTEAD)
    first = np.zeros(n)
    first[rng.permutation(n)[: n // 2]] = 1.0
    try:
        halves = [_half(reweighted(w), fit) for w in (first, 1.0 - first)]
    except CapabilityError:
        raise
    except EestimError as error:
        return Finding(
            name,
            "warn",
            np.nan,
            np.nan,
            f"A half of the data has no estimate: {error}",
            "There are too few units for this model.",
        )
    rows = np.eye(len(fit.names)) if contrasts is None else np.atleast_2d(contrasts)
    (one, spread_one), (two, spread_two) = halves
    gap = rows @ (one - two)
    total = rows @ (spread_one + spread_two) @ rows.T
    scale = np.sqrt(np.diag(total))
    half, rank = symmetric_power(total / np.outer(scale, scale), -0.5)
    root = half @ (gap / scale)
    return chi2_finding(
        name,
        float(root @ root),
        rank,
        level=level,
        says="Two random halves against each other",
        advice="Repeat with another seed; if it persists, units differ in kind or the "
        "standard errors are too small.",
        assumptions="Independent units; both halves near the same root.",
        rejected="warn",
    )


def _half(equation: Any, fit: Any) -> tuple[Vector, Matrix]:
    """Return estimate and covariance of the units of weight one."""
    made = estimated(equation, start=fit.theta)
    # Zero-weight units count in n and contribute nothing: V is a ratio of sums.
    return made.theta, made.spread.matrix
