"""Is the root a root: residual, derivative, multiplicity, rank."""

from typing import Any

import numpy as np

from eestim._arrays import Vector
from eestim._differentiate import directional_difference, response_steps
from eestim._linalg import equilibrating_scales, numerical_tolerance
from eestim.equations import moments_at
from eestim.errors import EestimError
from eestim.findings import Finding
from eestim.roots import noise_residual, solve

__all__ = ["derivative_check", "rank_check", "root_multiplicity", "root_residual"]

_RESIDUAL = (0.01, 0.1)
_DIRECTIONS = 8
_AGREES = 1e-5  # differences carry about 1e-9; psi in single precision 1e-6
_SAME_ROOT = 1e-3  # standard errors
_WEAK = 1e-10  # smallest singular value kept without a warning


def root_residual(estimate: Any) -> Finding:
    r"""Check the mean of psi against its noise, :math:`\sqrt{n\bar\psi'M^+\bar\psi/r}`.

    Free of scale: below 0.01 the numerical error is a hundredth of a standard error.
    """
    value = noise_residual(
        moments_at(estimate.equation, estimate.theta), estimate.theta
    )
    passed, warned = _RESIDUAL
    status = "pass" if value < passed else "warn" if value < warned else "fail"
    return Finding(
        "root residual",
        status,  # type: ignore[arg-type]
        value,
        passed,
        f"The mean of psi is {value:.1e} times its noise at the root.",
        ""
        if status == "pass"
        else "Polish the root: ee.estimate(eq, start=fit.theta).",
    )


def derivative_check(estimate: Any, rng: np.random.Generator) -> Finding:
    """Compare A with central differences of psi along random directions."""
    equation, theta = estimate.equation, estimate.theta
    slope = equation.sensitivity(theta)
    try:
        steps = response_steps(equation.psi, theta)
    except EestimError as error:
        return _not_applicable("derivative", str(error))
    worst = 0.0
    for _ in range(_DIRECTIONS):
        direction = 0.1 * steps * rng.choice([-1.0, 1.0], len(theta))
        seen = -directional_difference(
            lambda t: equation.psi(t).mean(axis=0), theta, direction
        )
        told = slope @ direction
        scale = np.abs(slope) @ np.abs(direction)
        noise = 1e-12 * np.abs(equation.psi(theta)).mean(axis=0)
        worst = max(
            worst, float(np.max(np.abs(told - seen) / (scale + noise + 1e-300)))
        )
    failed = worst > _AGREES
    return Finding(
        "derivative",
        "fail" if failed else "pass",
        worst,
        _AGREES,
        f"A differs from differences of psi by {worst:.1e} (relative).",
        "Check the sign and the scale (a mean over units) of the derivative; psi must "
        "not draw random numbers at each call."
        if failed
        else "",
    )


def root_multiplicity(
    estimate: Any, rng: np.random.Generator, starts: int = 10, spread: float = 3.0
) -> Finding:
    """Solve again from dispersed starts and count distinct roots.

    Starts are normal around the root with ``spread`` times ten standard errors.
    """
    errors = estimate.se.to_numpy()
    other: list[Vector] = []
    failures = 0
    for _ in range(starts):
        start = estimate.theta + 10 * spread * errors * rng.standard_normal(len(errors))
        try:
            root = solve(estimate.equation, start)
        except EestimError:
            failures += 1
            continue
        if not root.is_converged:
            failures += 1
            continue
        known = [estimate.theta, *other]
        if all(np.max(np.abs(root.theta - k) / errors) > _SAME_ROOT for k in known):
            other.append(root.theta)
    count = 1 + len(other)
    meaning = f"{starts - failures} of {starts} starts converged, to {count} root(s)."
    if failures == starts:
        return Finding(
            "root multiplicity", "warn", 1.0, 1.0, meaning, "Try nearer starts."
        )
    return Finding(
        "root multiplicity",
        "pass" if count == 1 else "warn",
        float(count),
        1.0,
        meaning,
        ""
        if count == 1
        else "Report a function of theta that all roots share, or justify the choice.",
    )


def rank_check(estimate: Any) -> Finding:
    """Check the smallest singular value of the equilibrated A."""
    slope = estimate.equation.sensitivity(estimate.theta)
    rows, columns = equilibrating_scales(slope)
    singular = np.linalg.svd(slope * rows[:, None] * columns, compute_uv=False)
    value = float(singular[-1] / singular[0])
    failed = value < numerical_tolerance(slope.shape)
    warned = value < _WEAK
    return Finding(
        "rank",
        "fail" if failed else "warn" if warned else "pass",
        value,
        _WEAK,
        f"The smallest singular value of the scaled A is {value:.1e} of the largest.",
        "Look at ee.asymptotics.rank_report for the weak direction."
        if failed or warned
        else "",
    )


def _not_applicable(name: str, why: str) -> Finding:
    return Finding(name, "not applicable", np.nan, np.nan, why)
