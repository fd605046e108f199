"""Newton's search from a start, damped, with ways on where no step is shorter."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from eestim._arrays import Matrix, Vector
from eestim._linalg import Factor, equilibrated_factor
from eestim.equations import EstimatingEquation
from eestim.errors import CapabilityError, DataError
from eestim.roots._jumps import nearest_crossing
from eestim.roots._steps import (
    Point,
    evaluate,
    newton_step,
    relative_length,
    standard_errors,
    truncated_step,
)
from eestim.roots.root import Status

__all__ = ["DOUBTFUL", "ILL_CONDITIONED", "search"]

_TINY_STEP = 1e-9  # standard errors; what is left after a last exact Newton step
_SMALL_STEP = 1e-4  # standard errors; Newton squares it: the next is rounding
_STILL = 1e-8  # relative step of a parameter that has settled
_FADING = 25  # steps of a vanishing psi; from a start far off, fewer are needed
_VANISHING = 1e-5  # psi at an iterate relative to psi at the start
DOUBTFUL = 1e-2  # reciprocal condition below which a root is solved to rounding
_POLISHING = 5  # steps of it, at most
ILL_CONDITIONED = 1e-8  # below, a better-conditioned parameterisation is asked for
_SMALLEST_DAMPING = 2.0**-40
_BLIND = 1e-6  # noise of psi that a step may leave at a singular A
_NUDGES = 3


@dataclass(slots=True)
class _State:
    """The state of one search: the current point, its A, and how A is refreshed."""

    equation: EstimatingEquation
    point: Point
    is_secant: bool
    sensitivity: Matrix
    is_fresh: bool = True

    @property
    def factor(self) -> Factor:
        error = float(getattr(self.equation, "derivative_error", 0.0))
        return equilibrated_factor(self.sensitivity, max(1e-13, 10.0 * error))

    @property
    def is_exact(self) -> bool:
        """Whether a step is Newton's own, which converges quadratically."""
        return not self.is_secant and getattr(self.equation, "is_newton_exact", True)

    def refresh(self) -> None:
        given = self.point.sensitivity
        with np.errstate(all="ignore"):
            self.sensitivity = (
                given
                if given is not None
                else self.equation.sensitivity(self.point.theta)
            )
        self.is_fresh = True

    def move(self, new: Point, columns: Vector) -> None:
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


def search(
    equation: EstimatingEquation, theta: Vector, max_steps: int
) -> tuple[Vector, Status, int]:
    """Return where a search from theta ended, how, and after how many steps.

    Raises
    ------
    DataError
        If psi is not finite at the start.
    CapabilityError
        If there are not as many equations as parameters.
    """
    state = _started(equation, theta)
    fading = _Fading(float(np.linalg.norm(state.point.size)))
    last, nudges = np.inf, _NUDGES
    for taken in range(max_steps):
        newton = _newton(state)
        if _is_last(state, newton, is_first=taken == 0):
            return _ended(state, newton), Status.CONVERGED, taken + 1
        if newton.relative > 0.3 * last and not state.is_fresh:
            state.refresh()
            last = np.inf
            continue
        status = fading.status(state.point, newton)
        if status is not None:
            return state.point.theta, status, taken
        moved = _damped(state, newton) if newton.is_solved else None
        if moved is not None:
            last = newton.relative
            state.move(moved, newton.factor.columns)
        elif not state.is_fresh:
            state.refresh()
            last = np.inf
        else:
            better = _least_squares(state)
            if better is None and not newton.is_solved and nudges:
                nudges, better = nudges - 1, _nudged(state, nudges)
            if better is None:
                return *_without_a_shorter_step(state), taken
            state.point, last = better, np.inf
            state.refresh()
    return state.point.theta, Status.TOO_MANY_STEPS, max_steps


def _started(equation: EstimatingEquation, theta: Vector) -> _State:
    """Return the state at the start; raise where no search can begin."""
    point = evaluate(equation, theta)
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
    state = _State(equation, point, secant, np.empty((0, 0)))
    state.refresh()
    return state


@dataclass(frozen=True, slots=True)
class _Newton:
    """Newton's step at a point, its length in standard errors, and what it solves."""

    step: Vector
    factor: Factor
    relative: float
    is_solved: bool


def _newton(state: _State) -> _Newton:
    point, factor = state.point, state.factor
    step = newton_step(factor, point.mean)
    errors = standard_errors(factor, point.size, state.equation.n_units)
    relative = relative_length(step, errors, point.theta)
    return _Newton(step, factor, relative, _is_consistent(state, factor, step))


def _is_last(state: _State, newton: _Newton, *, is_first: bool) -> bool:
    """Whether what the step leaves is rounding; an exact Newton step squares it."""
    enough = _SMALL_STEP if state.is_exact and not is_first else _TINY_STEP
    return newton.is_solved and newton.relative <= enough


