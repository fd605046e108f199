"""Where psi jumps across zero there is no root; the nearest crossing stands for it."""

import numpy as np

from eestim._arrays import Vector
from eestim._differentiate import jumping_columns
from eestim._linalg import Factor
from eestim.equations import EstimatingEquation
from eestim.roots._steps import Point, evaluate, newton_step

__all__ = ["nearest_crossing"]

_MOST_BISECTIONS = 100  # each along the Newton step of the last point


def nearest_crossing(
    equation: EstimatingEquation, factor: Factor, point: Point
) -> Vector | None:
    """Return the nearest point at which psi jumps across zero, or None."""
    nearest = point
    for _ in range(_MOST_BISECTIONS):
        nearer = _crossing_along(equation, factor, nearest)
        if nearer is None:
            break
        nearest = nearer
    psi = equation.psi(nearest.theta)
    reach = (len(nearest.theta) + 1) * np.abs(psi).max(axis=0)
    crosses = bool((np.abs(psi.sum(axis=0)) <= reach).all())
    if crosses and jumping_columns(equation.psi, nearest.theta).any():
        return nearest.theta
    return None


def _crossing_along(
    equation: EstimatingEquation, factor: Factor, point: Point
) -> Point | None:
    """Return a point with a shorter correction along the Newton step, by bisection."""
    step = newton_step(factor, point.mean)
    scaled = step / factor.columns

    def ahead(length: float) -> tuple[Point | None, float, float]:
        trial = evaluate(equation, point.theta + length * step)
        if trial is None:
            return None, -1.0, np.inf
        following = newton_step(factor, trial.mean) / factor.columns
        return trial, float(following @ scaled), float(np.linalg.norm(following))

    low, high = 0.0, 1.0
    while high < 64.0 and ahead(high)[1] > 0:
        low, high = high, 2.0 * high
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if ahead(middle)[1] > 0 else (low, middle)
    best, _, length = min((ahead(low), ahead(high)), key=lambda found: found[2])
    return best if length < float(np.linalg.norm(scaled)) else None
