"""Roots solved for, or found elsewhere."""

from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector, as_start
from eestim.equations import EstimatingEquation, moments_at
from eestim.errors import CapabilityError, DataError
from eestim.roots._search import ILL_CONDITIONED, search
from eestim.roots.root import Root, Status, noise_residual

__all__ = ["root_at", "solve"]

_MAX_STEPS = 100
_UNSOLVED = 1e-3  # residual in units of noise at which nothing has converged


def solve(
    equation: EstimatingEquation, start: Any = None, *, max_steps: int = _MAX_STEPS
) -> Root:
    """Return a root of the mean of psi.

    Parameters
    ----------
    equation : EstimatingEquation
        With as many equations as parameters.
    start : (p,) array-like, optional
        Integers, floats, lists and arrays give identical results. Without it the
        equation's own start is used.
    max_steps : int
        Newton steps before giving up.

    Returns
    -------
    Root
        Its status tells whether the search converged; nothing is raised for one
        that did not (`Root.require_converged` does).

    Raises
    ------
    DataError
        If the start cannot be used.
    CapabilityError
        If the equation is over-identified, or has no start of its own.

    References
    ----------
    Deuflhard (2011), Newton Methods for Nonlinear Problems, section 2.1;
    Broyden (1965), Math. Comp. 19, 577-593, for the secant updates.
    """
    if start is None:
        start = getattr(equation, "start", None)
        if start is None:
            raise CapabilityError(
                f"{type(equation).__name__} has no start of its own; pass `start`."
            )
    theta = _checked_start(equation, start)
    working = _better_conditioned(equation)
    # Overflow at a trial point is a rejected step, not news for the user.
    with np.errstate(all="ignore"):
        if working is None:
            return Root(*_searched(equation, theta, max_steps))
        inner, transform = working
        eta: Vector = np.asarray(np.linalg.solve(transform, theta), dtype=np.float64)
        eta, status, residual, steps = _searched(inner, eta, max_steps)
    return Root(transform @ eta, status, residual, steps, (inner, eta, transform))


def root_at(equation: EstimatingEquation, theta: Any) -> Root:
    """Return a root found elsewhere, with its residual in units of noise.

    Raises
    ------
    DataError
        If it has the wrong length or psi is not finite there.
    """
    vector = _checked_start(equation, theta, "root")
    residual = noise_residual(moments_at(equation, vector), vector)
    offered = _better_conditioned(equation)
    if offered is None:
        return Root(vector, Status.GIVEN, residual, 0)
    inner, transform = offered
    eta: Vector = np.asarray(np.linalg.solve(transform, vector), dtype=np.float64)
    return Root(vector, Status.GIVEN, residual, 0, (inner, eta, transform))


def _checked_start(
    equation: EstimatingEquation, start: Any, argument: str = "start"
) -> Vector:
    if isinstance(start, dict):
        start = np.concatenate([np.ravel(value) for value in start.values()])
    vector = as_start(start, argument)
    if len(vector) != len(equation.names):
        raise DataError(
            f"`{argument}` has {len(vector)} entries for {len(equation.names)} "
            f"parameters ({', '.join(equation.names[:6])}"
            f"{', ...' if len(equation.names) > 6 else ''})."
        )
    return vector


def _searched(
    equation: EstimatingEquation, theta: Vector, max_steps: int
) -> tuple[Vector, Status, float, int]:
    """Return theta, status, residual and steps; go on where the residual is large."""
    steps, residual, status = 0, np.inf, Status.TOO_MANY_STEPS
    for _ in range(3):
        theta, status, more = search(equation, theta, max_steps - steps)
        steps += more
        residual = _residual_at(equation, theta)
        if status is not Status.CONVERGED or residual < 1e-7 or steps >= max_steps:
            break
    if status is Status.CONVERGED and not residual < _UNSOLVED:
        status = Status.STALLED
    return theta, status, residual, steps


def _residual_at(equation: EstimatingEquation, theta: Vector) -> float:
    try:
        return noise_residual(moments_at(equation, theta), theta)
    except (DataError, np.linalg.LinAlgError):
        return float("nan")


def _better_conditioned(equation: EstimatingEquation) -> tuple[Any, Matrix] | None:
    offered = getattr(equation, "reparameterised", None)
    if offered is None:
        return None
    result: tuple[Any, Matrix] | None = offered(ILL_CONDITIONED)
    return result
