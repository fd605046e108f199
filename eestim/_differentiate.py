"""Differences of psi: steps chosen from its response, and care at kinks and jumps.

A step relative to theta alone fails at zero and in unusual units of measure, so steps
are chosen by how much the response moves. Where psi has kinks (Huber), steps shrink
until no unit lies on one. Where psi jumps (quantiles, signs), the derivative of its
mean is a density: small steps would give zero or infinity, and differences are taken
over a window that holds enough units.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import special

from eestim._arrays import Matrix, Vector
from eestim.errors import DataError

__all__ = [
    "DIFFERENCE_ERROR",
    "directional_difference",
    "hall_sheather",
    "jacobian",
    "jump_step",
    "jumping_columns",
    "response_steps",
    "vanishes",
]

DIFFERENCE_ERROR = 1e-10  # relative error of extrapolated central differences
_TARGET = 1e-3  # relative change of the response that one step should cause
_BAND = 10.0  # accepted between target / band and target * band
_TRIALS = 30
_CONSISTENT = 1e-6  # of the response: what halving a good step may change
_SHRINK = 8.0
_SHRINKINGS = 5
_ROUNDED = 1e-10  # of the terms of a column: below, its values are rounding
_FAR = 0.1, 1.0  # relative response to the probe for jumps
_BEND = 0.02  # change of slope over the probe, of a column's size, worth a closer look
_HALVINGS = 20  # a Lipschitz function then changes by a millionth
_FEWEST = 5.0  # units in a window, at least

_Rows: TypeAlias = Callable[[Vector], Matrix]
_Flags: TypeAlias = npt.NDArray[np.bool_]


def response_steps(function: _Rows, theta: Vector) -> Vector:
    """Return a step for each parameter that moves the response by about 1e-3.

    Each step is scaled until the root mean square change of ``function`` is about
    1e-3 of its own size, which makes the derivative independent of the units of
    measurement.

    Parameters
    ----------
    function : callable
        From (p,) to an array of any shape; its size sets the scale. An (n, q) array
        is read as contributions of n units, which may jump.
    theta : (p,) array

    Returns
    -------
    (p,) array
        Negative for a parameter in which the contributions jump: minus the half
        width of the window over which to difference them (`jump_step`).
    """
    base = function(theta)
    size, steps = _sized_steps(function, theta, base)
    if np.ndim(base) != 2 or not len(theta):
        return steps
    columns, reach = _jumping(function, theta, base, size, steps)
    if not columns.any():
        return steps
    target = _window_count(base[:, columns])
    for j in range(len(theta)):
        width = jump_step(function, theta, j, columns, reach * steps[j], target)
        steps[j] = steps[j] if width is None else -width
    return steps


def _sized_steps(function: _Rows, theta: Vector, base: Matrix) -> tuple[Vector, Vector]:
    """Return what a change of the response is measured by, and the steps.

    Each column of an (n, q) table of contributions is measured by its variation among
    units. A column without any (a relation between parameters, which vanishes at the
    root) is measured by the size of its terms, and so is a vector that vanishes.
    """
    places = range(len(theta))
    initial = _first_steps(theta)
    moves = [_move(function, theta, j, float(initial[j]), base) for j in places]
    size = np.std(base, axis=0) if np.ndim(base) == 2 else np.array([_rms(base)])
    seen = np.array([np.zeros_like(size), *moves])
    terms = np.where(np.isfinite(seen), seen, 0.0).max(axis=0) / _TARGET
    measured = np.where(size > _ROUNDED * terms, size, terms)
    size = np.where(measured > 0, measured, 1.0)
    steps = [_step(function, theta, j, base, size, moves[j]) for j in places]
    return size, np.array(steps)


def _first_steps(theta: Vector) -> Vector:
    steps: Vector = _TARGET * np.where(theta != 0, np.abs(theta), 1.0)
    return steps


def _rms(values: Matrix) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _size_of(values: Matrix) -> Vector:
    """Return the root mean square of each column, or of a whole vector."""
    if np.ndim(values) == 2:
        size: Vector = np.sqrt(np.mean(np.square(values), axis=0))
        return size
    return np.array([_rms(values)])


def _move(function: _Rows, theta: Vector, j: int, step: float, base: Matrix) -> Vector:
    """Return how far each column moves, infinite where psi is not defined."""
    values = _values(function, _moved(theta, j, step))
    if values is None:
        return np.full(base.shape[1] if np.ndim(base) == 2 else 1, np.inf)
    return _size_of(values - base)


def _values(function: _Rows, theta: Vector) -> Matrix | None:
    """Return the response, or None where it is not defined."""
    with np.errstate(all="ignore"):
        try:
            values = function(theta)
        except DataError:
            return None
    return values if np.isfinite(values).all() else None


def _moved(theta: Vector, j: int, step: float) -> Vector:
    moved = theta.copy()
    moved[j] += step
    return moved


def _step(
    function: _Rows, theta: Vector, j: int, base: Matrix, size: Vector, move: Vector
) -> float:
    """Return a step that moves the response by about 1e-3, from the first one tried."""
    step = fallback = float(_first_steps(theta)[j])
    for trial in range(_TRIALS):
        if trial:
            move = _move(function, theta, j, step, base)
        change = float(np.max(move / size))
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


# -------------------------------------------------------------------- differences


def jacobian(function: _Rows, theta: Vector, steps: Matrix) -> Matrix:
    r"""Return the derivative of a vector function by extrapolated differences.

    .. math:: D = \{4 D(h/2) - D(h)\} / 3, \quad
              D(h) = \{f(\theta + h) - f(\theta - h)\} / 2h,

    whose truncation error is :math:`O(h^4)` (Richardson). Where halving a step
    changes D(h) by more than a millionth of the response, a kink lies within reach
    or the step is too long: it shrinks until that stops. Negative steps mark jumps:
    D(h) itself is returned, whose window must not shrink.

    Parameters
    ----------
    function : callable
        From (p,) to (q,).
    theta : (p,) array
    steps : (p,) array, or (p, p) array
        From `response_steps`; or independent directions, one a column, along which
        to difference where those along the axes are nearly dependent.

    Returns
    -------
    (q, p) array

    Examples
    --------
    >>> f = lambda t: np.array([t[0] ** 2, np.exp(t[1])])
    >>> np.round(jacobian(f, np.array([3.0, 0.0]), np.array([1e-3, 1e-3])), 9)
    array([[6., 0.], [0., 1.]])

    A kink at 2 within reach of the step:

    >>> f = lambda t: np.minimum(t, 2.0)
    >>> np.round(jacobian(f, np.array([1.9999]), np.array([1e-3])), 9)
    array([[1.]])
    """
    steps = np.asarray(steps, dtype=np.float64)
    if steps.ndim == 2:
        along = _changes(function, theta, steps, np.zeros(len(steps.T), dtype=bool))
        return np.asarray(np.linalg.solve(steps.T, along.T).T, dtype=np.float64)
    return _changes(function, theta, np.diag(np.abs(steps)), steps < 0) / np.abs(steps)


def _changes(
    function: _Rows, theta: Vector, directions: Matrix, windows: _Flags
) -> Matrix:
    """Return the derivative along each column of directions, (q, p)."""
    lengths = np.ones(len(windows))
    coarse = []
    for j, way in enumerate(directions.T):
        slope, lengths[j] = _central(function, theta, way, 1.0)
        coarse.append(slope)
    scale = np.max(
        [np.abs(d) * m for d, m in zip(coarse, lengths, strict=True)], axis=0
    )
    return np.stack(
        [
            d if jumps else _extrapolated(function, theta, way, length, d, scale)
            for d, way, length, jumps in zip(
                coarse, directions.T, lengths, windows, strict=True
            )
        ],
        axis=1,
    )


def _central(
    function: _Rows, theta: Vector, way: Vector, length: float
) -> tuple[Vector, float]:
    """Return D(h) and the h used, which shrinks where f is not defined."""
    for _ in range(_TRIALS // 3):
        up = _values(function, theta + length * way)
        down = _values(function, theta - length * way)
        if up is not None and down is not None:
            return (up - down) / (2.0 * length), length
        length /= 10.0
    change = function(theta + length * way) - function(theta - length * way)
    return change / (2.0 * length), length  # whoever called sees what is not finite


def _extrapolated(
    function: _Rows,
    theta: Vector,
    way: Vector,
    length: float,
    coarse: Vector,
    scale: Vector,
) -> Vector:
    best, least = coarse, np.inf
    for _ in range(_SHRINKINGS):
        fine, _ = _central(function, theta, way, length / 2.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.abs(fine - coarse) * length / scale
        inconsistent = float(np.max(left, where=scale > 0, initial=0.0))
        if inconsistent < least:
            best, least = (4.0 * fine - coarse) / 3.0, inconsistent
        if least <= _CONSISTENT:
            break
        coarse, length = _central(function, theta, way, length / _SHRINK)
        scale = scale / _SHRINK
    return best


def directional_difference(function: _Rows, theta: Vector, direction: Vector) -> Matrix:
    """Return the central difference of ``function`` along ``direction``."""
    return (function(theta + direction) - function(theta - direction)) / 2.0


# --------------------------------------------------------------------------- jumps


def hall_sheather(n: float, tau: float, level: float = 0.95) -> float:
    r"""Return the Hall-Sheather half width of a window of probability.

    .. math:: h = n^{-1/3} z_{(1 + level)/2}^{2/3}
              \left\{ \frac{1.5 \phi^2(z_\tau)}{2 z_\tau^2 + 1} \right\}^{1/3}

    References
    ----------
    Hall and Sheather (1988), J. R. Stat. Soc. B 50, 381-391; Koenker (2005),
    Quantile Regression, section 3.4.2.

    Examples
    --------
    >>> round(hall_sheather(1000, 0.5), 6)
    0.097156
    """
    z, density = special.ndtri(tau), np.exp(-(special.ndtri(tau) ** 2)) / (2 * np.pi)
    core = 1.5 * density / (2.0 * z**2 + 1.0)
    return float(
        n ** (-1 / 3) * special.ndtri(0.5 + level / 2) ** (2 / 3) * core ** (1 / 3)
    )


def jumping_columns(rows: _Rows, theta: Vector) -> _Flags:
    """Return which columns of psi jump near theta, (q,) booleans.

    Rows are followed along one direction that moves every parameter. A row that
    changes unevenly is bisected: a millionth of the way a continuous function has
    hardly moved, and a jump is still whole.

    Parameters
    ----------
    rows : callable
        From (p,) to (n, q).
    theta : (p,) array

    Examples
    --------
    >>> y = np.linspace(-1.0, 1.0, 201)
    >>> def both(t):
    ...     return np.column_stack([(y <= t[0]) - 0.5, np.clip(y - t[0], -0.3, 0.3)])
    >>> jumping_columns(both, np.array([0.2])).tolist()
    [True, False]
    """
    base = rows(theta)
    size, steps = _sized_steps(rows, theta, base)
    return _jumping(rows, theta, base, size, steps)[0]


def _jumping(
    rows: _Rows, theta: Vector, base: Matrix, size: Vector, steps: Vector
) -> tuple[_Flags, float]:
    """Return which columns jump, and how far in units of the steps one had to go."""
    found = np.zeros(base.shape[1], dtype=bool)
    way = steps * np.random.default_rng(0).choice([-1.0, 1.0], len(steps))
    reach = _probe_length(rows, theta, base, size, way)
    if reach is None:  # beyond the data on this side
        way = -way
        reach = _probe_length(rows, theta, base, size, way)
    if reach is None:
        return found, 0.0
    way = reach * way
    middle, far = _values(rows, theta + way / 2), _values(rows, theta + way)
    if middle is None or far is None:
        return found, 0.0
    bend = np.abs(far - 2.0 * middle + base)
    for k in np.flatnonzero(bend.max(axis=0) > _BEND * size):
        i = int(np.argmax(bend[:, k]))
        found[k] = _is_jump(rows, theta, theta + way, (i, int(k)))
    return found, reach


def _probe_length(
    rows: _Rows, theta: Vector, base: Matrix, size: Vector, direction: Vector
) -> float | None:
    """Return a multiple of the direction that moves psi by about half its size."""
    length = 0.3 / _TARGET
    for _ in range(20):
        values = _values(rows, theta + length * direction)
        moved = np.inf * size if values is None else _size_of(values - base)
        change = float(np.max(moved / size))
        if change < _FAR[0]:
            length *= 4.0
        elif change > _FAR[1]:
            length /= 3.0
        else:
            return length
    return None


def _is_jump(rows: _Rows, one: Vector, other: Vector, place: tuple[int, int]) -> bool:
    """Return whether one entry still changes at the end of a bisection."""
    left, right = one, other
    middle = (left + right) / 2.0
    ends = [_values(rows, point) for point in (left, middle, right)]
    if any(values is None for values in ends):
        return False
    low, mid, high = (float(np.asarray(values)[place]) for values in ends)
    initial = max(abs(mid - low), abs(high - mid))
    for _ in range(_HALVINGS):
        if abs(mid - low) >= abs(high - mid):
            right, high = middle, mid
        else:
            left, low = middle, mid
        middle = (left + right) / 2.0
        values = _values(rows, middle)
        if values is None:
            return False
        mid = float(values[place])
    return initial > 0 and abs(high - low) > 0.5 * initial


def _window_count(base: Matrix) -> float:
    """Return how many units a window should hold, Hall and Sheather's choice.

    The level of a quantile shows in the share of contributions of either sign.
    """
    n = len(base)
    share = np.mean(base > 0, axis=0)
    tau = float(np.minimum(share, 1.0 - share).min())
    tau = min(max(tau, 1.0 / n), 0.5)
    return min(max(2.0 * n * hall_sheather(n, tau), _FEWEST), n / 2.0)


def jump_step(
    rows: _Rows, theta: Vector, j: int, columns: _Flags, start: float, target: float
) -> float | None:
    r"""Return the half width of the window in which enough units jump, or None.

    The difference quotient of the mean of psi over
    :math:`\theta_j \pm h` is then a window estimate of the density in its
    derivative, as in Siddiqui's and Powell's estimators, where h is the smallest
    half width with ``target`` units besides those tied at theta itself.

    Parameters
    ----------
    rows : callable
        From (p,) to (n, q).
    theta : (p,) array
    j : int
        Which parameter moves.
    columns : (q,) booleans
        Columns that jump.
    start : float
        A width of the right order.
    target : float

    Returns
    -------
    float or None
        None where psi does not jump in this parameter.

    References
    ----------
    Siddiqui (1960), J. Res. Natl. Bur. Stand. 64B, 145-150; Powell (1991), in
    Nonparametric and Semiparametric Methods, 357-384; Hong, Mahajan and Nekipelov
    (2015), J. Econom. 188, 250-263, for numerical derivatives of such psi.
    """
    high = abs(start)
    tied = _jumped_rows(rows, theta, j, columns, 1e-9 * high)
    wanted = target + (0.0 if tied is None else max(float(tied.sum()) - 1.0, 0.0))
    seen = _jumped_rows(rows, theta, j, columns, high)
    for _ in range(2 * _TRIALS):
        if seen is None or seen.sum() >= wanted:
            break
        high *= 2.0
        seen = _jumped_rows(rows, theta, j, columns, high)
    if seen is None or seen.sum() < wanted:
        return None
    if not _row_jumps(rows, theta, j, high, int(np.argmax(seen)), columns):
        return None  # it bends that far away, without jumping
    low = 0.0
    while high - low > 1e-6 * high:
        middle = (low + high) / 2.0
        seen = _jumped_rows(rows, theta, j, columns, middle)
        if seen is not None and seen.sum() >= wanted:
            high = middle
        else:
            low = middle
    return high


def _row_jumps(
    rows: _Rows, theta: Vector, j: int, width: float, row: int, columns: _Flags
) -> bool:
    """Return whether one row jumps, rather than bends, within the window."""
    up, down = _moved(theta, j, width), _moved(theta, j, -width)
    change = np.abs(rows(up)[row] - rows(down)[row]) * columns
    return _is_jump(rows, down, up, (row, int(np.argmax(change))))


def _jumped_rows(
    rows: _Rows, theta: Vector, j: int, columns: _Flags, width: float
) -> _Flags | None:
    """Return which units change in one half of the window and not in the other."""
    ends = [
        _values(rows, _moved(theta, j, share * width)) for share in (-1, -0.5, 0.5, 1)
    ]
    if any(values is None for values in ends):
        return None
    left, inner_left, inner_right, right = (np.asarray(v)[:, columns] for v in ends)
    outer, inner = right - left, inner_right - inner_left
    size = np.maximum(np.abs(outer), np.abs(inner))
    uneven = (np.abs(outer - 2.0 * inner) > 0.5 * size) & (size > 0)
    found: _Flags = uneven.any(axis=1)
    return found


def vanishes(psi: _Rows, theta: Vector) -> bool:
    """Whether psi is zero to rounding at more than half of the units it is not zero at.

    The rounding of a unit is how far psi moves when theta does by a few units in the
    last place. Units at a jump of psi move by all of it, but they are few.

    Examples
    --------
    >>> y = np.array([1.0, 2.0, 3.0])
    >>> vanishes(lambda t: (y - t * y)[:, None], np.ones(1))
    True
    >>> vanishes(lambda t: (y - t)[:, None], np.array([2.0]))
    False
    """
    rows = psi(theta)
    wobble = 8.0 * np.finfo(np.float64).eps * np.maximum(np.abs(theta), 1e-300)
    rounding = np.abs(psi(theta + wobble) - rows)
    used = rows != 0
    if not used.any():
        return True
    return bool(np.mean((np.abs(rows) <= 20.0 * rounding)[used]) > 0.5)
