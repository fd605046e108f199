"""Is the root a root: residual, derivative, multiplicity."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._differentiate import directional_difference, response_steps
from eestim.asymptotics.fits import estimable
from eestim.asymptotics.rank_wald import root_invariance
from eestim.covariance.base import sensitivity_factor
from eestim.diagnostics._verdicts import not_applicable, solved
from eestim.diagnostics.complex_steps import complex_steps_along
from eestim.equations import EstimatingEquation, moments_at
from eestim.errors import (
    CapabilityError,
    EestimError,
    IdentificationError,
    InferenceError,
)
from eestim.findings import Finding, FindingStatus
from eestim.roots import Root, Status, noise_residual, solve

__all__ = [
    "derivative_check",
    "invariance_check",
    "residual_path",
    "root_multiplicity",
    "root_residual",
]

DerivativeMethod = Literal["auto", "complex step", "differences"]

_RESIDUAL = (0.01, 0.1)
_DIRECTIONS = 8
_AGREES, _CLOSE = 1e-6, 1e-4  # of A with differences: in double, in single precision
_SAME_ROOT = 1e-3  # standard errors
_OBJECTIVE = 1e-6  # of a log-likelihood: smaller gaps are one optimum


def root_residual(estimate: Any, gradient: Any = None) -> Finding:
    r"""Check the mean of psi against its noise.

    .. math:: \rho = \sqrt{n \bar\psi^\top M^+ \bar\psi / r}, \qquad
              \rho_h = |c^\top \bar\psi| / \mathrm{se}_h, \quad A^\top c = \nabla h

    Free of scale: below 0.01 the numerical error is a hundredth of a standard error.

    Parameters
    ----------
    estimate : Estimate
    gradient : (p,) array, optional
        Gradient of one functional h; its own residual is then judged.
    """
    equation, theta, turn = solved(estimate)
    value = noise_residual(moments_at(equation, theta), theta)
    shift, said = turn @ _shift(equation, theta), "The mean of psi"
    if gradient is not None:
        row = np.asarray(gradient, dtype=np.float64)
        spread = float(row @ estimate.spread.matrix @ row)
        if not spread > 0:
            raise InferenceError("`gradient` has no variance; it must not be zero.")
        value, said = float(abs(row @ shift) / np.sqrt(spread)), "The error of h"
    moved = np.abs(shift) / estimate.se.to_numpy()
    worst = int(np.argmax(moved))
    passed, warned = _RESIDUAL
    jumps = estimate.root.status is Status.CROSSED
    status: FindingStatus = (
        "pass" if value < passed or jumps else "warn" if value < warned else "fail"
    )
    return Finding(
        "root residual",
        status,
        value,
        passed,
        f"{said} is {value:.1e} times its noise at the root"
        + (", which is as near as a psi that jumps comes to zero" if jumps else "")
        + f"; {estimate.names[worst]} would move by {moved[worst]:.1e} of its "
        "standard error.",
        ""
        if status == "pass"
        else "Polish the root: ee.estimate(eq, start=fit.theta).",
        "Independent units with a finite variance of psi.",
    )


def _shift(equation: EstimatingEquation, theta: Vector) -> Vector:
    """Return the Newton step that is left, (p,)."""
    moments = moments_at(equation, theta)
    error = float(getattr(equation, "derivative_error", 0.0))
    return sensitivity_factor(moments.sensitivity, None, error).solve(moments.mean)


def residual_path(
    equation: EstimatingEquation, start: Any = None, max_steps: int = 30
) -> Vector:
    """Return the residual in units of noise after 0, 1, 2, ... Newton steps.

    The search is repeated with growing limits on its steps, so that what is shown is
    what the solver does.

    Examples
    --------
    >>> import eestim as ee
    >>> path = residual_path(ee.mean([1.0, 2.0, 6.0]))
    >>> bool(path[0] > 1), bool(path[-1] < 1e-10)
    (True, True)
    """
    first = getattr(equation, "start", None) if start is None else start
    theta = np.asarray(first, dtype=np.float64)
    found = [noise_residual(moments_at(equation, theta), theta)]
    for limit in range(1, max_steps + 1):
        root = solve(equation, first, max_steps=limit)
        found.append(root.residual)
        if root.status is not Status.TOO_MANY_STEPS:
            break
    path: Vector = np.asarray(found, dtype=np.float64)
    return path


def derivative_check(
    estimate: Any, rng: np.random.Generator, method: DerivativeMethod = "auto"
) -> Finding:
    """Compare A with the derivative of psi along random directions.

    In double precision they agree to 1e-6; between 1e-6 and 1e-4 is what psi in
    single precision leaves. A psi that draws at each call is named as such.

    Parameters
    ----------
    estimate : Estimate
    rng : Generator
    method : {"auto", "complex step", "differences"}
        Complex steps have no truncation error and are used by default where psi is
        analytic in complex theta (`complex_step_sensitivity`), else central
        differences; why, stands in the assumptions of the finding.
    """
    equation, theta, _ = solved(estimate)
    slope = equation.sensitivity(theta)
    rows = equation.psi(theta)
    if not np.array_equal(rows, equation.psi(theta)):
        return Finding(
            "derivative",
            "fail",
            np.inf,
            _AGREES,
            "psi gives different values at the same theta, so it has no derivative.",
            "Draw once and keep the draws (common random numbers), or switch dropout "
            "off.",
        )
    try:
        steps = response_steps(equation.psi, theta)
    except EestimError as error:
        return not_applicable("derivative", str(error))
    if (steps < 0).any():
        return not_applicable(
            "derivative", "psi jumps here: short differences say nothing about A."
        )
    signs = rng.choice([-1.0, 1.0], (_DIRECTIONS, len(theta)))
    directions = (steps * signs / np.sqrt(len(theta))).T
    try:
        seen, by, assumed = _derivative(equation, theta, directions, method)
    except CapabilityError as error:
        return not_applicable("derivative", str(error))
    noise = 1e-12 * np.abs(rows).mean(axis=0)[:, None] + 1e-300
    scale = np.abs(slope) @ np.abs(directions) + 10.0 * noise
    worst = float(np.max(np.abs(slope @ directions + seen) / scale))
    status: FindingStatus = (
        "pass" if worst <= _AGREES else "warn" if worst <= _CLOSE else "fail"
    )
    return Finding(
        "derivative",
        status,
        worst,
        _AGREES,
        f"A differs from {by} of psi by {worst:.1e} (relative).",
        ""
        if status == "pass"
        else "Check the sign and the scale (a mean over units) of the derivative, and "
        "that psi is computed in double precision.",
        assumed,
    )


def _derivative(
    equation: EstimatingEquation,
    theta: Vector,
    directions: Matrix,
    method: DerivativeMethod,
) -> tuple[Matrix, str, str]:
    """Return the derivative of mean psi along directions, and what it rests on."""
    if method not in get_args(DerivativeMethod):
        raise ValueError(
            f"`method` must be one of {get_args(DerivativeMethod)}; got {method!r}."
        )
    assumed = "psi is differentiable and does not draw random numbers"
    if method != "differences":
        try:
            slopes = complex_steps_along(equation, theta, directions)
            return slopes, "complex steps", "psi does not draw random numbers."
        except CapabilityError as error:
            if method == "complex step":
                raise
            assumed += f"; no complex steps: {error}"

    def mean(at: Vector) -> Vector:
        value: Vector = equation.psi(at).mean(axis=0)
        return value

    columns = [
        10.0 * directional_difference(mean, theta, 0.1 * d) for d in directions.T
    ]
    return np.stack(columns, axis=1), "differences", assumed.rstrip(".") + "."


# ------------------------------------------------------------------ several roots


def root_multiplicity(
    estimate: Any,
    rng: np.random.Generator,
    starts: int = 10,
    spread: float = 3.0,
    h: Callable[[Vector], Any] | None = None,
) -> Finding:
    """Solve again from dispersed starts and count roots that differ in h.

    Starts are normal around the root with ``spread`` times ten standard errors.

    Parameters
    ----------
    h : callable, optional
        What is reported, from theta to a number or vector; roots with the same h are
        one. All of theta by default.
    """
    errors = estimate.se.to_numpy()
    scale = errors if h is None else estimate.functional(h).se.to_numpy()

    def read(theta: Vector) -> Vector:
        return theta if h is None else np.atleast_1d(np.asarray(h(theta), float))

    def gap(one: Root, two: Root) -> float:
        """Return the distance beyond what the residuals of two roots explain."""
        allowed = max(_SAME_ROOT, 4.0 * (one.residual + two.residual))
        apart = np.max(np.abs(read(one.theta) - read(two.theta)) / scale)
        return float(apart / allowed)

    found, converged = [estimate.root], 0
    for _ in range(starts):
        start = estimate.theta + 10 * spread * errors * rng.standard_normal(len(errors))
        root = _root_from(estimate.equation, start)
        converged += root is not None
        if root is not None and min(gap(root, known) for known in found) > 1.0:
            found.append(root)
    objectives = [_objective(estimate, root.theta) for root in found]
    return _multiplicity_finding(len(found), objectives, converged, starts)


def _multiplicity_finding(
    count: int, objectives: list[float], converged: int, starts: int
) -> Finding:
    values = np.sort([v for v in objectives if np.isfinite(v)])
    meaning = f"{converged} of {starts} starts converged, to {count} root(s)"
    if len(values) > 1:
        distinct = 1 + int((np.diff(values) > _OBJECTIVE).sum())
        meaning += f" with {distinct} different log-likelihood(s)"
    advice = "Report a function of theta that all roots share, or justify the choice."
    status: FindingStatus = "pass" if count == 1 else "warn"
    if converged == 0:
        status, advice = "warn", "Try nearer starts (smaller `spread`)."
    return Finding(
        "root multiplicity",
        status,
        float(count),
        1.0,
        f"{meaning}.",
        "" if status == "pass" else advice,
        "Roots that no start reaches are not seen.",
    )


def _root_from(equation: EstimatingEquation, start: Vector) -> Root | None:
    try:
        root = solve(equation, start)
    except CapabilityError:  # tabulated at one theta: nothing can be solved
        raise
    except EestimError:
        return None
    return root if root.is_converged and root.residual < 1.0 else None


def _objective(estimate: Any, theta: Vector) -> float:
    likelihood = getattr(estimate.equation, "log_likelihood", None)
    if likelihood is None:
        return np.nan
    try:
        return float(likelihood(theta))
    except EestimError:
        return np.nan


def invariance_check(
    equation: EstimatingEquation,
    h: Callable[[Vector], float],
    rng: np.random.Generator,
    *,
    starts: int = 10,
    spread: float = 1.0,
    rank: int | None = None,
) -> Finding:
    r"""Compare an estimable h and its standard error over roots from many starts.

    For equations that are not identified: h may be estimable at every root and still
    have a standard error that depends on the root, as
    :math:`\psi = (y - \mu)(1 + \kappa x)` with :math:`\kappa` free shows for
    :math:`h = \mu`.

    Parameters
    ----------
    equation : EstimatingEquation
        With a start of its own.
    h : callable
        From theta to a number.
    rng : Generator
    starts : int
        Normal around the start of the equation, with standard deviation ``spread``
        in units of ``1 + |start|``.
    rank : int, optional
        Rank of A, where the singular values leave it open.
    """
    name, centre = "root invariance", np.asarray(equation.start)  # type: ignore[attr-defined]
    pairs: list[tuple[float, float]] = []
    for _ in range(starts):
        start = centre + spread * (1 + np.abs(centre)) * rng.standard_normal(
            len(centre)
        )
        try:
            fit = estimable(equation, h, start=start, rank=rank)
        except IdentificationError as error:
            advice = "Report a functional that is constant along that direction."
            return Finding(name, "fail", np.inf, 1e-5, str(error), advice)
        except EestimError:
            continue
        pairs.append((float(fit.theta[0]), float(fit.se.iloc[0])))
    if len(pairs) < 3:
        return not_applicable(
            name, f"{len(pairs)} of {starts} starts led to a root; three are needed."
        )
    values, errors = np.array(pairs).T
    verdict = root_invariance(values, errors, rtol=1e-5)
    found = max(verdict.value_spread, verdict.se_spread)
    is_same = verdict.status == "invariant"
    return Finding(
        name,
        "pass" if is_same else "fail",
        found,
        1e-5,
        f"Over {len(pairs)} roots: {verdict.status}; h lies between {values.min():.4g} "
        f"and {values.max():.4g}, its standard error between {errors.min():.4g} and "
        f"{errors.max():.4g}.",
        "" if is_same else "Fix the free parameters, or report another functional.",
        "A has the same rank near every root; roots that no start reaches are not "
        "seen.",
    )