def _ended(state: _State, newton: _Newton) -> Vector:
    """Return the root that the last step leads to."""
    root = state.point.theta + newton.step
    if newton.factor.rcond <= DOUBTFUL and state.is_exact:
        return _polished(state, root)
    return root


@dataclass(slots=True)
class _Fading:
    """How long psi has been nothing beside its start while theta still moves.

    So it is on the way to infinity, where every equation of a separated model is
    solved.
    """

    initial: float
    steps: int = 0

    def status(self, point: Point, newton: _Newton) -> Status | None:
        """Return how the search ends here, or None if it goes on."""
        vanishing = np.linalg.norm(point.size) < _VANISHING * self.initial
        self.steps = self.steps + 1 if vanishing and newton.relative > 0.1 else 0
        is_nothing = vanishing and not np.any(point.size)
        if self.steps <= _FADING and not is_nothing:
            return None
        moving = np.abs(newton.step) > _STILL * np.abs(point.theta)
        return Status.DIVERGED if moving.any() else Status.CONVERGED


def _without_a_shorter_step(state: _State) -> tuple[Vector, Status]:
    """Return the place where a psi with jumps passes zero, or where it stalls."""
    if getattr(state.equation, "blocks", None) is None:
        crossed = nearest_crossing(state.equation, state.factor, state.point)
        if crossed is not None:
            return crossed, Status.CROSSED
    return state.point.theta, Status.STALLED


def _damped(state: _State, newton: _Newton) -> Point | None:
    """Return the first acceptable point along the step, or None."""
    columns = newton.factor.columns
    length = float(np.linalg.norm(newton.step / columns))
    damping = 1.0
    while damping >= _SMALLEST_DAMPING:
        trial = evaluate(state.equation, state.point.theta + damping * newton.step)
        if trial is not None:
            following = newton_step(newton.factor, trial.mean) / columns
            if np.linalg.norm(following) <= (1.0 - damping / 2.0) * length:
                return trial
        damping /= 2.0
    return None


def _least_squares(state: _State) -> Point | None:
    """Return a point of smaller equations by Levenberg-Marquardt steps (SciPy)."""
    equation, columns = state.equation, state.factor.columns
    scale = np.where(state.point.size > 0, state.point.size, 1)

    def residual(scaled: Vector) -> Vector:
        point = evaluate(equation, scaled * columns)
        return np.full(len(scale), 1e10) if point is None else point.mean / scale

    def derivative(scaled: Vector) -> Matrix:
        return -equation.sensitivity(scaled * columns) * columns / scale[:, None]

    try:
        with np.errstate(all="ignore"):
            found = optimize.least_squares(
                residual, state.point.theta / columns, jac=derivative, method="trf"
            )
    except ValueError:  # the derivative is not finite somewhere on the way
        return None
    before = float(np.square(state.point.mean / scale).sum())
    if not 2.0 * found.cost < 0.99 * before:
        return None
    return evaluate(equation, found.x * columns)


def _is_consistent(state: _State, factor: Factor, step: Vector) -> bool:
    """Whether the step solves the linear system: not where A is singular and blind."""
    if factor.rank == len(step):
        return True
    gap = state.sensitivity @ step - state.point.mean
    size = np.where(state.point.size > 0, state.point.size, 1.0)
    noise = np.max(np.abs(gap) / size) * np.sqrt(state.equation.n_units)
    return bool(noise <= _BLIND)


def _nudged(state: _State, number: int) -> Point | None:
    """Return a point near by, off a set where A is singular (saddles, symmetries)."""
    theta = state.point.theta
    direction = np.random.default_rng(number).standard_normal(len(theta))
    return evaluate(state.equation, theta + 0.1 * (1.0 + np.abs(theta)) * direction)


def _polished(state: _State, theta: Vector) -> Vector:
    """Return the root solved to rounding.

    What is left of it can hide a singular A, whose smallest singular value is then of
    the size of the residual; measured in standard errors, which A inflates, a step is
    small long before. Where A looks regular only through that residual, Newton's step
    goes far along what it does not see; the step without that direction is tried too.
    """
    best = evaluate(state.equation, theta)
    for _ in range(_POLISHING):
        if best is None:
            break
        state.point = best
        state.refresh()
        new = _nearer_root(state, best)
        if new is None:
            break
        best = new
    return state.point.theta if best is None else best.theta


def _nearer_root(state: _State, best: Point) -> Point | None:
    """Return a point whose psi is at most half, by a full or a truncated step."""
    factor = state.factor
    for step in (
        newton_step(factor, best.mean),
        truncated_step(factor, best.mean, ILL_CONDITIONED),
    ):
        new = evaluate(state.equation, best.theta + step)
        if new is not None and np.abs(new.mean).max() < 0.5 * np.abs(best.mean).max():
            return new
    return None
