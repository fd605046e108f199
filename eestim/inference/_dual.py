r"""Criteria of psi that are maxima over multipliers, and their profiles.

.. math:: T(\theta) = \max_\lambda 2 \sum_i \rho\{\lambda^\top \psi_i(\theta)\}

is the score statistic for :math:`\rho(v) = v - v^2 / 2` and minus twice the empirical
log-likelihood ratio for :math:`\rho(v) = \log(1 + v)`. At the maximum the derivative in
theta is :math:`2 \sum_i w_i \lambda^\top \partial\psi_i` with
:math:`w_i = \rho'(\lambda^\top \psi_i)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import linalg

from eestim._arrays import Matrix, Vector
from eestim.equations import EstimatingEquation, moments_at
from eestim.errors import DataError, InferenceError

__all__ = ["Dual", "DualCriterion", "Profiled", "empirical", "euclidean"]

_STEP = 0.05  # of a difference, in standard errors
_GRADIENT = 1e-7  # at which the minimum is known to its square
_FLAT = 1e-3  # a gradient at which the value is that of the minimum for a bound
_MOST_STEPS = 60
_MOST_SLOPES = 1 << 22  # entries of the derivatives of the units
_SILENT = 1e-11  # of an equation whose psi is a relation without noise


class Dual(NamedTuple):
    """A criterion at one table of contributions.

    Attributes
    ----------
    value : float
        T, infinite where no weights make the mean of psi zero.
    multiplier : (q,) array
        lambda at the maximum.
    weights : (n,) array
        Derivative of rho there.
    """

    value: float
    multiplier: Vector
    weights: Vector


DualCriterion: TypeAlias = Callable[[Matrix], Dual]


def euclidean(psi: Matrix) -> Dual:
    r"""Return :math:`n \bar\psi^\top M^{-1} \bar\psi`, M about zero.

    Examples
    --------
    >>> euclidean(np.array([[1.0], [2.0], [3.0]])).value  # 6**2 / 14
    2.571428571428571
    """
    mean = psi.mean(axis=0)
    multiplier = np.linalg.lstsq(psi.T @ psi / len(psi), mean)[0]
    return Dual(len(psi) * float(mean @ multiplier), multiplier, 1.0 - psi @ multiplier)


def empirical(psi: Matrix) -> Dual:
    r"""Return :math:`2 \sum_i \log(1 + \lambda^\top \psi_i)` at its maximum.

    Newton's method on Owen's extension of the logarithm below 1/n by a parabola, which
    is finite and concave everywhere.

    References
    ----------
    Owen (2001), Empirical Likelihood, section 3.14.

    Examples
    --------
    Outside the range of the data no weights give the mean:

    >>> empirical(np.array([[1.0], [2.0]])).value
    inf
    """
    n = len(psi)
    multiplier = np.zeros(psi.shape[1])
    value = 0.0
    for _ in range(100):
        _, slope, curvature = _owen_log(1.0 + psi @ multiplier, n)
        gradient = psi.T @ slope
        hessian = (psi.T * -curvature) @ psi
        step = np.linalg.lstsq(hessian, gradient)[0]
        if float(gradient @ step) <= 1e-15 * max(value, 1.0):  # twice what is left
            multiplier = multiplier + step
            break
        length = 1.0
        while length > 1e-10:
            tried = multiplier + length * step
            new = float(_owen_log(1.0 + psi @ tried, n)[0].sum())
            if new >= value:
                break
            length /= 2.0
        else:
            break
        multiplier, value = tried, new
    weights = _owen_log(1.0 + psi @ multiplier, n)[1]
    if abs(weights.mean() - 1.0) > 1e-6:
        value = np.inf
    return Dual(2.0 * value, multiplier, weights)


def _owen_log(v: Vector, n: int) -> tuple[Vector, Vector, Vector]:
    """Return a logarithm continued below 1/n, its slope and its curvature."""
    safe = np.maximum(v, 1.0 / n)
    gap = n * (safe - v)  # zero above 1/n
    return (
        np.log(safe) - gap - gap**2 / 2.0,
        1.0 / safe + n * gap,
        np.where(v < 1.0 / n, -(float(n) ** 2), -1.0 / safe**2),
    )


@dataclass(slots=True)
class Profiled:
    """The minimum of a criterion over all parameters but one.

    Calling it with a value of that parameter returns the minimum, or NaN where psi is
    too large for a number. Searches start where those at the nearest values ended.
    Free parameters are measured in standard errors given the fixed one, so that the
    criterion is nearly the sum of their squares.

    A point at which the criterion is below ``critical`` shows that its minimum is, so
    a search that stops short there has done what was asked of it.
    """

    equation: EstimatingEquation
    theta: Vector
    j: int
    criterion: DualCriterion
    critical: float
    method: str
    _whiten: Matrix = field(init=False)
    _basis: Matrix = field(init=False)
    _drift: Vector = field(init=False)
    _path: list[tuple[float, Vector]] = field(init=False)
    _known: dict[float, float] = field(init=False, default_factory=dict)
    _inverse: Matrix = field(init=False)
    _is_analytic: bool = field(init=False)
    _overflows: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        moments = moments_at(self.equation, self.theta)
        self._whiten = _noise_scale(moments.meat, moments.sensitivity, self.method)
        slope = self._whiten.T @ moments.sensitivity
        information = moments.n * slope.T @ slope
        others = np.delete(np.arange(len(self.theta)), self.j)
        free = information[np.ix_(others, others)]
        basis = np.zeros((len(self.theta), len(others)))
        drift = np.zeros(len(self.theta))
        drift[self.j] = 1.0
        if len(others):
            root = linalg.cholesky(free, lower=True)
            basis[others] = linalg.solve_triangular(root.T, np.eye(len(others)))
            drift[others] = -linalg.solve(free, information[others, self.j])
        self._basis, self._drift = basis, drift
        self._path = [(float(self.theta[self.j]), np.zeros(len(others)))]
        self._inverse = np.eye(len(others))
        is_small = moments.n * len(self.theta) ** 2 <= _MOST_SLOPES
        is_exact = float(getattr(self.equation, "derivative_error", 0.0)) == 0.0
        has_slopes = getattr(self.equation, "unit_sensitivity", None) is not None
        self._is_analytic = is_small and is_exact and has_slopes

    @np.errstate(all="ignore")  # what is not finite ends a search
    def __call__(self, value: float) -> float:
        """Return the minimum of the criterion with the parameter at ``value``."""
        if value in self._known:
            return self._known[value]
        base = self.theta + (value - self.theta[self.j]) * self._drift
        base[self.j] = value
        self._overflows = False
        if self._basis.shape[1] == 0:
            lowest = self._dual(base).value
        else:
            lowest = self._lowest(base, value)
        is_overflow = np.isinf(lowest) and self._overflows
        self._known[value] = np.nan if is_overflow else lowest
        return self._known[value]

    def _lowest(self, base: Vector, value: float) -> float:
        """Return the lowest value that is found from the points passed so far."""
        unit = np.eye(self._basis.shape[1])
        near = sorted(self._path, key=lambda point: abs(point[0] - value))
        starts = [near[0][1], near[min(1, len(near) - 1)][1], np.zeros(len(unit))]
        attempts = [
            (starts[0], self._inverse, _STEP),
            *((start, unit, _STEP) for start in starts[1:]),
            (starts[0], unit, _STEP / 16.0),
        ]
        slope, lowest = np.inf, np.inf
        for tried, (start, inverse, step) in enumerate(attempts):
            eta, dual, slope, inverse = self._minimum(base, start, inverse, step)
            is_found = slope <= _FLAT or dual.value <= self.critical
            if is_found and dual.value < lowest:
                lowest, place = dual.value, eta
                self._inverse = inverse
            if lowest <= self.critical or (np.isfinite(lowest) and tried > 0):
                self._path.append((value, place))
                return lowest
        if not np.isfinite(slope):
            return np.inf
        raise InferenceError(
            f"{self.method} found no minimum over the other parameters (slope "
            f"{slope:.1e}); use the Wald interval, or fewer parameters."
        )

    def _dual(self, theta: Vector) -> Dual:
        try:
            raw = self.equation.psi(theta)
        except DataError:
            raw = np.full((1, 1), np.nan)
        self._overflows |= bool(np.isinf(raw).any())
        psi = raw @ self._whiten if np.isfinite(raw).all() else raw
        if not np.isfinite(psi).all():
            return Dual(np.inf, np.empty(0), np.empty(0))
        # In powers of two, so that nothing is rounded and no square overflows.
        scale = np.ldexp(1.0, -np.frexp(np.abs(psi).max(axis=0))[1])
        found = self.criterion(psi * scale)
        return found._replace(multiplier=found.multiplier * scale)

    def _gradient(self, theta: Vector, dual: Dual, step: float) -> Vector:
        """Return half the derivative of the criterion in the free parameters."""
        direction = self._whiten @ dual.multiplier
        if self._is_analytic:
            slopes = self.equation.unit_sensitivity(theta)  # type: ignore[attr-defined]
            combined = np.tensordot(dual.weights, slopes, axes=1)
            exact: Vector = -(direction @ combined @ self._basis)
            return exact

        def total(at: Vector) -> float:
            return float((self.equation.psi(at) @ direction) @ dual.weights)

        found = np.empty(self._basis.shape[1])
        for k, way in enumerate(self._basis.T):
            ends = [total(theta + s * step * way) for s in (-1.0, -0.5, 0.5, 1.0)]
            coarse, fine = ends[3] - ends[0], ends[2] - ends[1]
            found[k] = (8.0 * fine - coarse) / (6.0 * step)
        return found

    def _minimum(
        self, base: Vector, eta: Vector, inverse: Matrix, step: float
    ) -> tuple[Vector, Dual, float, Matrix]:
        """Minimise half the criterion by BFGS steps.

        Returns where it ended, the criterion, the length of its gradient and the
        inverse Hessian.
        """
        dual = self._dual(base + self._basis @ eta)
        if not np.isfinite(dual.value):
            return eta, dual, np.inf, inverse
        gradient = self._gradient(base + self._basis @ eta, dual, step)
        for _ in range(_MOST_STEPS):
            if not np.linalg.norm(gradient) > _GRADIENT:
                break
            way = -inverse @ gradient
            moved = self._descend(base, eta, way, dual, float(gradient @ way))
            if moved is None:
                break
            new, found = moved
            after = self._gradient(base + self._basis @ new, found, step)
            inverse = _bfgs(inverse, new - eta, after - gradient)
            eta, dual, gradient = new, found, after
        length = float(np.linalg.norm(gradient))
        return eta, dual, length if np.isfinite(length) else np.inf, inverse

    def _descend(
        self, base: Vector, eta: Vector, step: Vector, dual: Dual, slope: float
    ) -> tuple[Vector, Dual] | None:
        length = 1.0
        while length > 1e-8:
            new = eta + length * step
            found = self._dual(base + self._basis @ new)
            if found.value / 2.0 <= dual.value / 2.0 + 1e-4 * length * slope:
                return new, found
            length /= 2.0
        return None


def _bfgs(inverse: Matrix, step: Vector, change: Vector) -> Matrix:
    """Return the updated inverse Hessian."""
    curvature = float(step @ change)
    if curvature <= 1e-14 * float(np.linalg.norm(step) * np.linalg.norm(change)):
        return inverse
    turn = np.eye(len(step)) - np.outer(step, change) / curvature
    updated: Matrix = turn @ inverse @ turn.T + np.outer(step, step) / curvature
    return updated


def _noise_scale(meat: Matrix, sensitivity: Matrix, method: str) -> Matrix:
    """Return L with L' M L the identity, (q, q).

    Raises
    ------
    InferenceError
        If an equation has no noise: a relation between parameters.
    """
    scale = np.sqrt(np.diag(meat))
    size = np.abs(sensitivity).max(axis=1)
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(meat / np.outer(safe, safe))
    if (scale <= 0).any() or values[0] <= _SILENT * values[-1] or not size.all():
        raise InferenceError(
            f"{method} weighs psi by its noise, and some combination of the equations "
            "has none (such as a relation that defines a difference of parameters). "
            "Leave it out and use `functional`, or use the Wald interval."
        )
    whiten: Matrix = (vectors / np.sqrt(values)) / safe[:, None]
    return whiten
