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
_MOST_STEPS = 60
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
    multiplier = linalg.lstsq(psi.T @ psi / len(psi), mean)[0]
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
        step = linalg.lstsq(hessian, gradient)[0]
        length = 1.0
        while length > 1e-10:
            tried = multiplier + length * step
            new = float(_owen_log(1.0 + psi @ tried, n)[0].sum())
            if new >= value:
                break
            length /= 2.0
        else:
            break
        gain, multiplier, value = new - value, tried, new
        if float(gradient @ step) < 1e-22 * n or gain <= 1e-16 * abs(value):
            break
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

    Calling it with a value of that parameter returns the minimum; each search starts
    where the last one ended. Free parameters are measured in standard errors given
    the fixed one, so that the criterion is nearly the sum of their squares.
    """

    equation: EstimatingEquation
    theta: Vector
    j: int
    criterion: DualCriterion
    method: str
    _whiten: Matrix = field(init=False)
    _basis: Matrix = field(init=False)
    _drift: Vector = field(init=False)
    _last: Vector = field(init=False)

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
        self._last = np.zeros(len(others))

    def __call__(self, value: float) -> float:
        """Return the minimum of the criterion with the parameter at ``value``."""
        base = self.theta + (value - self.theta[self.j]) * self._drift
        base[self.j] = value
        if self._basis.shape[1] == 0:
            return self._dual(base).value
        eta, lowest = self._minimum(base, self._last)
        if np.isfinite(lowest):
            self._last = eta
        return lowest

    def _dual(self, theta: Vector) -> Dual:
        with np.errstate(all="ignore"):
            try:
                psi = self.equation.psi(theta) @ self._whiten
            except DataError:
                psi = np.full((1, 1), np.nan)
        if not np.isfinite(psi).all():
            return Dual(np.inf, np.empty(0), np.empty(0))
        return self.criterion(psi)

    def _gradient(self, theta: Vector, dual: Dual) -> Vector:
        """Return half the derivative of the criterion in the free parameters."""
        direction = self._whiten @ dual.multiplier

        def total(at: Vector) -> float:
            return float((self.equation.psi(at) @ direction) @ dual.weights)

        slopes = np.empty(self._basis.shape[1])
        for k, way in enumerate(self._basis.T):
            ends = [total(theta + s * _STEP * way) for s in (-1.0, -0.5, 0.5, 1.0)]
            coarse, fine = ends[3] - ends[0], ends[2] - ends[1]
            slopes[k] = (8.0 * fine - coarse) / (6.0 * _STEP)
        return slopes

    def _minimum(self, base: Vector, eta: Vector) -> tuple[Vector, float]:
        """Minimise half the criterion by BFGS steps from the identity."""
        inverse = np.eye(len(eta))
        dual = self._dual(base + self._basis @ eta)
        if not np.isfinite(dual.value):
            eta = np.zeros(len(eta))
            dual = self._dual(base)
            if not np.isfinite(dual.value):
                return eta, np.inf
        gradient = self._gradient(base + self._basis @ eta, dual)
        for _ in range(_MOST_STEPS):
            if np.linalg.norm(gradient) <= _GRADIENT:
                return eta, dual.value
            step = -inverse @ gradient
            moved = self._descend(base, eta, step, dual, float(gradient @ step))
            if moved is None:
                break
            new, found = moved
            after = self._gradient(base + self._basis @ new, found)
            inverse = _bfgs(inverse, new - eta, after - gradient)
            eta, dual, gradient = new, found, after
        if np.linalg.norm(gradient) > 1e-3:
            raise InferenceError(
                f"{self.method} found no minimum over the other parameters (slope "
                f"{np.linalg.norm(gradient):.1e}); use the Wald interval, or fewer "
                "parameters."
            )
        return eta, dual.value

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
