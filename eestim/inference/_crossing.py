"""Where a statistic that grows away from the estimate passes its critical value."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import optimize

from eestim._arrays import Vector

__all__ = ["checked_level", "crossing", "interval_frame"]

_GROWTH = 1.5
_FARTHEST = 1e4  # standard errors; beyond, the set counts as unbounded
_PRECISION = 1e-9  # standard errors


def checked_level(level: float) -> float:
    """Return a confidence level.

    Raises
    ------
    ValueError
        If it does not lie between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
    return float(level)


def crossing(
    statistic: Callable[[float], float],
    estimate: float,
    step: float,
    critical: float,
    *,
    farthest: float = _FARTHEST,
) -> float:
    """Return the nearest value on one side at which the statistic is critical.

    Parameters
    ----------
    statistic : callable
        Of the value tested; below ``critical`` at the estimate.
    estimate : float
    step : float
        Where to look first, signed: a Wald half width to one side.
    critical : float
    farthest : float
        In units of the step.

    Returns
    -------
    float
        Infinite (with the sign of the step) where the statistic stays below.

    Examples
    --------
    >>> crossing(lambda value: value**2, 0.0, 1.0, 4.0)
    2.0
    """

    def excess(value: float) -> float:
        return min(statistic(value), 1e6 * critical) - critical

    inner, length = estimate, 0.5
    while length <= farthest:
        outer = estimate + length * step
        if excess(outer) > 0.0:
            return float(
                optimize.brentq(
                    excess,
                    inner,
                    outer,
                    xtol=max(_PRECISION * abs(step), 1e-300),
                    rtol=4.0 * np.finfo(np.float64).eps,
                )
            )
        inner = outer
        length *= _GROWTH
    return float(np.copysign(np.inf, step))


def interval_frame(
    names: tuple[str, ...], estimates: Vector, bounds: list[tuple[float, float]]
) -> pd.DataFrame:
    """Return the columns estimate, lower and upper, one row a parameter."""
    lower, upper = np.array(bounds, dtype=np.float64).reshape(-1, 2).T
    return pd.DataFrame(
        {"estimate": estimates, "lower": lower, "upper": upper}, index=list(names)
    )
