"""Whether the rank of an equation's A is told apart from noise."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._differentiate import response_steps
from eestim.asymptotics.rank import (
    WEAK_RATIO,
    RankReport,
    WeakRank,
    judge_weak,
    kept_directions,
)
from eestim.errors import CapabilityError, EestimError
from eestim.findings import Finding

__all__ = ["weak_finding", "weak_rank_at", "weak_rank_finding", "with_weak_rank"]

_MOST_SLOPES = 20_000_000  # entries of the sensitivities of all units, 160 MB
_ONE_SIGN = 1e-8  # of their size: what rounding may add to values of one sign


def weak_rank_at(equation: Any, theta: Any, report: RankReport) -> WeakRank:
    r"""Return how far the singular values kept are from zero, in standard errors.

    .. math:: \min_j \sigma_j / se_j, \quad se_j^2 = n^{-2} \sum_i \Big(
       u_j'(A_i - A)v_j + \frac{\partial u_j'Av_j}{\partial\theta'} A^+ \psi_i\Big)^2

    with u, v the singular vectors of the scaled A: `weak_rank` of an equation, without
    the variance of all of A. Directions along which A is an average of values of one
    sign (those of Gram matrices) are left out.

    Parameters
    ----------
    equation : EstimatingEquation
        With `unit_sensitivity`.
    theta : (p,) array
        A root.
    report : RankReport
        Of A there; the rank in use is its own.

    Raises
    ------
    CapabilityError
        Where it cannot be judged, with the reason: no sensitivities of single units,
        more than 20 million entries of them, A of rank zero, or a Gram-type A
        (averages of values of one sign, such as :math:`E\,xx'`, vanish only where each
        of their terms does, so that the numerical rank decides).

    References
    ----------
    Robin and Smith (2000), Econometric Theory 16, 151-175, theorem 3.2.
    """
    at = np.asarray(theta, dtype=np.float64)
    made = getattr(equation, "unit_sensitivity", None)
    size = int(equation.n_units) * len(report.decomposition.rows) * len(at)
    if made is None:
        raise CapabilityError(
            f"{type(equation).__name__} has no `unit_sensitivity`, so the noise of A "
            "is not known."
        )
    if report.rank < 1:
        raise CapabilityError("A is zero: no singular value is kept.")
    if size > _MOST_SLOPES:
        raise CapabilityError(
            f"the sensitivities of single units have {size:.2g} entries (limit "
            f"{_MOST_SLOPES:.0e}); use `weak_rank` on arrays."
        )
    u, v = kept_directions(report)
    each: Matrix = np.einsum("qj,iqj->ij", u, np.asarray(made(at)) @ v)
    is_gram = each.min(axis=0) >= -_ONE_SIGN * np.abs(each).max(axis=0)
    if is_gram.all():
        raise CapabilityError(
            "along its singular vectors A is an average of terms of one sign (a Gram "
            "matrix), which vanishes exactly or not at all: its numerical rank decides."
        )
    influence = each - each.mean(axis=0)
    influence = influence + equation.psi(at) @ _root_part(equation, at, report)
    se = np.sqrt(np.sum(influence**2, axis=0)) / len(influence)
    return judge_weak(report, np.where(is_gram, 0.0, se))


def with_weak_rank(equation: Any, theta: Any, report: RankReport) -> RankReport:
    """Return the report with `weak` where that can be judged, else unchanged."""
    try:
        return report.with_weak(weak_rank_at(equation, theta, report))
    except EestimError:
        return report


def weak_rank_finding(equation: Any, theta: Any, report: RankReport) -> Finding | None:
    """Return a warning where the last singular value kept is close to its error.

    Parameters
    ----------
    equation, theta, report
        See `weak_rank_at`.

    Returns
    -------
    Finding, or None
        None where the rank is clear of noise or nothing can be said.
    """
    told = with_weak_rank(equation, theta, report)
    return weak_finding(told.weak) if told.weak is not None and told.is_weak else None


def weak_finding(weak: WeakRank) -> Finding:
    """Return the finding of a verdict: a warning below ten standard errors.

    >>> print(weak_finding(WeakRank(False, 31.6, 1.0, 0.0316, "+1*effect")))
    [pass] weak rank: The singular values of A that were kept are 31.6 standard errors \
or more from zero.
    """
    weakly = (
        f"A singular value of A that was kept is {weak.ratio:.1f} standard errors from "
        f"zero: {weak.direction} is weakly identified, where Wald intervals may be far "
        "too short."
    )
    well = (
        f"The singular values of A that were kept are {weak.ratio:.1f} standard errors "
        "or more from zero."
    )
    return Finding(
        "weak rank",
        "warn" if weak.is_weak else "pass",
        weak.ratio,
        WEAK_RATIO,
        weakly if weak.is_weak else well,
        "Use intervals that do not rest on A, `fit.interval(method="
        "ee.ScoreInverted())`, and `rate_slope` for a rate slower than root n."
        if weak.is_weak
        else "",
        assumptions="A is an average of terms of both signs, independent over units.",
    )


def _root_part(equation: Any, theta: Vector, report: RankReport) -> Matrix:
    """Return (A^+)' d(u_j'Av_j)/d theta, (q, r): the share of the plugged-in root."""
    scaled, rank = report.decomposition, report.rank
    left, right = kept_directions(report)
    slope = _slope(equation, theta, left, right)
    return np.asarray(left / scaled.values[:rank] @ (right.T @ slope))


def _slope(equation: Any, theta: Vector, u: Matrix, v: Matrix) -> Matrix:
    """Return the derivative of each u_j'A(theta)v_j, (p, r), by central differences."""
    steps = np.abs(response_steps(equation.psi, theta))

    def at(moved: Vector) -> Vector:
        return np.asarray(np.sum(u * (equation.sensitivity(moved) @ v), axis=0))

    moves = np.diag(steps)
    found = [
        (at(theta + m) - at(theta - m)) / (2.0 * s)
        for m, s in zip(moves, steps, strict=True)
    ]
    return np.array(found)
