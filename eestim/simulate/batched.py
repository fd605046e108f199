"""Thousands of small problems at once: batched Newton steps and sandwiches.

Every array has a leading axis of R problems, so that the cost of calling NumPy is
shared by all of them. A problem whose equations have no root, or whose sensitivity
is singular, gets a status and NaN, never a number.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from eestim._arrays import IntVector, Matrix, Vector
from eestim.simulate._outcomes import quantile
from eestim.simulate._small import (
    Array,
    Mask,
    batched_inverse,
    diagonal,
    equilibrating_scale,
    inverse_of,
    is_finite,
    plain_inverse,
    solved,
    times,
)
from eestim.simulate._threads import blas_threads, one_blas_thread

__all__ = [
    "BatchedEquation",
    "BatchedFit",
    "BatchedStatus",
    "batched_estimate",
    "batched_inverse",
]

BatchedStatus = Literal[
    "converged", "not converged", "singular", "separated", "interpolated"
]
_LABELS = np.array(get_args(BatchedStatus))
_CODE = {name: code for code, name in enumerate(get_args(BatchedStatus))}
_PART_ENTRIES = 1 << 18  # of the (problems, n, p) design held in the cache at a time
_MAX_EVALUATIONS = 60
_MAX_POLISHES = 5
_SHARE_KEPT = 0.5  # of problems still searching, below which the others are left out
_SMALL_STEP = 1e-4  # standard errors: Newton squares it, so the next is rounding
_SMALL_ERROR = 1e-8  # standard errors, of the root at which A and M are evaluated
_SMALLEST_DAMPING = 2.0**-12
_MAX_ROUGH = 8
_ROUGH_STEP = 0.03  # standard errors: the next is rounding of single precision
_SHARE_ROUGH = 0.9  # of problems there, when the others are left to damped steps


class BatchedEquation(Protocol):
    """R estimating equations of one shape, n units and p parameters each.

    Optional: ``inspect(theta, status)``, the problems (a mask) that deserve another
    status than the solver's, by status; ``floor()``, the largest ratio of the
    diagonals of M and A that is rounding (R,), below which psi vanishes; where the
    root is unique and A positive definite, ``rough()``, the same problems in single
    precision (or None), in which it is searched first, with ``mean_psi(theta)`` (R, p)
    to go on from there in double precision.
    """

    @property
    def n_problems(self) -> int:
        """Number of problems, R."""

    @property
    def n_units(self) -> int:
        """Number of independent units in each, n."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the p parameters."""

    def part(self, which: Any) -> "BatchedEquation":
        """Return the problems selected by a slice or an array of numbers."""

    def start(self) -> Matrix:
        """Return where the solver begins, (R, p)."""

    def newton_terms(self, theta: Matrix) -> tuple[Matrix, Matrix, Array]:
        """Return mean psi, its mean square and A: (R, p), (R, p), (R, p, p)."""

    def moments(self, theta: Matrix) -> tuple[Matrix, Array, Array]:
        """Return mean psi, M and A at the root: (R, p), (R, p, p), (R, p, p)."""


