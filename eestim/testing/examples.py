"""Two equations with rare capabilities: latent draws, and a symmetry."""

from dataclasses import dataclass, replace

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector

__all__ = ["Product", "SimulatedLogit", "simulated_logit"]


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedLogit:
    r"""The method of simulated moments for a logit with a normal latent effect.

    .. math:: \psi_i = x_i \{y_i - K^{-1} \sum_k \Lambda(x_i'\theta + s z_{ik})\}

    with draws z of its own for every unit, fixed across theta.

    Attributes
    ----------
    x : (n, p) array
    y : (n,) array
    draws : (n, K) array
    scale : float
        s, standard deviation of the latent effect.
    """

    x: Matrix
    y: Vector
    draws: Matrix
    scale: float = 1.0

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return len(self.y)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(f"x{j}" for j in range(self.x.shape[1]))

    @property
    def start(self) -> Vector:
        """Where the solver begins."""
        return np.zeros(self.x.shape[1])

    def _chance(self, theta: Vector) -> Matrix:
        eta = (self.x @ theta)[:, None] + self.scale * self.draws
        chance: Matrix = 1.0 / (1.0 + np.exp(-eta))
        return chance

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units, (n, p)."""
        residual = self.y - self._chance(theta).mean(axis=1)
        rows: Matrix = self.x * residual[:, None]
        return rows

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, (p, p)."""
        chance = self._chance(theta)
        weight = (chance * (1.0 - chance)).mean(axis=1)
        slope: Matrix = (self.x.T * weight) @ self.x / len(self.y)
        return slope

    def redrawn(self, rng: np.random.Generator, draws: int) -> "SimulatedLogit":
        """Return the equation with fresh draws of each unit."""
        return replace(self, draws=rng.normal(size=(len(self.y), draws)))

    def take(self, rows: IntVector) -> "SimulatedLogit":
        """Return the equation of some rows, with their own draws."""
        return replace(self, x=self.x[rows], y=self.y[rows], draws=self.draws[rows])


def simulated_logit(rng: np.random.Generator, n: int = 120) -> SimulatedLogit:
    """Return the equation of a generated sample."""
    x = np.column_stack([np.ones(n), rng.normal(size=n)])
    eta = x @ np.array([0.2, 0.7]) + rng.normal(size=n)
    y = (rng.random(n) < 1.0 / (1.0 + np.exp(-eta))).astype(float)
    return SimulatedLogit(x, y, rng.normal(size=(n, 5)))


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    r"""Least squares of :math:`y = a b x`, where only the product is identified.

    The orbit :math:`(c a, b / c)` has the tangent (a, -b).
    """

    x: Vector
    y: Vector

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return len(self.y)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return ("a", "b")

    @property
    def start(self) -> Vector:
        """Where the solver begins."""
        return np.array([1.0, 1.0])

    def psi(self, theta: Vector) -> Matrix:
        """Return minus the gradient of half the squared residual, (n, 2)."""
        residual = (self.y - theta[0] * theta[1] * self.x) * self.x
        return np.outer(residual, theta[::-1])

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi, (2, 2)."""
        a, b = theta
        square = float(np.mean(self.x**2))
        residual = float(np.mean((self.y - a * b * self.x) * self.x))
        cross = a * b * square - residual
        return np.array([[b * b * square, cross], [cross, a * a * square]])

    def tangents(self, theta: Vector) -> Matrix:
        """Return the tangents of the orbit, (2, 1)."""
        return np.array([[theta[0]], [-theta[1]]])

    def take(self, rows: IntVector) -> "Product":
        """Return the equation of some rows."""
        return Product(self.x[rows], self.y[rows])
