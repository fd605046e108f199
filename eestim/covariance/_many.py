"""Variances of single errors in a linear model with many covariates: arrays only.

Residuals of a fit with K covariates on n rows are shrunk and mixed by M = I - H, so
their squares are biased for the variances of the errors by a share of order K / n.
Both estimators here undo that exactly, for any heteroskedasticity.
"""

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, cg

from eestim._arrays import Matrix, Vector, show_rows
from eestim._linalg import equilibrated_factor
from eestim.errors import InferenceError

__all__ = [
    "confounded_pairs",
    "hck_variances",
    "leave_out_variances",
    "orthonormal_basis",
]

_DIRECT = 4000  # rows up to which the (n, n) matrix M∘M is formed
_FULL_LEVERAGE = 1e-10
_SINGULAR = 1e-10  # eigenvalue of M∘M relative to the largest, which is at most 1
_SOLVED = 1e-13  # relative residual of the iterative solution


def orthonormal_basis(design: Matrix) -> Matrix:
    """Return an orthonormal basis of the columns of a design, (n, k).

    Raises
    ------
    IdentificationError
        If the columns are collinear.
    """
    size = np.sqrt(np.square(design).sum(axis=0))
    scaled = design / np.where(size > 0, size, 1.0)
    basis, triangular = np.linalg.qr(scaled)
    left = np.abs(np.diag(triangular))
    if left.min(initial=1.0) <= 1e-11:
        equilibrated_factor(scaled.T @ scaled).require_full_rank()
    return basis


def _annihilator_diagonal(basis: Matrix) -> Vector:
    """Return the diagonal of M, or raise where a row determines its own fit."""
    diagonal: Vector = 1.0 - np.einsum("ij,ij->i", basis, basis)
    rows = np.flatnonzero(diagonal < _FULL_LEVERAGE)
    if len(rows):
        raise InferenceError(
            f"{show_rows(rows)} have leverage 1 (a parameter of their own), so nothing "
            "in the data tells their error variance; drop those rows and the "
            "parameters that only they determine."
        )
    return diagonal


def leave_out_variances(basis: Matrix, response: Vector, residual: Vector) -> Vector:
    r"""Return the leave-one-out estimates of the error variances.

    .. math:: \hat\sigma_i^2 = y_i \hat e_i / M_{ii} = y_i (y_i - x_i^\top
        \hat\beta_{-i}), \qquad E \hat\sigma_i^2 = \sigma_i^2 .

    Single values may be negative.

    Parameters
    ----------
    basis : (n, k) array
        Orthonormal basis of the design.
    response, residual : (n,) arrays

    Raises
    ------
    InferenceError
        If a row has leverage one.

    References
    ----------
    Kline, Saggio and Sølvsten (2020), Econometrica 88, eq. 5; Jochmans (2022), J. Am.
    Stat. Assoc. 117, 887-896.

    Examples
    --------
    >>> basis = np.full((4, 1), 0.5)
    >>> y = np.array([1.0, 2.0, 3.0, 6.0])
    >>> leave_out_variances(basis, y, y - y.mean()).round(6)
    array([-2.666667, -2.666667,  0.      , 24.      ])
    """
    return response * residual / _annihilator_diagonal(basis)


