"""Equations made from another one: multiplied, reparameterised, joined, extended.

Their derivatives are formed from the derivative of the equation they are made of, so
that a property compares the sandwich of one A with that of another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector
from eestim.equations import sum_by_code

__all__ = [
    "Changed",
    "grouped",
    "in_other_parameters",
    "joined",
    "multiplied",
    "of_disjoint_samples",
    "scaled_by_theta",
    "with_functional",
    "with_second_step",
]

_Function = Callable[[Vector], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Changed:
    """An estimating equation given by two functions of its parameters."""

    rows: _Function
    slope: _Function
    start: Vector
    n_units: int
    names: tuple[str, ...]
    derivative_error: float = 0.0

    def psi(self, theta: Vector) -> Matrix:
        """Return the contributions of the units."""
        made: Matrix = self.rows(theta)
        return made

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return A, minus the mean derivative of psi."""
        made: Matrix = self.slope(theta)
        return made


def _from(base: Any, rows: _Function, slope: _Function, start: Vector) -> Changed:
    return Changed(
        rows,
        slope,
        start,
        int(base.n_units),
        tuple(f"eta[{j}]" for j in range(len(start))),
        float(getattr(base, "derivative_error", 0.0)),
    )


def multiplied(base: Any, C: Matrix, start: Vector) -> Changed:
    """Return psi multiplied by a matrix C."""
    return _from(
        base, lambda t: base.psi(t) @ C.T, lambda t: C @ base.sensitivity(t), start
    )


def scaled_by_theta(
    base: Any, B: Matrix, root: Vector, errors: Vector, start: Vector
) -> Changed:
    r"""Return :math:`C(\theta)\psi`, :math:`C = 3 I + B \tanh(1'S^{-1}(\theta - r))`.

    The derivative follows the product rule, with the mean of psi.
    """

    def scale(theta: Vector) -> float:
        return float(np.tanh(np.sum((theta - root) / errors)))

    def factor(theta: Vector) -> Matrix:
        return 3.0 * np.eye(len(B)) + B * scale(theta)

    def slope(theta: Vector) -> Matrix:
        change = (1.0 - scale(theta) ** 2) / errors
        mean = base.psi(theta).mean(axis=0)
        made: Matrix = factor(theta) @ base.sensitivity(theta) - np.outer(
            B @ mean, change
        )
        return made

    return _from(base, lambda t: base.psi(t) @ factor(t).T, slope, start)


def in_other_parameters(
    base: Any, to_theta: _Function, derivative: _Function, start: Vector
) -> Changed:
    """Return the equation in eta, theta = g(eta) with a square derivative."""
    return _from(
        base,
        lambda eta: base.psi(to_theta(eta)),
        lambda eta: base.sensitivity(to_theta(eta)) @ derivative(eta),
        start,
    )


def grouped(base: Any, codes: IntVector, n_groups: int, start: Vector) -> Changed:
    """Return psi summed within groups of units, which become the units."""
    made = _from(
        base,
        lambda t: sum_by_code(base.psi(t), codes, n_groups),
        lambda t: base.sensitivity(t) * (base.n_units / n_groups),
        start,
    )
    return Changed(
        made.rows, made.slope, start, n_groups, made.names, made.derivative_error
    )


def joined(parts: Sequence[Any], start: Vector) -> Changed:
    """Return equations on the same units side by side, sharing no parameter."""
    cuts = np.cumsum([len(part.names) for part in parts])[:-1]

    def rows(theta: Vector) -> Matrix:
        pieces = np.split(theta, cuts)
        return np.hstack([p.psi(t) for p, t in zip(parts, pieces, strict=True)])

    def slope(theta: Vector) -> Matrix:
        pieces = np.split(theta, cuts)
        return block_diagonal(
            [p.sensitivity(t) for p, t in zip(parts, pieces, strict=True)]
        )

    return _from(parts[0], rows, slope, start)


def of_disjoint_samples(one: Any, two: Any, start: Vector) -> Changed:
    """Return equations on different units as one, zero where a unit has no part."""
    n, m, p = one.n_units, two.n_units, len(one.names)

    def rows(theta: Vector) -> Matrix:
        first, second = one.psi(theta[:p]), two.psi(theta[p:])
        return block_diagonal([first, second])

    def slope(theta: Vector) -> Matrix:
        first, second = one.sensitivity(theta[:p]), two.sensitivity(theta[p:])
        return block_diagonal([first * n / (n + m), second * m / (n + m)])

    made = _from(one, rows, slope, start)
    return Changed(
        made.rows, made.slope, start, n + m, made.names, made.derivative_error
    )


def with_functional(
    base: Any, h: _Function, gradient: _Function, start: Vector
) -> Changed:
    r"""Return psi with :math:`h(\theta) - \eta` appended, the same for every unit."""
    p = len(base.names)

    def rows(theta: Vector) -> Matrix:
        psi = base.psi(theta[:p])
        gap = np.full((len(psi), 1), float(h(theta[:p])) - theta[p])
        return np.hstack([psi, gap])

    def slope(theta: Vector) -> Matrix:
        made = block_diagonal([base.sensitivity(theta[:p]), np.eye(1)])
        made[p, :p] = -gradient(theta[:p])
        return made

    return _from(base, rows, slope, start)


def with_second_step(
    base: Any, a: Vector, b: Vector, z: Vector, start: Vector
) -> Changed:
    r"""Append :math:`a'\psi_i(\theta) + b'\theta + z_i - \eta`, a mean in two steps."""
    p = len(base.names)

    def rows(theta: Vector) -> Matrix:
        psi = base.psi(theta[:p])
        second = psi @ a + float(b @ theta[:p]) + z - theta[p]
        return np.column_stack([psi, second])

    def slope(theta: Vector) -> Matrix:
        A = base.sensitivity(theta[:p])
        made = block_diagonal([A, np.eye(1)])
        made[p, :p] = a @ A - b
        return made

    return _from(base, rows, slope, start)


def block_diagonal(blocks: Sequence[Matrix]) -> Matrix:
    """Return matrices along the diagonal, zero elsewhere."""
    shape = np.sum([np.shape(block) for block in blocks], axis=0)
    made, i, j = np.zeros(shape), 0, 0
    for block in blocks:
        rows, columns = np.shape(block)
        made[i : i + rows, j : j + columns] = block
        i, j = i + rows, j + columns
    return made
