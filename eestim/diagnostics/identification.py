"""Is there something to estimate: rank, range, estimability, separation."""

from typing import Any

import numpy as np

from eestim._arrays import Vector
from eestim.asymptotics.estimable import estimability
from eestim.asymptotics.existence import frontier_aspect, separation
from eestim.asymptotics.rank import RankReport, rank_report
from eestim.asymptotics.terms import term_sizes
from eestim.asymptotics.weak import weak_finding, weak_rank_at, with_weak_rank
from eestim.diagnostics._verdicts import not_applicable, solved
from eestim.equations import EstimatingEquation, moments_at, require
from eestim.errors import SeparationError
from eestim.findings import Finding

__all__ = [
    "estimability_check",
    "range_check",
    "rank_check",
    "rank_of",
    "separation_check",
    "weak_rank_check",
]

_WEAK = 1e-10  # smallest singular value kept without a warning
_OUTSIDE = 1e-6  # share of M outside the range of A that rounding and noise explain
_NEAR_FRONTIER = 0.5  # of the aspect ratio at which logistic estimates cease to exist
_PROGRAM_ENTRIES = 4_000_000  # n p of the largest separation program that is solved


def rank_of(equation: EstimatingEquation, theta: Vector) -> RankReport:
    """Return the rank report of A and M of an equation at theta.

    Its `weak` and status "weak_rank" tell whether a singular value that was kept is
    within ten standard errors of zero, where sensitivities of single units are at hand
    and A is not a Gram matrix.
    """
    return with_weak_rank(equation, theta, _numerical_rank(equation, theta))


def _numerical_rank(equation: EstimatingEquation, theta: Vector) -> RankReport:
    moments = moments_at(equation, theta)
    return rank_report(
        moments.sensitivity,
        moments.meat,
        derivative_error=float(getattr(equation, "derivative_error", 0.0)),
        names=equation.names,
        terms=term_sizes(equation, theta),
    )


def rank_check(estimate: Any) -> Finding:
    """Check the rank of A and the gap in its singular values, free of units.

    Fails where a direction is not identified, warns where singular values have no
    gap of 1000 around the cut or the smallest is below 1e-10 of the largest. Where the
    solver used better-conditioned coordinates, these are judged.
    """
    equation, theta, _ = solved(estimate)
    return _rank_finding(_numerical_rank(equation, theta))


def weak_rank_check(estimate: Any) -> Finding:
    r"""Check that the rank of A is told apart from noise.

    .. math:: \min_j \sigma_j / se(\sigma_j) \ge 10

    over the scaled singular values kept; a weak instrument fails it. Warns, names the
    direction, and points to intervals that do not rest on A. Gram-type A (least
    squares, Fisher information) vanish along a direction exactly or not at all: there
    `rank_check` decides and this one does not apply.

    References
    ----------
    Robin and Smith (2000), Econometric Theory 16, 151-175, theorem 3.2;
    Staiger and Stock (1997), Econometrica 65, 557-586, on weak instruments.
    """
    equation, theta, _ = solved(estimate)
    report = _numerical_rank(equation, theta)
    return weak_finding(weak_rank_at(equation, theta, report))


def _rank_finding(report: RankReport) -> Finding:
    value = float(report.singular_values[-1])
    meaning = (
        f"A has rank {report.rank} of {report.n_parameters}; its smallest scaled "
        f"singular value is {value:.1e} of the largest"
    )
    if report.rank < report.n_parameters:
        free = "; ".join(report.free_directions())
        return Finding(
            "rank",
            "fail",
            value,
            report.tolerance,
            f"{meaning} (free: {free}).",
            "Report estimable functionals (ee.asymptotics.estimable), or fix "
            "parameters.",
            "A is accurate to the error of its derivative.",
        )
    is_weak = report.is_ambiguous or value < _WEAK
    return Finding(
        "rank",
        "warn" if is_weak else "pass",
        value,
        _WEAK,
        f"{meaning}" + (", without a clear gap." if report.is_ambiguous else "."),
        "Look at the cuts of ee.asymptotics.rank_report for the weak direction."
        if is_weak
        else "",
        "A is accurate to the error of its derivative.",
    )


