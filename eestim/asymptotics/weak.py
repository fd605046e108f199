"""Whether the rank of an equation's A is told apart from noise."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._differentiate import response_steps
from eestim.asymptotics.rank import RankReport, describe_direction
from eestim.asymptotics.rank_tests import WEAK_RATIO
from eestim.errors import EestimError
from eestim.findings import Finding

__all__ = ["weak_rank_finding"]

_MOST_SLOPES = 20_000_000  # entries of the sensitivities of all units, 160 MB
_ONE_SIGN = 1e-8  # of their size: what rounding may add to values of one sign


def weak_rank_finding(equation: Any, theta: Any, report: RankReport) -> Finding | None:
    r"""Return a warning where the last singular value kept is close to its error.

    .. math:: \sigma_r / se(\sigma_r) < 10, \quad se^2 = n^{-2} \sum_i
       \Big(u'(A_i - A)v + \frac{\partial u'Av}{\partial\theta'} A^+ \psi_i\Big)^2

    with u, v the singular vectors of the scaled A: `weak_rank` of an equation, without
    the variance of all of A. Averages of values of one sign (Gram matrices such as
    :math:`E\,xx'`) vanish only where each of their terms does, so the numerical rank
    decides there.

    Parameters
    ----------
    equation : EstimatingEquation
        With `unit_sensitivity`; others are not judged.
    theta : (p,) array
        A root.
    report : RankReport
        Of A there; the rank in use is its own.

    Returns
    -------
    Finding, or None
        None where the rank is clear of noise or nothing can be said: no sensitivities
        of single units, or more than 20 million entries of them.

    References
    ----------
    Robin and Smith (2000), Econometric Theory 16, 151-175, theorem 3.2.
    """
    at = np.asarray(theta, dtype=np.float64)
    made = getattr(equation, "unit_sensitivity", None)
    size = int(equation.n_units) * len(at) ** 2
    if made is None or report.rank < 1 or size > _MOST_SLOPES:
        return None
    try:
        units = np.asarray(made(at))
        terms = _terms(equation, at, units, report)
    except EestimError:  # blocks without the capability: nothing is known of them
        return None
    if terms is None:
        return None
    value, influence = terms
    se = float(np.sqrt(influence @ influence)) / len(influence)
    if not se > 0 or value >= WEAK_RATIO * se:
        return None
    scaled = report.decomposition
    right = scaled.columns * scaled.right[:, report.rank - 1]
    direction = describe_direction(right, scaled.columns, report.names)
    return Finding(
        "weak rank",
        "warn",
        value / se,
        WEAK_RATIO,
        f"The smallest singular value of A that was kept is {value / se:.1f} standard "
        f"errors from zero: {direction} is weakly identified, where Wald intervals "
        "may be far too short.",
        "Use intervals that do not rest on A, `fit.interval(method="
        "ee.ScoreInverted())`, and `rate_slope` for a rate slower than root n.",
        assumptions="A is an average of terms of both signs, independent over units.",
    )


def _terms(
    equation: Any, theta: Vector, units: Matrix, report: RankReport
) -> tuple[float, Vector] | None:
    """Return u'Av and its influences (n,), None for a Gram-type direction."""
    scaled, last = report.decomposition, report.rank - 1
    u = scaled.rows * scaled.left[:, last]
    v = scaled.columns * scaled.right[:, last]
    each: Vector = np.einsum("q,iqp,p->i", u, units, v)
    if each.min() >= -_ONE_SIGN * np.abs(each).max():
        return None
    value = float(each.mean())
    slope = _slope(equation, theta, u, v)
    kept = scaled.right[:, : last + 1] / scaled.values[: last + 1]
    inverse = (scaled.columns[:, None] * kept) @ (
        scaled.left[:, : last + 1].T * scaled.rows
    )
    influence = each - value + equation.psi(theta) @ (inverse.T @ slope)
    return value, np.asarray(influence)


def _slope(equation: Any, theta: Vector, u: Vector, v: Vector) -> Vector:
    """Return the derivative of u'A(theta)v, (p,), by central differences."""
    steps = np.abs(response_steps(equation.psi, theta))

    def at(moved: Vector) -> float:
        return float(u @ equation.sensitivity(moved) @ v)

    moves = np.diag(steps)
    found = [
        (at(theta + m) - at(theta - m)) / (2.0 * s)
        for m, s in zip(moves, steps, strict=True)
    ]
    return np.array(found)