@dataclass(frozen=True, slots=True)
class BatchedFit:
    r"""Roots of R equations with their covariances.

    Attributes
    ----------
    names : tuple of p str
    theta : (R, p) array
        NaN where the status is not "converged".
    covariance : (R, p, p) array
        V of each problem, NaN likewise.
    dof : float
        Degrees of freedom of its intervals, infinite for the normal law.
    status : (R,) array of str
        "converged", "not converged", "singular" (A has no inverse to working
        precision), "separated" (the root lies at infinity) or "interpolated" (psi
        vanishes at every unit, so that the sandwich would be zero).
    steps : (R,) array of int
        Evaluations of the equations.
    """

    names: tuple[str, ...]
    theta: Matrix
    covariance: Array
    dof: float
    status: npt.NDArray[np.str_]
    steps: IntVector

    @property
    def se(self) -> Matrix:
        """Standard errors, (R, p)."""
        return np.sqrt(diagonal(self.covariance))

    @property
    def is_converged(self) -> Mask:
        """Which problems have a root, (R,)."""
        converged: Mask = self.status == "converged"
        return converged

    def interval(self, level: float = 0.95) -> tuple[Matrix, Matrix]:
        """Return lower and upper bounds, each (R, p).

        Raises
        ------
        ValueError
            If the level is not between 0 and 1.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
        half = quantile(level, np.array(self.dof)) * self.se
        return self.theta - half, self.theta + half


# ------------------------------------------------------------------------- solving


@dataclass(frozen=True, slots=True)
class _Points:
    """Theta, the Newton step from there, and rough standard errors; each (r, p)."""

    theta: Matrix
    step: Matrix
    errors: Matrix
    usable: Mask
    scale: Array

    def take(self, which: Mask) -> "_Points":
        """Return the points of some problems."""
        if which.all():
            return self
        return _Points(
            self.theta[which],
            self.step[which],
            self.errors[which],
            self.usable[which],
            self.scale[which],
        )

    def replaced(self, which: Mask, other: "_Points") -> "_Points":
        """Return the points with those of some problems from elsewhere."""
        if which.all():
            return other
        chosen = which[:, None]
        return _Points(
            np.where(chosen, other.theta, self.theta),
            np.where(chosen, other.step, self.step),
            np.where(chosen, other.errors, self.errors),
            self.usable | which,
            self.scale,
        )


def _length(theta: Matrix, step: Matrix, errors: Matrix) -> Vector:
    """Return the largest coordinate of a step in standard errors, (r,)."""
    floor = 4.0 * np.finfo(np.float64).eps * np.abs(theta)
    excess = np.maximum(np.abs(step) - floor, 0.0)
    ratio = np.where(excess > 0.0, excess / errors, 0.0)
    longest: Vector = ratio.max(axis=1)
    return longest


def _points(
    equation: BatchedEquation, theta: Matrix, scale: Array | None = None
) -> _Points:
    """Return the points at theta; without a scale of A its rank is looked at."""
    mean, square, sensitivity = equation.newton_terms(theta)
    if scale is None:
        scale = equilibrating_scale(sensitivity)
        inverse, singular = batched_inverse(sensitivity, scale)
    else:
        inverse, singular = inverse_of(sensitivity * scale)
        inverse *= scale.transpose(0, 2, 1)
    step = times(inverse, mean)
    errors = np.sqrt(times(np.square(inverse), square) / equation.n_units)
    usable = ~singular & np.isfinite(step + errors).all(axis=1)
    return _Points(theta, step, errors, usable, scale)


def _acceptable(trial: _Points, base: _Points, before: Vector, after: Vector) -> Mask:
    """Return where a step is worth taking: the next one is shorter.

    A step up to twice as long passes too if it goes on in the same direction, as
    where psi flattens; one that turns back and does not shrink has overshot.
    """
    onward = np.sum(trial.step * base.step / np.square(base.errors), axis=1) > 0.0
    is_shorter = (after <= before) | ((after <= 2.0 * before) & onward)
    is_shorter |= after <= _SMALL_STEP  # both may be rounding
    accepted: Mask = trial.usable & is_shorter
    return accepted


def _solve(equation: BatchedEquation) -> tuple[Matrix, IntVector, IntVector]:
    """Return theta next to the root, status codes and evaluations of one part."""
    base = _points(equation, equation.start())
    theta = base.theta.copy()
    codes = np.full(len(theta), _CODE["not converged"])
    codes[~base.usable] = _CODE["singular"]
    steps = np.zeros(len(theta), dtype=np.intp)
    places, active, damping = np.arange(len(theta)), base.usable, np.ones(len(theta))
    for _ in range(_MAX_EVALUATIONS):
        if not active.any():
            break
        if active.mean() < _SHARE_KEPT:  # copying the others is worth it
            equation, base = equation.part(np.flatnonzero(active)), base.take(active)
            places, damping, active = places[active], damping[active], active[active]
        trial = _points(equation, base.theta + damping[:, None] * base.step, base.scale)
        steps[places] += active
        before = _length(base.theta, base.step, base.errors)
        after = _length(trial.theta, trial.step, base.errors)
        accepted = active & _acceptable(trial, base, before, after)
        # Steps s0, s1 of a quadratic convergence have s1 (s1 / s0)^2 after them.
        following = np.where(damping == 1.0, after * np.square(after / before), np.inf)
        done = accepted & ((after <= _SMALL_STEP) | (following <= _SMALL_ERROR))
        damping = np.where(accepted, 1.0, damping / 2.0)
        base = base.replaced(accepted, trial)
        moved = base.theta + np.where(done[:, None], base.step, 0.0)
        theta[places[accepted]] = moved[accepted]
        codes[places[done]] = _CODE["converged"]
        active = active & ~done & (damping >= _SMALLEST_DAMPING)
    return theta, codes, steps


@dataclass(frozen=True, slots=True)
class _Finished:
    """Roots and covariances of one part, and what was found at them."""

    theta: Matrix
    covariance: Array
    is_root: Mask
    vanishes: Mask

    @property
    def is_finite(self) -> Mask:
        """Which problems have numbers."""
        return np.isfinite(self.theta).all(axis=1) & is_finite(self.covariance)


def _finish(
    equation: BatchedEquation,
    theta: Matrix,
    inverted: Callable[[Array], tuple[Array, Mask]] = batched_inverse,
) -> _Finished:
    """Return polished roots and sandwiches; the polishing verifies convergence."""
    mean, meat, sensitivity = equation.moments(theta)
    inverse, _ = inverted(sensitivity)
    half = np.matmul(inverse, meat)
    covariance = np.matmul(half, inverse.transpose(0, 2, 1)) / equation.n_units
    step = times(inverse, mean)
    off = _length(theta, step, np.sqrt(diagonal(covariance)))
    floor = getattr(equation, "floor", None)
    vanishes = np.zeros(len(theta), dtype=bool)
    if floor is not None:
        vanishes = (diagonal(meat) / diagonal(sensitivity)).max(axis=1) <= floor()
    symmetric = (covariance + covariance.transpose(0, 2, 1)) / 2.0
    is_root = (off <= _SMALL_ERROR) | vanishes
    return _Finished(theta + step, symmetric, is_root, vanishes)


def _rough_root(equation: Any, rough: Any) -> tuple[Matrix, int]:
    r"""Return theta near the root, searched in single precision, and evaluations.

    Newton steps, not damped, until their length :math:`(n \bar\psi^\top s)^{1/2}` is
    small for most problems. Then one step more, with psi in double precision and the
    last A: its error is that of single precision, squared.
    """
    theta = rough.start()
    steps = 1
    while steps <= _MAX_ROUGH:
        mean, _, sensitivity = rough.newton_terms(theta)
        step = solved(sensitivity, mean)
        theta, steps = theta + step, steps + 1
        decrement = equation.n_units * np.sum(mean * step, axis=1)
        if np.mean(decrement <= _ROUGH_STEP**2) >= _SHARE_ROUGH:
            break
    theta = theta.astype(np.float64)
    return theta + solved(sensitivity, equation.mean_psi(theta)), steps


Part = tuple[Matrix, Array, IntVector, IntVector]


@np.errstate(all="ignore")  # what is not finite becomes a status
def _fit_part(equation: BatchedEquation) -> Part:
    """Return roots, covariances, status codes and evaluations of one part."""
    rough = equation.rough() if hasattr(equation, "rough") else None
    if rough is None:
        return _inspected(equation, _careful(equation))
    theta, steps = _rough_root(equation, rough)
    made = _finish(equation, theta, plain_inverse)
    holds = made.is_root & ~made.vanishes & made.is_finite
    codes = np.full(len(holds), _CODE["converged"])
    part = made.theta, made.covariance, codes, np.full(len(holds), steps)
    if not holds.all():
        left = np.flatnonzero(~holds)
        for whole, piece in zip(part, _careful(equation.part(left)), strict=True):
            whole[left] = piece
    return _inspected(equation, part)


def _careful(equation: BatchedEquation) -> Part:
    """Return a part solved by damped steps in double precision."""
    theta, codes, steps = _solve(equation)
    covariance = np.full((*theta.shape, theta.shape[1]), np.nan)
    left = np.flatnonzero(codes == _CODE["converged"])
    codes[left] = _CODE["not converged"]
    for _ in range(_MAX_POLISHES):
        if not len(left):
            break
        chosen = equation if len(left) == len(theta) else equation.part(left)
        made = _finish(chosen, theta[left])
        theta[left], covariance[left] = made.theta, made.covariance
        codes[left[made.is_root]] = _CODE["converged"]
        codes[left[made.vanishes]] = _CODE["interpolated"]
        codes[left[~made.is_finite]] = _CODE["singular"]
        left = left[made.is_finite & ~made.is_root]
    return theta, covariance, codes, steps


def _inspected(equation: BatchedEquation, part: Part) -> Part:
    """Return a part with the statuses that the equation knows, NaN for failures."""
    theta, covariance, codes, steps = part
    inspect = getattr(equation, "inspect", None)
    if inspect is not None:
        for status, which in inspect(theta, _LABELS[codes]).items():
            codes[which] = _CODE[status]
    failed = codes != _CODE["converged"]
    theta[failed], covariance[failed] = np.nan, np.nan
    return theta, covariance, codes, steps


def batched_estimate(
    equation: BatchedEquation, dof: float = np.inf, jobs: int | None = None
) -> BatchedFit:
    r"""Solve R small equations at once and attach their sandwiches.

    .. math:: V_r = A_r^{-1} M_r A_r^{-\top} / n .

    Newton steps in single precision where the equation has it (`BatchedEquation`);
    every root is then polished and verified in double precision, and a problem that
    does not pass is solved again in double precision by damped Newton steps, each
    problem with its own damping.

    Parameters
    ----------
    equation : BatchedEquation
    dof : float
        Degrees of freedom of the intervals, the normal law by default.
    jobs : int, optional
        Threads; by default as many as BLAS uses (OMP_NUM_THREADS), which is one
        within a study. Results do not depend on their number.

    Returns
    -------
    BatchedFit
        Nothing is raised for a problem that fails: its status says why.

    References
    ----------
    Deuflhard (2011), Newton Methods for Nonlinear Problems, section 3.3, for the
    test of a step by the length of the next.
    """
    size = equation.n_units * len(equation.names)
    per_problem = max(1, int(getattr(equation, "n_entries", size)))
    length = int(np.clip(_PART_ENTRIES // per_problem, 4, 1024))
    cuts = [slice(k, k + length) for k in range(0, equation.n_problems, length)]
    threads = min(blas_threads() if jobs is None else jobs, len(cuts))
    with (
        one_blas_thread(),  # of its own: sums in one order, whatever `jobs`
        ThreadPoolExecutor(threads) if threads > 1 else nullcontext() as pool,
    ):
        run = map if pool is None else pool.map
        parts = list(run(lambda cut: _fit_part(equation.part(cut)), cuts))
    theta, covariance, codes, steps = (
        np.concatenate(pieces) for pieces in zip(*parts, strict=True)
    )
    return BatchedFit(equation.names, theta, covariance, dof, _LABELS[codes], steps)