def range_check(equation: EstimatingEquation, theta: Any) -> Finding:
    r"""Check that M has no part outside the range of A.

    .. math:: \|(I - AA^+) M (I - AA^+)\| / \|M\|

    Where A is singular and this is not zero, the mean of psi cannot be brought to zero
    in every sample: there is no regular root, and a generalised inverse of A gives
    a number that depends on the inverse.
    """
    report = _numerical_rank(equation, np.asarray(theta, dtype=np.float64))
    if report.rank == len(report.decomposition.rows):
        return not_applicable("range", "A has full rank, so its range is everything.")
    value = report.range_violation
    is_outside = value > _OUTSIDE
    return Finding(
        "range",
        "fail" if is_outside else "pass",
        value,
        _OUTSIDE,
        f"A share of {value:.1e} of the variance of psi lies outside the range of A "
        f"(rank {report.rank} of {report.n_parameters}).",
        "There is no regular root: change the equations, do not use a pseudo-inverse."
        if is_outside
        else "",
        "A is evaluated at a root.",
    )


def estimability_check(
    equation: EstimatingEquation, theta: Any, gradient: Any, name: str = "h"
) -> Finding:
    r"""Check that a functional is a function of what A identifies.

    .. math:: \|(I - A^+A) \nabla h\| / \|\nabla h\|
    """
    report = _numerical_rank(equation, np.asarray(theta, dtype=np.float64))
    A = equation.sensitivity(np.asarray(theta, dtype=np.float64))
    found = estimability(A, gradient, report=report)
    error = float(getattr(equation, "derivative_error", 0.0))
    bound = max(found.tolerance, 100.0 * error)
    worst = int(np.argmax(found.residual))
    value = float(found.residual[worst])
    failed = value > bound
    return Finding(
        "estimability",
        "fail" if failed else "pass",
        value,
        bound,
        f"{name} changes along {found.directions[worst]}, which A does not see."
        if failed
        else f"{name} is constant along the {report.n_parameters - report.rank} free "
        "direction(s).",
        "Report a functional that is constant along that direction." if failed else "",
        "A has the same rank near the root.",
    )


def separation_check(fit: Any) -> Finding:
    r"""Check that the estimate is finite, and how far the data are from separation.

    For logistic models a linear program decides; beside it p / n is compared with the
    share at which estimates cease to exist for the signal seen,
    :math:`\kappa^*(\mathrm{sd}(x_i^\top \hat\theta))`. Other models answer by their own
    check. The fitted signal overstates the true one, so the warning errs on the side
    of caution.
    """
    equation = fit.equation
    check = require(
        equation, "check_root", "the separation check", "Only models can be separated."
    )
    try:
        check(fit.root)
    except SeparationError as error:
        return Finding("separation", "fail", 1.0, _NEAR_FRONTIER, str(error), _CURE)
    family = getattr(getattr(equation, "family", None), "name", None)
    link = getattr(getattr(equation, "link", None), "name", None)
    if family == "gaussian":
        return not_applicable("separation", "Least squares estimates are finite.")
    if family != "binomial" or link != "logit" or not hasattr(equation, "design"):
        return Finding(
            "separation",
            "pass",
            0.0,
            1.0,
            "No combination of covariates sends the estimate to infinity.",
            "",
            "A linear program is solved where fitted values are extreme.",
        )
    return _logistic_separation(equation, fit.theta)


_CURE = "Drop or merge the separating covariates, or penalise."


def _logistic_separation(equation: Any, theta: Vector) -> Finding:
    used = slice(None) if equation.row_weights is None else equation.row_weights > 0
    X, y = equation.design[used], equation.response[used]
    is_binary = bool(np.isin(y, (0.0, 1.0)).all())
    if is_binary and equation.offset is None and X.size <= _PROGRAM_ENTRIES:
        found = separation(X, y)
        if found.status != "overlap":
            meaning = (
                f"{found.status} separation: {found.n_separated} of {len(y)} rows lie "
                "strictly on their side of a hyperplane."
            )
            return Finding("separation", "fail", 1.0, _NEAR_FRONTIER, meaning, _CURE)
    aspect, signal = X.shape[1] / len(y), float(np.std(X @ theta))
    value = aspect / frontier_aspect(signal)
    is_near = value > _NEAR_FRONTIER
    return Finding(
        "separation",
        "warn" if is_near else "pass",
        value,
        _NEAR_FRONTIER,
        f"The classes overlap; p/n = {aspect:.3g} is {value:.0%} of the share at "
        f"which estimates cease to exist for a signal of {signal:.2g}.",
        "Use ee.asymptotics.adjusted_fit, a penalty, or fewer covariates."
        if is_near
        else "",
        "Covariates are about Gaussian; the fitted signal overstates the true one.",
    )
