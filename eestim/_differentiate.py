"""Central differences with steps chosen from the response, not from theta alone."""

from collections.abc import Callable

import numpy as np

from eestim._arrays import Matrix, Vector

__all__ = ["directional_difference", "jacobian", "response_steps"]

_TARGET = 1e-3  # relative change of the response that one step should cause
_BAND = 10.0  # accepted between target / band and target * band
_TRIALS = 30


def response_steps(function: Callable[[Vector], Matrix], theta: Vector) -> Vector:
    """Return a step for each parameter that moves the response by about 1e-3.

    A step relative to ``theta`` alone fails when theta is 0 or when a covariate is
    measured in unusual units. Here each step is scaled until the root mean square
    change of ``function`` is about 1e-3 of its own size, which makes the derivative
    independent of the units of measurement.

    Parameters
    ----------
    function : callable
        From (p,) to an array of any shape; its size sets the scale.
    theta : (p,) array
    """
    base = function(theta)
    size = _rms(base) or 1.0
    return np.array([_step(function, theta, j, base, size) for j in range(len(theta))])


def _rms(values: Matrix) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _step(
    function: Callable[[Vector], Matrix],
    theta: Vector,
    j: int,
    base: Matrix,
    size: float,
) -> float:
    step = 1e-3 * (abs(theta[j]) or 1.0)
    fallback = step
    for _ in range(_TRIALS):
        moved = theta.copy()
        moved[j] += step
        with np.errstate(all="ignore"):
            change = _rms(function(moved) - base) / size
        if not np.isfinite(change):
            step /= 100.0
        elif change > _BAND * _TARGET:
            step *= max(_TARGET / change, 1e-4)
        elif change < _TARGET / _BAND:
            step *= min(_TARGET / change if change > 0 else 100.0, 100.0)
            if step > 1e12 * (abs(theta[j]) or 1.0):
                return fallback
        else:
            break
    # A representable step: theta + h - theta is exactly h.
    return float((theta[j] + step) - theta[j]) or step


def jacobian(
    function: Callable[[Vector], Matrix], theta: Vector, steps: Vector
) -> Matrix:
    r"""Return the derivative of a vector function by extrapolated differences.

    .. math:: D = \{4 D(h/2) - D(h)\} / 3, \quad
              D(h) = \{f(\theta + h) - f(\theta - h)\} / 2h,

    whose truncation error is :math:`O(h^4)` (Richardson).

    Parameters
    ----------
    function : callable
        From (p,) to (q,).
    theta : (p,) array
    steps : (p,) array
        From `response_steps`.

    Returns
    -------
    (q, p) array

    Examples
    --------
    >>> f = lambda t: np.array([t[0] ** 2, np.exp(t[1])])
    >>> np.round(jacobian(f, np.array([3.0, 0.0]), np.array([1e-3, 1e-3])), 9)
    array([[6., 0.], [0., 1.]])
    """
    columns = []
    for j, step in enumerate(steps):
        direction = np.zeros(len(theta))
        direction[j] = step
        coarse = function(theta + direction) - function(theta - direction)
        fine = function(theta + direction / 2) - function(theta - direction / 2)
        columns.append((8.0 * fine - coarse) / (6.0 * step))
    return np.stack(columns, axis=1)


def directional_difference(
    function: Callable[[Vector], Matrix], theta: Vector, direction: Vector
) -> Matrix:
    """Return the central difference of ``function`` along ``direction``."""
    return (function(theta + direction) - function(theta - direction)) / 2.0
