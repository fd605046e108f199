"""Restrictions on theta, and roots that satisfy them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg

from eestim._arrays import Matrix, Vector, as_float
from eestim.equations import EstimatingEquation
from eestim.errors import ConvergenceError, DataError, InferenceError
from eestim.roots import solve

__all__ = [
    "RestrictedEquation",
    "Restriction",
    "require_independent_units",
    "restricted_root",
    "restriction_of",
]

_REDUNDANT = 1e-10  # what is left of a row of length one after the others
_CONTRADICTS = 1e-8
# Rules under which the rows of psi are taken to be independent.
_INDEPENDENT = (
    "hc",
    "model-based",
    "outer product",
    "fay-graubard",
    "jackknife",
    "pairs",
    "fractional",
    "residual",
    "multiplier",
    "wild bootstrap",
    "leave-out",
)


@dataclass(frozen=True, slots=True)
class Restriction:
    r"""Independent linear restrictions :math:`R\theta = r`.

    Attributes
    ----------
    matrix : (m, p) array
    values : (m,) array
    is_selection : bool
        Whether each row fixes one parameter.
    """

    matrix: Matrix
    values: Vector
    is_selection: bool

    @property
    def count(self) -> int:
        """Number of independent restrictions."""
        return len(self.values)

    def free_space(self, scale: Vector) -> Matrix:
        """Return directions that keep the restrictions, (p, p - m).

        Parameters
        ----------
        scale : (p,) array
            Standard errors, so that directions do not depend on units of measure.
        """
        if self.is_selection:
            fixed = (self.matrix != 0).any(axis=0)
            return np.eye(len(fixed))[:, ~fixed]
        basis: Matrix = scale[:, None] * linalg.null_space(self.matrix * scale)
        return basis

    def nearest(self, theta: Vector, covariance: Matrix) -> Vector:
        r"""Return the point with :math:`R\theta = r` nearest in Wald's metric, (p,).

        .. math:: \hat\theta - V R^\top (R V R^\top)^{-} (R \hat\theta - r)
        """
        spread = covariance @ self.matrix.T
        gap = self.matrix @ theta - self.values
        moved: Vector = theta - spread @ np.linalg.lstsq(self.matrix @ spread, gap)[0]
        if self.is_selection:  # exactly, rather than to rounding
            rows, places = np.nonzero(self.matrix)
            moved[places] = self.values[rows] / self.matrix[rows, places]
        return moved


def restriction_of(restriction: Any, names: Sequence[str]) -> Restriction:
    r"""Return a restriction written in any of the accepted ways.

    Parameters
    ----------
    restriction : str, sequence of str, mapping, (R, r), or (m, p) array
        Parameters that are zero, a mapping of names to values, or
        :math:`R\theta = r`.
    names : sequence of str
        Parameter names.

    Raises
    ------
    DataError
        If a name is unknown, a shape or a value is wrong, or rows contradict each
        other. Rows that follow from others are dropped.

    Examples
    --------
    >>> restriction_of({"b": 2.0}, ("a", "b")).matrix
    array([[0., 1.]])
    >>> restriction_of(([[1.0, 1.0], [2.0, 2.0]], [1.0, 2.0]), ("a", "b")).count
    1
    """
    if isinstance(restriction, str):
        restriction = [restriction]
    if isinstance(restriction, Mapping):
        return _selection(list(restriction), list(restriction.values()), names)
    if len(restriction) and all(isinstance(one, str) for one in restriction):
        return _selection(list(restriction), [0.0] * len(restriction), names)
    matrix, values = (
        restriction if isinstance(restriction, tuple) else (restriction, 0.0)
    )
    R = np.atleast_2d(as_float(matrix, "R"))
    r = np.atleast_1d(as_float(values, "r"))
    if R.shape[1] != len(names) or len(R) == 0 or not np.isfinite(R).all():
        raise DataError(
            f"`R` has shape {R.shape}; finite rows of {len(names)} coefficients were "
            "expected, one a parameter."
        )
    if len(r) not in (1, len(R)) or not np.isfinite(r).all():
        raise DataError(
            f"`r` has {len(r)} entries for {len(R)} rows of `R`; give one finite value "
            "each."
        )
    return _independent(R, np.broadcast_to(r, len(R)))


def _selection(
    wanted: Sequence[str], values: Sequence[Any], names: Sequence[str]
) -> Restriction:
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise DataError(
            f"`restriction` names {unknown}, which are not parameters; they are "
            f"{list(names)}."
        )
    if len(set(wanted)) != len(wanted):
        raise DataError(f"`restriction` names a parameter twice: {list(wanted)}.")
    given = as_float(list(values), "restriction", 1)
    if not np.isfinite(given).all():
        raise DataError(f"`restriction` has values that are not finite: {values}.")
    places = [list(names).index(name) for name in wanted]
    return Restriction(np.eye(len(names))[places], given, True)


def _independent(R: Matrix, r: Vector) -> Restriction:
    """Return the restrictions without those that follow from the others."""
    size = np.abs(R).max(axis=1)
    if (size == 0).any():
        raise DataError(
            f"row {int(np.flatnonzero(size == 0)[0])} of `R` is zero; remove it."
        )
    R, r = R / size[:, None], r / size
    _, triangular, order = linalg.qr(R.T, mode="economic", pivoting=True)
    rank = int((np.abs(np.diag(triangular)) > _REDUNDANT).sum())
    kept = np.sort(order[:rank])
    weights = np.linalg.lstsq(R[kept].T, R.T)[0]
    if (np.abs(weights.T @ r[kept] - r) > _CONTRADICTS * (1.0 + np.abs(r))).any():
        raise DataError(
            "`R` theta = `r` has no solution: some rows of `R` are combinations of "
            "others, with another value in `r`. Remove or correct them."
        )
    one_each = bool(((R[kept] != 0).sum(axis=1) == 1).all())
    return Restriction(R[kept], r[kept], one_each)


@dataclass(frozen=True, slots=True, eq=False)
class RestrictedEquation:
    r"""An equation along :math:`\theta = b + N\eta`, in the free parameters eta.

    .. math:: \psi_i^R(\eta) = N^\top \psi_i(b + N \eta), \quad A^R = N^\top A N,

    the score equations of a restricted likelihood, and those of Boos (1992) for any
    psi: Lagrange multipliers stand for the restrictions.
    """

    equation: Any
    base: Vector
    basis: Matrix

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return int(self.equation.n_units)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the free parameters."""
        return tuple(f"free[{j}]" for j in range(self.basis.shape[1]))

    @property
    def derivative_error(self) -> float:
        """Relative error of the sensitivity."""
        return float(getattr(self.equation, "derivative_error", 0.0))

    def theta(self, eta: Vector) -> Vector:
        """Return all parameters, (p,)."""
        moved: Vector = self.base + self.basis @ eta
        return moved

    def psi(self, eta: Vector) -> Matrix:
        """Return the contributions in the free directions, (n, p - m)."""
        rows: Matrix = self.equation.psi(self.theta(eta)) @ self.basis
        return rows

    def sensitivity(self, eta: Vector) -> Matrix:
        """Return A along the free directions."""
        slope = self.equation.sensitivity(self.theta(eta))
        return np.asarray(self.basis.T @ slope @ self.basis)


