"""Roots of equations that do not identify all of theta."""

from dataclasses import dataclass
from typing import Any

from eestim._arrays import Matrix, Vector
from eestim.equations import EstimatingEquation
from eestim.roots import Root, solve

__all__ = ["as_given", "free_root"]


@dataclass(frozen=True, slots=True)
class _AsGiven:
    """An equation in its own parameters: orthonormal ones exist only at full rank."""

    equation: Any

    @property
    def n_units(self) -> int:
        return int(self.equation.n_units)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.equation.names)

    @property
    def start(self) -> Vector:
        value: Vector = self.equation.start
        return value

    def psi(self, theta: Vector) -> Matrix:
        found: Matrix = self.equation.psi(theta)
        return found

    def sensitivity(self, theta: Vector) -> Matrix:
        found: Matrix = self.equation.sensitivity(theta)
        return found


def as_given(equation: EstimatingEquation) -> Any:
    """Return the equation without the orthonormal parameters that models offer."""
    if getattr(equation, "reparameterised", None) is None:
        return equation
    return _AsGiven(equation)


def free_root(equation: EstimatingEquation, start: Any = None) -> Root:
    """Return one of the roots of an equation that leaves part of theta free.

    The solver's steps are the shortest least-squares ones in equilibrated units, so
    that it ends near its start.

    Parameters
    ----------
    equation : EstimatingEquation
        Its design may be collinear, or have more columns than rows.
    start : (p,) array-like, optional
        The equation's own by default.

    Returns
    -------
    Root
        Its status tells whether the search converged. Where the equation
        interpolates it does not (there is no noise to measure the residual by),
        though psi vanishes.

    Examples
    --------
    >>> import numpy as np
    >>> import eestim as ee
    >>> twice = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    >>> free_root(ee.ols([1.0, 3.0, 4.0], twice)).theta.sum().round(6)
    np.float64(1.357143)
    """
    return solve(as_given(equation), start)
