"""Where a statistic that grows away from the estimate passes its critical value."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy import optimize

from eestim._arrays import Vector
from eestim.errors import DataError, InferenceError

__all__ = ["checked_level", "crossing", "interval_frame", "wanted_places"]

_GROWTH = 1.5
_FARTHEST = 1e4  # standard errors; beyond, the set counts as unbounded
_PRECISION = 1e-9  # standard errors
_GOLDEN = 0.381966011250105
_SETTLED = 1e-6  # change over the last values, of the critical one
_EDGE = 20  # halvings of the way to where a statistic cannot be evaluated


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
        Of the value tested; below ``critical`` at the estimate. NaN where it cannot be
        evaluated, which ends the search: the bound is then looked for up to there.
    estimate : float
    step : float
        Where to look first, signed: a Wald half width to one side.
    critical : float
    farthest : float
        In units of the step.

    Returns
    -------
    float
        Infinite (with the sign of the step) where the statistic stays below, or has
        settled below before numbers overflow. One that rises and falls again is
        searched for its highest value.

    Raises
    ------
    InferenceError
        If the statistic passes the critical value but is NaN on the way there, or
        cannot be evaluated further out although it has not settled.

    Examples
    --------
    >>> crossing(lambda value: value**2, 0.0, 1.0, 4.0)
    2.0
    >>> crossing(lambda value: min(value, 3 / value), 0.0, 1.0, 2.0)
    inf
    """

    def excess(value: float) -> float:
        return min(statistic(value), 1e6 * critical) - critical

    def known(value: float) -> float:
        found = excess(value)
        if np.isnan(found):
            raise InferenceError(
                f"the statistic cannot be evaluated at {value:.6g}, on the way to the "
                "bound. Use a Wald or a bootstrap interval, or another link."
            )
        return found

    def between(inside: float, outside: float) -> float:
        return float(
            optimize.brentq(
                known,
                inside,
                outside,
                xtol=max(_PRECISION * abs(step), 1e-300),
                rtol=4.0 * np.finfo(np.float64).eps,
            )
        )

    trail = [(estimate, -critical)]
    length = 0.5
    while length <= farthest:
        value = estimate + length * step
        above = excess(value)
        if above > 0.0:
            return between(trail[-1][0], value)
        if not above <= 0.0:
            outside = _nearer(excess, trail, value)
            if outside is None:
                break
            return between(trail[-1][0], outside)
        trail.append((value, above))
        if len(trail) > 2 and trail[-3][1] <= trail[-2][1] > above:
            peak = _raised(excess, trail[-3:])
            if peak is not None:
                return between(trail[-3][0], peak)
        length *= _GROWTH
    return float(np.copysign(np.inf, step))


def _nearer(
    excess: Callable[[float], float], trail: list[tuple[float, float]], unknown: float
) -> float | None:
    """Return a critical value short of where nothing is known; None if it settled.

    `trail` gains the values on the way there.

    Raises
    ------
    InferenceError
        If the statistic was still moving where its last value is known.
    """
    edge = unknown
    for _ in range(_EDGE):
        value = (trail[-1][0] + edge) / 2.0
        above = excess(value)
        if above > 0.0:
            return value
        if above <= 0.0:
            trail.append((value, above))
        else:
            edge = value
    critical = -trail[0][1]
    far = [
        above
        for value, above in trail
        if 2 * abs(value - trail[0][0]) >= abs(trail[-1][0] - trail[0][0])
    ]  # the outer half of the way
    if len(far) > 1 and max(far) - min(far) <= _SETTLED * critical:
        return None
    raise InferenceError(
        f"the statistic is {trail[-1][1] + critical:.4g} at {trail[-1][0]:.6g}, below "
        f"its critical value {critical:.4g}, and cannot be evaluated further out "
        "(numbers overflow, or psi is undefined there): whether this side of the "
        "interval is open is not known. Use a Wald or a bootstrap interval, rescale "
        "the covariates, or use another link."
    )


def _raised(
    excess: Callable[[float], float], around: list[tuple[float, float]]
) -> float | None:
    """Return a value near a maximum where the excess is positive, or None.

    Parameters
    ----------
    excess : callable
    around : list of three (value, excess)
        The middle one highest: its neighbourhood is searched by golden sections.
    """
    (left, _), (best, highest), (right, _) = around
    span = abs(right - left)
    while abs(right - left) > 0.01 * span:  # the height is then known to 1e-4
        is_right = abs(right - best) > abs(best - left)
        tried = best + _GOLDEN * ((right if is_right else left) - best)
        value = excess(tried)
        if value > 0.0:
            return tried
        if value > highest:
            left, right = (best, right) if is_right else (left, best)
            best, highest = tried, value
        elif is_right:
            right = tried
        else:
            left = tried
    return None


def wanted_places(
    wanted: Sequence[str] | None, names: tuple[str, ...], method: str
) -> list[int]:
    """Return the places of the parameters whose intervals are wanted, all by default.

    Raises
    ------
    DataError
        If a name is not that of a parameter.

    Examples
    --------
    >>> wanted_places(("b",), ("a", "b"), "Profile()")
    [1]
    """
    if wanted is None:
        return list(range(len(names)))
    unknown = [name for name in wanted if name not in names]
    if isinstance(wanted, str) or unknown or not len(wanted):
        raise DataError(
            f"`names` of {method} is {wanted!r}; give a sequence of parameters among "
            f"{list(names)}."
        )
    return [names.index(name) for name in wanted]


def interval_frame(
    names: tuple[str, ...], estimates: Vector, bounds: list[tuple[float, float]]
) -> pd.DataFrame:
    """Return the columns estimate, lower and upper, one row a parameter."""
    lower, upper = np.array(bounds, dtype=np.float64).reshape(-1, 2).T
    return pd.DataFrame(
        {"estimate": estimates, "lower": lower, "upper": upper}, index=list(names)
    )