def restricted_root(
    equation: EstimatingEquation,
    restriction: Restriction,
    theta: Vector,
    covariance: Matrix,
) -> Vector:
    r"""Return the root of the equations in the free directions, (p,).

    .. math:: N^\top \bar\psi(\theta) = 0, \quad R\theta = r, \quad R N = 0 .

    Parameters
    ----------
    theta, covariance : (p,) and (p, p) arrays
        The unrestricted root and its covariance, from which the search starts.

    Raises
    ------
    ConvergenceError
        If there is none near.
    """
    base = restriction.nearest(theta, covariance)
    basis = restriction.free_space(np.sqrt(np.diag(covariance)))
    if basis.shape[1] == 0:
        return base
    inner = RestrictedEquation(equation, base, basis)
    found = solve(inner, np.zeros(basis.shape[1]))
    if not found.is_converged:
        raise ConvergenceError(
            "no root satisfies the restriction "
            f"({found.status.name.lower().replace('_', ' ')} after {found.steps} "
            "steps). It may lie far from the data: use `wald`, or restrict fewer "
            "parameters."
        )
    return inner.theta(found.theta)


def require_independent_units(estimate: Any, method: str) -> None:
    """Raise where the covariance of a fit says that its rows depend on each other.

    Raises
    ------
    InferenceError
        Naming what to do instead.
    """
    rule = str(estimate.spread.rule)
    if estimate.spread.n_clusters or not rule.lower().startswith(_INDEPENDENT):
        raise InferenceError(
            f"{method} takes the units to be independent, and the covariance of this "
            f"fit ({rule}) says they are not. Build the equation with "
            "`units=` (rows of a unit are then summed), or use the Wald interval."
        )