def hck_variances(basis: Matrix, residual: Vector) -> tuple[Vector, Matrix]:
    r"""Return estimates of the error variances from all squared residuals.

    .. math:: \hat\sigma^2 = (M \circ M)^{+} \hat e^2, \qquad
        E\, g^\top \hat\sigma^2 = g^\top \sigma^2 \ \text{if}\ g \perp
        \ker (M \circ M),

    as :math:`E \hat e_i^2 = \sum_j M_{ij}^2 \sigma_j^2`. Single values may be
    negative.

    Parameters
    ----------
    basis : (n, k) array
        Orthonormal basis of the design, so that ``M = I - basis basis'``.
    residual : (n,) array

    Returns
    -------
    variances : (n,) array
    null : (n, m) array
        Orthonormal basis of the kernel of M∘M, m = 0 where it is invertible (every
        leverage below one half suffices). Weighted sums of the variances that are
        orthogonal to it are unbiased.

    Raises
    ------
    InferenceError
        If a row has leverage one, or n is above 4000 and some leverage is at least
        1/2 (so that an iterative solution is not safe).

    References
    ----------
    Cattaneo, Jansson and Newey (2018), J. Am. Stat. Assoc. 113, 1350-1361, section
    3.2.

    Examples
    --------
    For a mean the weights make the average variance n / (n - 1) times that of the
    residuals:

    >>> e = np.array([-1.0, -1.0, 0.0, 2.0])
    >>> variances, null = hck_variances(np.full((4, 1), 0.5), e)
    >>> float(variances.mean().round(12)), null.shape
    (2.0, (4, 0))
    """
    diagonal = _annihilator_diagonal(basis)
    if len(residual) <= _DIRECT:
        return _direct(basis, residual**2)
    if diagonal.min() <= 0.5:
        raise InferenceError(
            f"HCK on {len(residual)} rows solves for the error variances iteratively, "
            f"which needs every leverage below 1/2; the largest is "
            f"{1 - diagonal.min():.3f}. Use LeaveOut(), which needs leverages below 1."
        )
    return _iterative(basis, diagonal, residual**2), np.empty((len(residual), 0))


def _direct(basis: Matrix, squares: Vector) -> tuple[Vector, Matrix]:
    n = len(squares)
    squared = (np.eye(n) - basis @ basis.T) ** 2
    factor, info = linalg.lapack.dpotrf(squared)
    if info == 0:
        norm = float(np.abs(squared).sum(axis=0).max())
        if float(linalg.lapack.dpocon(factor, norm)[0]) > _SINGULAR:
            solution: Vector = linalg.lapack.dpotrs(factor, squares)[0]
            return solution, np.empty((n, 0))
    values, vectors = np.linalg.eigh(squared)
    kept = values > _SINGULAR * values[-1]
    seen, null = vectors[:, kept], vectors[:, ~kept]
    least: Vector = seen @ ((seen.T @ squares) / values[kept])
    return least, null


def _iterative(basis: Matrix, diagonal: Vector, squares: Vector) -> Vector:
    """Solve by conjugate gradients with products of order n k^2, memory n k.

    With every M_ii above one half M∘M is diagonally dominant: its row sums are M_ii.
    """
    n = len(squares)
    plain = 2 * diagonal - 1  # M_ij^2 = (1 - 2 h_i) 1{i=j} + (q_i' q_j)^2

    def product(v: Vector) -> Vector:
        inner = basis.T @ (v[:, None] * basis)
        result: Vector = plain * v + np.einsum("ij,ij->i", basis @ inner, basis)
        return result

    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)
    start = squares / diagonal**2
    solution, info = cg(operator, squares, x0=start, rtol=_SOLVED, maxiter=500)
    if info != 0:
        raise InferenceError(
            "HCK: the linear system for the error variances did not converge in 500 "
            "steps; use LeaveOut()."
        )
    result: Vector = solution
    return result


def confounded_pairs(weights: Matrix, null: Matrix) -> npt.NDArray[np.bool_]:
    r"""Return which entries of V the squared residuals cannot tell, (p, p).

    .. math:: V_{jk} = \sum_i z_{ij} z_{ik} \sigma_i^2 \ \text{is not estimable if}
        \ \sum_i \nu_i z_{ij} z_{ik} \ne 0 \ \text{for a}\ \nu \in
        \ker (M \circ M).

    Parameters
    ----------
    weights : (n, p) array
        z, rows of the design times the inverse of A (any scale).
    null : (n, m) array
        From `hck_variances`.
    """
    p = weights.shape[1]
    found = np.zeros((p, p), dtype=bool)
    for direction in null.T:
        share = weights.T @ (weights * direction[:, None])
        size = np.abs(weights).T @ (np.abs(weights) * np.abs(direction)[:, None])
        found |= np.abs(share) > 1e-6 * np.maximum(size, 1e-300)
    return found
