"""One step of a search: the equation at a point, Newton's step, its length."""

from dataclasses import dataclass

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim._linalg import Factor
from eestim.equations import EstimatingEquation
from eestim.errors import DataError

__all__ = [
    "Point",
    "evaluate",
    "newton_step",
    "relative_length",
    "standard_errors",
    "truncated_step",
]


@dataclass(frozen=True, slots=True)
class Point:
    """What one evaluation of the equation gives the solver."""

    theta: Vector
    mean: Vector
    size: Vector  # root mean square of each column of psi
    sensitivity: Matrix | None


def evaluate(equation: EstimatingEquation, theta: Vector) -> Point | None:
    """Return the equation at theta, or None where psi is not finite."""
    with np.errstate(all="ignore"):
        terms = getattr(equation, "newton_terms", None)
        if terms is not None:
            mean, square, sensitivity = terms(theta)
            point = Point(theta, mean, np.sqrt(square), sensitivity)
        else:
            try:
                psi = equation.psi(theta)
            except DataError:
                return None
            point = Point(
                theta, psi.mean(axis=0), np.sqrt(np.mean(psi**2, axis=0)), None
            )
    finite = np.isfinite(point.mean).all() and np.isfinite(point.size).all()
    return point if finite else None


def newton_step(factor: Factor, mean: Vector) -> Vector:
    """Return ``A^-1 mean``, or the shortest least-squares step where A is singular."""
    if factor.rank == len(mean):
        return factor.solve(mean)
    return truncated_step(factor, mean, 1e-12)


def truncated_step(factor: Factor, mean: Vector, cut: float) -> Vector:
    """Return the shortest least-squares step in equilibrated units."""
    solution = np.linalg.lstsq(factor.equilibrated, factor.rows * mean, rcond=cut)[0]
    step: Vector = factor.columns * solution
    return step


def standard_errors(factor: Factor, size: Vector, n: float) -> Vector:
    """Return rough standard errors, ignoring correlation between equations."""
    spread = np.diag(size)
    if factor.rank == len(size):
        inverse = factor.solve(spread)
    else:
        inverse = factor.columns[:, None] * (
            np.linalg.pinv(factor.equilibrated, rcond=1e-12)
            @ (factor.rows[:, None] * spread)
        )
    errors: Vector = np.sqrt(np.square(inverse).sum(axis=1) / n)
    return errors


def relative_length(step: Vector, errors: Vector, theta: Vector) -> float:
    """Return the largest step in standard errors, rounding of theta allowed for."""
    floor = 4.0 * np.finfo(np.float64).eps * np.abs(theta)
    excess = np.maximum(np.abs(step) - floor, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(excess > 0, excess / errors, 0.0)
    return float(np.max(ratio))
