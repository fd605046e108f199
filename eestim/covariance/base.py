"""The sandwich, what a covariance rule returns, and what rules share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector
from eestim._linalg import NEAR_SINGULAR, Factor, equilibrated_factor
from eestim.equations import (
    EstimatingEquation,
    Working,
    labels_of,
    require,
)
from eestim.errors import IdentificationError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = [
    "Covariance",
    "CovarianceRule",
    "covariance_of",
    "equation_sandwich",
    "influence_of",
    "label_text",
    "leverage",
    "resolve_labels",
    "row_psi",
    "sandwich",
    "sensitivity_factor",
    "working_of",
]


@dataclass(frozen=True, slots=True)
class Covariance:
    """What a covariance rule returns.

    Attributes
    ----------
    matrix : (p, p) array
        V, squared standard errors on the diagonal.
    rule : str
        The rule in words, as tables print it.
    citation : str
        Where it is published.
    factor : str
        The finite-sample factor as an expression, empty where there is none.
    dof : (p,) array or float
        Degrees of freedom of each parameter; infinite for the normal law.
    dof_kind : str
        "normal", "n-k", "G-1", "satterthwaite", ...
    n_clusters : tuple of int
        Number of clusters in each way of clustering.
    findings : tuple of Finding
        What a reader of the standard errors should know.
    contrast_dof : callable or None
        Degrees of freedom for the rows of a contrast matrix (m, p) -> (m,).
    replicates : (R, p) array or None
        Draws of theta, for resampling rules.
    coordinates : ((k, k) array, (p, k) array) or None
        `parts` of a covariance computed in other coordinates.
    """

    matrix: Matrix
    rule: str
    citation: str
    factor: str = ""
    dof: Vector | float = float("inf")
    dof_kind: str = "normal"
    n_clusters: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()
    contrast_dof: Callable[[Matrix], Vector] | None = None
    replicates: Matrix | None = None
    coordinates: tuple[Matrix, Matrix] | None = None

    def __post_init__(self) -> None:
        # `replace(spread, matrix=...)` must not leave the parts of another matrix.
        if self.coordinates is not None:
            inner, turn = self.coordinates
            scale = np.sqrt(np.abs(np.diag(self.matrix)))
            apart = np.abs(turn @ inner @ turn.T - self.matrix)
            if (apart > 1e-8 * np.outer(scale, scale)).any():
                raise ValueError(
                    "`coordinates` are not those of `matrix`; pass both, or "
                    "coordinates=None."
                )

    def parts(self) -> tuple[Matrix, Matrix]:
        """Return ``(inner, T)`` with ``matrix = T @ inner @ T.T``, inner well scaled.

        Variances of linear combinations ``c`` are formed as ``(c T) inner (c T)'``:
        from the matrix itself they cancel where a covariate lies far from zero.
        """
        if self.coordinates is not None:
            return self.coordinates
        return self.matrix, np.eye(len(self.matrix))

    def transformed(self, transform: Matrix) -> "Covariance":
        """Return the covariance of ``transform @ eta``, this being that of eta."""
        dof, inner = self.dof, self.contrast_dof
        outer: Callable[[Matrix], Vector] | None = None
        if inner is not None:
            dof, own = inner(transform), getattr(inner, "transformed", None)
            outer = own(transform) if own else lambda rows: inner(rows @ transform)

        inner_matrix, turn = self.parts()
        turn = transform @ turn
        return replace(
            self,
            matrix=turn @ inner_matrix @ turn.T,
            coordinates=(inner_matrix, turn),
            dof=dof,
            contrast_dof=outer,
            replicates=None
            if self.replicates is None
            else self.replicates @ transform.T,
        )


class CovarianceRule(Protocol):
    """A small frozen value: (equation, root) -> covariance."""

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""


def covariance_of(
    equation: EstimatingEquation, root: Root, rule: CovarianceRule
) -> Covariance:
    """Return what ``rule`` gives, computed in the parameterisation of the solver.

    Most rules are equivariant under a linear change of parameters, so a root found in
    better-conditioned coordinates has its covariance computed there too. A rule that
    is not says so (``is_equivariant = False``); one with choices that are not (an
    automatic bandwidth) makes them in the user's coordinates first (``fixed_at``).
    """
    fixed_at = getattr(rule, "fixed_at", None)
    if fixed_at is not None:
        rule = fixed_at(equation, root)
    if root.working is None or not getattr(rule, "is_equivariant", True):
        return rule(equation, root)
    inner, eta, transform = root.working
    there = Root(eta, root.status, root.residual, root.steps)
    return rule(inner, there).transformed(transform)


def sensitivity_factor(
    sensitivity: Matrix, names: Sequence[str] | None = None, error: float = 0.0
) -> Factor:
    """Return the factors of a full-rank A.

    Parameters
    ----------
    error : float
        Relative error of the entries, 0 for an analytic derivative.

    Raises
    ------
    IdentificationError
        If A is not square or singular to that accuracy, naming the free direction.
    """
    if sensitivity.shape[0] != sensitivity.shape[1]:
        raise IdentificationError(
            f"`sensitivity` has shape {sensitivity.shape}; a sandwich needs as many "
            "equations as parameters (over-identified equations need GMM)."
        )
    factor = equilibrated_factor(sensitivity, max(NEAR_SINGULAR, 10.0 * error))
    return factor.require_full_rank(names)


def sandwich(
    sensitivity: Matrix,
    meat: Matrix,
    n_units: float,
    *,
    names: Sequence[str] | None = None,
    error: float = 0.0,
) -> Matrix:
    r"""Return the covariance of a root of :math:`\sum_i \psi_i(\theta) = 0`.

    .. math:: V = A^{-1} M A^{-\top} / n, \quad A \text{ not always symmetric.}

    Parameters
    ----------
    sensitivity : (p, p) array
        Minus the mean derivative of psi, A.
    meat : (p, p) array
        Variance of psi for one unit, M.
    n_units : float
        Number of independent units, n.
    names : sequence of str, optional
        Parameter names for the error message.
    error : float
        Relative error of A, 0 where it is analytic.

    Raises
    ------
    IdentificationError
        If the sensitivity is singular to working precision.

    References
    ----------
    Zeileis (2006), J. Stat. Softw. 16(9), eqs. 4-6.

    Examples
    --------
    The mean of n values of variance 4 has variance 4 / n.

    >>> sandwich(np.eye(1), np.array([[4.0]]), n_units=100)
    array([[0.04]])
    """
    factor = sensitivity_factor(sensitivity, names, error)
    half = factor.solve(meat)
    covariance: Matrix = factor.solve(half.T).T / n_units
    symmetric: Matrix = (covariance + covariance.T) / 2
    return symmetric


def equation_sandwich(
    equation: EstimatingEquation, sensitivity: Matrix, meat: Matrix
) -> Matrix:
    """Return the sandwich of an equation, with its names and derivative error."""
    error = float(getattr(equation, "derivative_error", 0.0))
    return sandwich(
        sensitivity, meat, equation.n_units, names=equation.names, error=error
    )


def influence_of(psi: Matrix, factor: Factor) -> Matrix:
    r"""Return the influence of each unit, :math:`A^{-1} \psi_i`, (n, p).

    ``theta_hat - theta`` is close to the mean of these rows.
    """
    influence: Matrix = factor.solve(psi.T).T
    return influence


def row_psi(equation: EstimatingEquation, theta: Vector) -> Matrix:
    """Return the contributions of rows, before they are summed within units."""
    rows = getattr(equation, "psi_rows", None)
    result: Matrix = equation.psi(theta) if rows is None else rows(theta)
    return result


def resolve_labels(
    equation: EstimatingEquation, label: Any, argument: str, n_rows: int | None = None
) -> tuple[IntVector, int]:
    """Return codes and the number of groups of a column name or an array of labels.

    Parameters
    ----------
    equation : EstimatingEquation
    label : str or (n_rows,) array
        A name is looked up in the data of the equation; an array that is indexed
        (a pandas Series) is aligned with the rows kept where rows were dropped.
    argument : str
        Name in error messages.
    n_rows : int, optional
        Number of rows; that of `row_psi` (n_units) by default.

    Raises
    ------
    CapabilityError
        If a name was given and the equation has no data to look it up in.
    DataError
        If labels are missing, or there is not one a row.
    """
    if isinstance(label, str):
        column = require(
            equation,
            "column",
            f"`{argument}={label!r}`",
            "Pass the labels as an array.",
        )
        label = column(label)
    else:
        align = getattr(equation, "aligned", None)
        label = align(label) if align is not None else label
    count = n_rows if n_rows is not None else _row_count(equation)
    return labels_of(label, argument, count)


def _row_count(equation: EstimatingEquation) -> int:
    return int(getattr(equation, "n_observations", equation.n_units))


def leverage(working: Working) -> Vector:
    r"""Return the diagonal of the weighted hat matrix, (n,).

    .. math:: h_i = W_i x_i^\top (X^\top W X)^{-1} x_i.

    References
    ----------
    Pregibon (1981), Ann. Statist. 9(4), 705-724.

    Examples
    --------
    >>> ones = np.ones((4, 1))
    >>> leverage(Working(ones, np.ones(4), np.zeros(4), 1.0))
    array([0.25, 0.25, 0.25, 0.25])
    """
    root = np.sqrt(working.weight)[:, None] * working.design
    basis, triangular = np.linalg.qr(root)
    size = np.abs(np.diag(triangular))
    if size.min() <= 1e-12 * size.max() * len(size):
        equilibrated_factor(root.T @ root).require_full_rank()
    diagonal: Vector = np.einsum("ij,ij->i", basis, basis)
    return diagonal


def working_of(
    equation: EstimatingEquation, theta: Vector, wanted_by: str, instead: str
) -> Working:
    """Return the weighted linear form of a regression.

    Raises
    ------
    CapabilityError
        If the equation is not a regression with a linear predictor.
    """
    result: Working = require(equation, "working", wanted_by, instead)(theta)
    return result


def label_text(label: Any) -> str:
    """Return how a label is called in the description of a rule."""
    if isinstance(label, str):
        return label
    return str(getattr(label, "name", None) or "given labels")
