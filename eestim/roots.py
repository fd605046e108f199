"""Roots of estimating equations, found in units of noise rather than of measurement.

Newton steps solve ``A delta = mean psi`` after equilibration; a step is accepted when
the next Newton correction, measured in the same equilibrated units, is shorter
(Deuflhard's natural monotonicity). Neither the path nor the stopping rule changes
when a covariate, a parameter or an equation is measured in other units.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from scipy import optimize

from eestim._arrays import Matrix, Vector, as_start
from eestim._differentiate import jumping_columns
from eestim._linalg import Factor, equilibrated_factor, symmetric_power
from eestim.equations import EstimatingEquation, moments_at
from eestim.errors import CapabilityError, ConvergenceError, DataError
from eestim.moments import Moments

__all__ = ["DOUBTFUL", "Root", "Status", "noise_residual", "root_at", "solve"]

_MAX_STEPS = 100
_TINY_STEP = 1e-9  # standard errors; what is left after a last exact Newton step
_SMALL_STEP = 1e-4  # standard errors; Newton squares it: the next is rounding
_STILL = 1e-8  # relative step of a parameter that has settled
_FADING = 25  # steps of a vanishing psi; from a start far off, fewer are needed
_VANISHING = 1e-5  # psi at an iterate relative to psi at the start
DOUBTFUL = 1e-2  # reciprocal condition below which a root is solved to rounding
_POLISHING = 5  # steps of it, at most
_ILL_CONDITIONED = 1e-8  # below, a better-conditioned parameterisation is asked for
_SMALLEST_DAMPING = 2.0**-40
_BLIND = 1e-6  # noise of psi that a step may leave at a singular A
_NUDGES = 3
_ROUNDING = 1e-11  # of the terms of an equation, generously
_UNSOLVED = 1e-3  # residual in units of noise at which nothing has converged


class Status(Enum):
    """How a search ended. The value is the advice that goes with it."""

    CONVERGED = ""
    GIVEN = "The root was supplied; read its residual in units of noise."
    STALLED = (
        "No step reduces the equations: psi may be discontinuous or have no root "
        "near this start. Try another `start`, or check the derivative."
    )
    CROSSED = (
        "Psi jumps across zero here (a quantile or a sign): its mean is within a few "
        "units' contributions of zero, which is as near as it comes."
    )
    DIVERGED = (
        "Psi vanishes while the parameters keep growing, so the root lies at "
        "infinity: look for complete separation or a redundant parameter."
    )
    TOO_MANY_STEPS = "Try a `start` nearer to the root, or rescale the equations."

    @property
    def advice(self) -> str:
        """What to do about it."""
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Root:
    r"""A root of the mean of psi, or the best point found with its status.

    Attributes
    ----------
    theta : (p,) array
    status : Status
    residual : float
        Root mean square of the mean of psi in units of its noise,
        :math:`\sqrt{n \bar\psi^\top M^+ \bar\psi / \mathrm{rank} M}`; below 0.01
        the numerical error is a hundredth of a standard error.
    steps : int
        Newton steps taken.
    working : tuple or None
        ``(equation, eta, L)`` with ``theta = L @ eta``, where the equation was
        solved in a better-conditioned parameterisation.
    """

    theta: Vector
    status: Status
    residual: float
    steps: int
    working: tuple[Any, Vector, Matrix] | None = None

    @property
    def is_converged(self) -> bool:
        """Whether theta can be used as a root."""
        return self.status in (Status.CONVERGED, Status.CROSSED, Status.GIVEN)

    def require_converged(self) -> "Root":
        """Return this root.

        Raises
        ------
        ConvergenceError
            If the search failed, with the advice of its status.
        """
        if not self.is_converged:
            raise ConvergenceError(
                f"no root found ({self.status.name.lower().replace('_', ' ')} after "
                f"{self.steps} steps, residual {self.residual:.2g} in units of noise "
                f"at theta = {np.array2string(self.theta, precision=4)}). "
                f"{self.status.advice}"
            )
        return self


def noise_residual(moments: Moments, theta: Vector | None = None) -> float:
    r"""Return :math:`\sqrt{n \bar\psi^\top M^+ \bar\psi / r}`, r the rank of M.

    Equations without noise (a function of theta alone, as in a stacked functional)
    are measured by the rounding of their terms, ``1e-11 |A| |theta|``.

    Examples
    --------
    >>> noise_residual(Moments(100, np.array([0.1]), np.eye(1), np.eye(1)))
    1.0
    """
    scale = np.sqrt(np.diag(moments.meat))
    meat = moments.meat
    if theta is not None:
        floor = _ROUNDING * (np.abs(moments.sensitivity) @ np.abs(theta))
        silent = scale < floor
        scale = np.where(silent, floor, scale)
        meat = np.where(silent | silent[:, None], np.diag(scale**2), meat)
    safe = np.where(scale > 0, scale, 1.0)
    half, rank = symmetric_power(meat / np.outer(safe, safe), -0.5)
    standard = half @ (moments.mean / safe)
    return float(np.sqrt(moments.n * (standard @ standard) / max(rank, 1)))


@dataclass(frozen=True, slots=True)
class _Point:
    """What one evaluation of the equation gives the solver."""

    theta: Vector
    mean: Vector
    size: Vector  # root mean square of each column of psi
    sensitivity: Matrix | None


def _evaluate(equation: EstimatingEquation, theta: Vector) -> _Point | None:
    """Return the point, or None where psi is not finite."""
    with np.errstate(all="ignore"):
        terms = getattr(equation, "newton_terms", None)
        if terms is not None:
            mean, square, sensitivity = terms(theta)
            point = _Point(theta, mean, np.sqrt(square), sensitivity)
        else:
            try:
                psi = equation.psi(theta)
            except DataError:
                return None
            point = _Point(
                theta, psi.mean(axis=0), np.sqrt(np.mean(psi**2, axis=0)), None
            )
    finite = np.isfinite(point.mean).all() and np.isfinite(point.size).all()
    return point if finite else None


@dataclass(slots=True)
class _Search:
    """The state of one search: the current point, its A, and how A is refreshed."""

    equation: EstimatingEquation
    point: _Point
    is_secant: bool
    sensitivity: Matrix
    is_fresh: bool = True

    @property
    def factor(self) -> Factor:
        error = float(getattr(self.equation, "derivative_error", 0.0))
        return equilibrated_factor(self.sensitivity, max(1e-13, 10.0 * error))

    def refresh(self) -> None:
        given = self.point.sensitivity
        with np.errstate(all="ignore"):
            self.sensitivity = (
                given
                if given is not None
                else self.equation.sensitivity(self.point.theta)
            )
        self.is_fresh = True

    def move(self, new: _Point, columns: Vector) -> None:
        step = new.theta - self.point.theta
        change = new.mean - self.point.mean
        self.point = new
        if not self.is_secant:
            self.refresh()
            return
        # Broyden's update in equilibrated units: A is minus the derivative.
        weighted = step / columns**2
        gap = -change - self.sensitivity @ step
        self.sensitivity = self.sensitivity + np.outer(gap, weighted) / (
            weighted @ step
        )
        self.is_fresh = False


def _newton_step(factor: Factor, mean: Vector) -> Vector:
    if factor.rank == len(mean):
        return factor.solve(mean)
    return _truncated_step(factor, mean, 1e-12)


def _truncated_step(factor: Factor, mean: Vector, cut: float) -> Vector:
    """Return the shortest least-squares step in equilibrated units."""
    solution = np.linalg.lstsq(factor.equilibrated, factor.rows * mean, rcond=cut)[0]
    step: Vector = factor.columns * solution
    return step


def _standard_errors(factor: Factor, size: Vector, n: float) -> Vector:
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


def _relative(step: Vector, errors: Vector, theta: Vector) -> float:
    """Return the largest step in standard errors, rounding of theta allowed for."""
    floor = 4.0 * np.finfo(np.float64).eps * np.abs(theta)
    excess = np.maximum(np.abs(step) - floor, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(excess > 0, excess / errors, 0.0)
    return float(np.max(ratio))


def _damped(
    search: _Search, factor: Factor, step: Vector
) -> tuple[_Point, float] | None:
    """Return the first acceptable point along the step, or None."""
    length = float(np.linalg.norm(step / factor.columns))
    damping = 1.0
    while damping >= _SMALLEST_DAMPING:
        trial = _evaluate(search.equation, search.point.theta + damping * step)
        if trial is not None:
            following = _newton_step(factor, trial.mean) / factor.columns
            if np.linalg.norm(following) <= (1.0 - damping / 2.0) * length:
                return trial, damping
        damping /= 2.0
    return None


def _least_squares(search: _Search) -> _Point | None:
    """Return a point of smaller equations by Levenberg-Marquardt steps (SciPy)."""
    equation, scale = (
        search.equation,
        np.where(search.point.size > 0, search.point.size, 1),
    )
    columns = search.factor.columns

    def residual(scaled: Vector) -> Vector:
        point = _evaluate(equation, scaled * columns)
        return np.full(len(scale), 1e10) if point is None else point.mean / scale

    def derivative(scaled: Vector) -> Matrix:
        return -equation.sensitivity(scaled * columns) * columns / scale[:, None]

    try:
        with np.errstate(all="ignore"):
            found = optimize.least_squares(
                residual, search.point.theta / columns, jac=derivative, method="trf"
            )
    except ValueError:  # the derivative is not finite somewhere on the way
        return None
    before = float(np.square(search.point.mean / scale).sum())
    if not 2.0 * found.cost < 0.99 * before:
        return None
    return _evaluate(equation, found.x * columns)


def _is_consistent(search: _Search, factor: Factor, step: Vector) -> bool:
    """Whether the step solves the linear system: not where A is singular and blind."""
    if factor.rank == len(step):
        return True
    gap = search.sensitivity @ step - search.point.mean
    size = np.where(search.point.size > 0, search.point.size, 1.0)
    noise = np.max(np.abs(gap) / size) * np.sqrt(search.equation.n_units)
    return bool(noise <= _BLIND)


def _nudged(search: _Search, number: int) -> _Point | None:
    """Return a point near by, off a set where A is singular (saddles, symmetries)."""
    theta = search.point.theta
    direction = np.random.default_rng(number).standard_normal(len(theta))
    return _evaluate(search.equation, theta + 0.1 * (1.0 + np.abs(theta)) * direction)


def _search(
    equation: EstimatingEquation, theta: Vector, max_steps: int
) -> tuple[Vector, Status, int]:
    point = _evaluate(equation, theta)
    if point is None:
        equation.psi(theta)  # raises, naming the first bad row
        raise DataError("`psi` is not finite at the start; pass another `start`.")
    if len(point.mean) != len(theta):
        raise CapabilityError(
            f"`psi` has {len(point.mean)} equations for {len(theta)} parameters; an "
            "over-identified system has no root. Combine the equations into one for "
            "each parameter, as GMM does."
        )
    secant = point.sensitivity is None and (
        float(getattr(equation, "derivative_error", 0.0)) > 0
    )
    search = _Search(equation, point, secant, np.empty((0, 0)))
    search.refresh()
    initial, last, nudges = float(np.linalg.norm(point.size)), np.inf, _NUDGES
    fading = 0
    for taken in range(max_steps):
        factor = search.factor
        step = _newton_step(factor, search.point.mean)
        errors = _standard_errors(factor, search.point.size, equation.n_units)
        relative = _relative(step, errors, search.point.theta)
        exact = not secant and getattr(equation, "is_newton_exact", True)
        is_solved = _is_consistent(search, factor, step)
        if is_solved and relative <= (
            _SMALL_STEP if exact and taken > 0 else _TINY_STEP
        ):
            root = search.point.theta + step
            if factor.rcond <= DOUBTFUL and exact:
                root = _polished(search, root)
            return root, Status.CONVERGED, taken + 1
        if relative > 0.3 * last and not search.is_fresh:
            search.refresh()
            last = np.inf
            continue
        vanishing = np.linalg.norm(search.point.size) < _VANISHING * initial
        fading = fading + 1 if vanishing and relative > 0.1 else 0
        if fading > _FADING or (vanishing and not np.any(search.point.size)):
            moving = np.abs(step) > _STILL * np.abs(search.point.theta)
            status = Status.DIVERGED if moving.any() else Status.CONVERGED
            return search.point.theta, status, taken
        moved = _damped(search, factor, step) if is_solved else None
        if moved is not None:
            last = relative
            search.move(moved[0], factor.columns)
        elif not search.is_fresh:
            search.refresh()
            last = np.inf
        else:
            better = _least_squares(search)
            if better is None and not is_solved and nudges:
                nudges, better = nudges - 1, _nudged(search, nudges)
            if better is None and getattr(equation, "blocks", None) is not None:
                return search.point.theta, Status.STALLED, taken
            if better is None:
                return *_at_a_jump(search), taken
            search.point, last = better, np.inf
            search.refresh()
    return search.point.theta, Status.TOO_MANY_STEPS, max_steps


def _polished(search: _Search, theta: Vector) -> Vector:
    """Return the root solved to rounding.

    What is left of it can hide a singular A, whose smallest singular value is then of
    the size of the residual; measured in standard errors, which A inflates, a step is
    small long before. Where A looks regular only through that residual, Newton's step
    goes far along what it does not see; the step without that direction is tried too.
    """
    best = _evaluate(search.equation, theta)
    for _ in range(_POLISHING):
        if best is None:
            break
        search.point = best
        search.refresh()
        new = _nearer_root(search, best)
        if new is None:
            break
        best = new
    return search.point.theta if best is None else best.theta


def _nearer_root(search: _Search, best: _Point) -> _Point | None:
    """Return a point whose psi is at most half, by a full or a truncated step."""
    factor = search.factor
    for step in (
        _newton_step(factor, best.mean),
        _truncated_step(factor, best.mean, _ILL_CONDITIONED),
    ):
        new = _evaluate(search.equation, best.theta + step)
        if new is not None and np.abs(new.mean).max() < 0.5 * np.abs(best.mean).max():
            return new
    return None


def _at_a_jump(search: _Search) -> tuple[Vector, Status]:
    """Return the nearest crossing of a psi that jumps, or where the search stalled."""
    equation, factor, nearest = search.equation, search.factor, search.point
    for _ in range(_MAX_STEPS):
        nearer = _crossing_along(equation, factor, nearest)
        if nearer is None:
            break
        nearest = nearer
    psi = equation.psi(nearest.theta)
    reach = (len(nearest.theta) + 1) * np.abs(psi).max(axis=0)
    crosses = bool((np.abs(psi.sum(axis=0)) <= reach).all())
    if crosses and jumping_columns(equation.psi, nearest.theta).any():
        return nearest.theta, Status.CROSSED
    return search.point.theta, Status.STALLED


def _crossing_along(
    equation: EstimatingEquation, factor: Factor, point: _Point
) -> _Point | None:
    """Return a point with a shorter correction along the Newton step, by bisection."""
    step = _newton_step(factor, point.mean)
    scaled = step / factor.columns

    def ahead(length: float) -> tuple[_Point | None, float, float]:
        trial = _evaluate(equation, point.theta + length * step)
        if trial is None:
            return None, -1.0, np.inf
        following = _newton_step(factor, trial.mean) / factor.columns
        return trial, float(following @ scaled), float(np.linalg.norm(following))

    low, high = 0.0, 1.0
    while high < 64.0 and ahead(high)[1] > 0:
        low, high = high, 2.0 * high
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if ahead(middle)[1] > 0 else (low, middle)
    best, _, length = min((ahead(low), ahead(high)), key=lambda found: found[2])
    return best if length < float(np.linalg.norm(scaled)) else None


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


def _searched(
    equation: EstimatingEquation, theta: Vector, max_steps: int
) -> tuple[Vector, Status, float, int]:
    """Return theta, status, residual and steps; go on where the residual is large."""
    steps, residual, status = 0, np.inf, Status.TOO_MANY_STEPS
    for _ in range(3):
        theta, status, more = _search(equation, theta, max_steps - steps)
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
    result: tuple[Any, Matrix] | None = offered(_ILL_CONDITIONED)
    return result
