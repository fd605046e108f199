"""Statistical tests of the rank of an estimated sensitivity."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.rank import WeakRank, rank_report, scaled_svd
from eestim.errors import InferenceError

__all__ = [
    "RankSelection",
    "RankTest",
    "WeakRank",
    "jacobian_omega",
    "kleibergen_paap",
    "robin_smith",
    "select_rank",
    "weak_rank",
]

_SYMMETRIC = 1e-8  # asymmetry of a symmetric matrix after rounding and scaling
_DEGENERATE = 1e-12  # variance along the null directions, relative to Omega


@dataclass(frozen=True, slots=True)
class RankTest:
    """Test that A has the given rank, against a larger one."""

    rank: int
    statistic: float
    df: int
    p_value: float
    method: str


@dataclass(frozen=True, slots=True)
class RankSelection:
    """Rank by sequential testing; intervals after it are fixed-rank asymptotics."""

    rank: int
    numerical_rank: int
    level: float
    tests: tuple[RankTest, ...]


def jacobian_omega(
    unit_sensitivity: Any, psi: Any = None, sensitivity_derivative: Any = None
) -> Matrix:
    r"""Return the variance of :math:`\sqrt n\,\mathrm{vec}(\hat A)`, columns stacked.

    .. math:: \Omega = n^{-1}\sum_i \phi_i\phi_i', \quad
       \phi_i = \mathrm{vec}(A_i - \bar A)
       + \frac{\partial\,\mathrm{vec} A}{\partial\theta'} A^{+}\psi_i

    where the second term is the influence of the root that was plugged in.

    Parameters
    ----------
    unit_sensitivity : (n, q, P) array
        Minus the derivative of each psi_i.
    psi : (n, q) array, optional
        Contributions at the root.
    sensitivity_derivative : (q P, P) array, optional
        Derivative of the column-stacked mean sensitivity in theta; without it (and
        psi) the root is taken as known.

    Raises
    ------
    ValueError
        If only one of `psi` and `sensitivity_derivative` is given.

    Examples
    --------
    >>> jacobian_omega(np.array([[[1.0]], [[3.0]]]))
    array([[1.]])
    """
    units = as_float(unit_sensitivity, "unit_sensitivity", ndim=3)
    n, q, p = units.shape
    mean = units.mean(axis=0)
    influence = (units - mean).transpose(0, 2, 1).reshape(n, q * p)
    if (psi is None) != (sensitivity_derivative is None):
        raise ValueError(
            "`psi` and `sensitivity_derivative` describe the plugged-in root together; "
            "give both or neither."
        )
    if psi is not None:
        rows = as_float(psi, "psi", ndim=2)
        slope = as_float(sensitivity_derivative, "sensitivity_derivative", ndim=2)
        influence = influence + rows @ np.linalg.pinv(mean).T @ slope.T
    omega: Matrix = influence.T @ influence / n
    return omega


def _null_part(A: Any, omega: Any, rank: int) -> tuple[Matrix, Matrix, float]:
    """Return vec(U2' A V2), its variance, and the size of omega."""
    matrix = check_finite(as_float(A, "A", ndim=2), "A")
    variance = check_finite(as_float(omega, "omega", ndim=2), "omega")
    q, p = matrix.shape
    if variance.shape != (q * p, q * p):
        raise ValueError(
            f"`omega` has shape {variance.shape}; the variance of the column-stacked A "
            f"is ({q * p}, {q * p})."
        )
    if not 0 <= rank < min(q, p):
        raise ValueError(f"`rank` is {rank}; test one in 0..{min(q, p) - 1}.")
    left, _, right = np.linalg.svd(matrix)
    u, v = left[:, rank:], right[rank:].T
    null = (u.T @ matrix @ v).ravel(order="F")
    sides = np.kron(v, u)
    return null, sides.T @ variance @ sides, float(np.linalg.norm(variance, 2))


def _quadratic_form(
    null: Vector, covariance: Matrix, size: float, symmetric: bool
) -> tuple[float, int]:
    """Return null' covariance^- null and its rank.

    A symmetric A repeats its off-diagonal entries, so that the antisymmetric
    directions have no variance; any further degeneracy is refused.
    """
    values, vectors = np.linalg.eigh(covariance)
    kept = values > _DEGENERATE * size
    corank = round(len(null) ** 0.5)
    repeated = corank * (corank - 1) // 2 if symmetric else 0
    if int((~kept).sum()) not in (0, repeated):
        raise InferenceError(
            "`omega` has no variance along the null directions of A, as for a Gram "
            "(Fisher, Gauss-Newton) matrix, whose singular values vanish exactly: "
            "statistical rank tests do not apply. Use the numerical rank of "
            "`rank_report`."
        )
    coordinates = vectors[:, kept].T @ null
    return float(np.sum(coordinates**2 / values[kept])), int(kept.sum())


def _is_symmetric(A: Any) -> bool:
    matrix = as_float(A, "A", ndim=2)
    if matrix.shape[0] != matrix.shape[1]:
        return False
    return bool(np.abs(matrix - matrix.T).max() <= _SYMMETRIC * np.abs(matrix).max())


def kleibergen_paap(A: Any, omega: Any, n_units: int, rank: int) -> RankTest:
    r"""Test that A has a given rank by the Kleibergen-Paap rk statistic.

    .. math:: rk = n\,\hat\lambda'[(V_2 \otimes U_2)'\Omega(V_2 \otimes U_2)]^{-1}
       \hat\lambda \sim \chi^2_{(q-r)(P-r)}, \quad
       \hat\lambda = \mathrm{vec}(U_2'\hat A V_2)

    with U2, V2 the singular vectors beyond the rank r tested. The paper's
    :math:`A_\perp, B_\perp` rotate these, which the statistic does not see. A symmetric
    A (an observed Hessian) has (q - r)(q - r + 1)/2 degrees of freedom.

    Parameters
    ----------
    A : (q, P) array
        Estimated sensitivity, not a Gram matrix.
    omega : (q P, q P) array
        Variance of sqrt(n) vec(A), columns stacked (`jacobian_omega`).
    n_units : int
        Number of independent units.
    rank : int
        The rank under the hypothesis.

    Raises
    ------
    InferenceError
        If omega is degenerate along the null directions, as for a Gram matrix.
    ValueError
        If the shapes or the rank do not fit.

    References
    ----------
    Kleibergen and Paap (2006), J. Econometrics 133, 97-126, eqs. 3-5, theorem 1.

    Examples
    --------
    >>> test = kleibergen_paap(np.diag([1.0, 0.2]), np.eye(4), n_units=100, rank=1)
    >>> round(test.statistic, 10), test.df
    (4.0, 1)
    """
    null, covariance, size = _null_part(A, omega, rank)
    form, df = _quadratic_form(null, covariance, size, _is_symmetric(A))
    statistic = n_units * form
    return RankTest(
        rank=rank,
        statistic=statistic,
        df=df,
        p_value=float(stats.chi2.sf(statistic, df)),
        method="Kleibergen-Paap rk",
    )


def robin_smith(A: Any, omega: Any, n_units: int) -> RankTest:
    r"""Test that a square A lacks one rank, by its smallest singular value.

    .. math:: T = n\sigma_{\min}^2 / \{(v \otimes u)'\Omega(v \otimes u)\} \sim \chi^2_1

    Parameters
    ----------
    A, omega, n_units
        See `kleibergen_paap`, with which this agrees exactly.

    Raises
    ------
    InferenceError
        If omega is degenerate along the null direction, as for a Gram matrix.
    ValueError
        If A is not square.

    References
    ----------
    Robin and Smith (2000), Econometric Theory 16, 151-175, theorem 3.2 at corank 1.

    Examples
    --------
    >>> round(robin_smith(np.diag([1.0, 0.2]), np.eye(4), 100).statistic, 10)
    4.0
    """
    matrix = as_float(A, "A", ndim=2)
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"`A` has shape {matrix.shape}; the corank-one test needs a square one. "
            "Use `kleibergen_paap`."
        )
    rank = len(matrix) - 1
    null, covariance, size = _null_part(matrix, omega, rank)
    statistic = n_units * _quadratic_form(null, covariance, size, symmetric=False)[0]
    return RankTest(
        rank, statistic, 1, float(stats.chi2.sf(statistic, 1)), "Robin-Smith corank 1"
    )


def _equilibrate(A: Any, omega: Any) -> tuple[Matrix, Matrix]:
    """Return A with balanced rows and columns, and the variance of the result."""
    svd = scaled_svd(A)
    factor = np.outer(svd.columns, svd.rows).ravel()
    matrix = svd.rows[:, None] * as_float(A, "A", ndim=2) * svd.columns
    return matrix, factor[:, None] * as_float(omega, "omega", ndim=2) * factor


def select_rank(
    A: Any, omega: Any, n_units: int, *, level: float | None = None
) -> RankSelection:
    r"""Return the rank that sequential Kleibergen-Paap tests do not reject.

    Ranks 0, 1, ... are tested below the numerical rank. Where A has no variance
    along its null directions (Gram matrices) the numerical rank is returned.

    Parameters
    ----------
    A, omega, n_units
        See `kleibergen_paap`; A is equilibrated first.
    level : float, optional
        Level of each test; by default :math:`\min(0.05, n^{-1/2})`, which tends to
        zero as consistency of the selection requires.

    References
    ----------
    Robin and Smith (2000), Econometric Theory 16, 151-175.

    Examples
    --------
    >>> select_rank(np.diag([1.0, 0.01]), np.eye(4), n_units=100).rank
    1
    """
    alpha = min(0.05, n_units**-0.5) if level is None else level
    if not 0 < alpha < 1:
        raise ValueError(f"`level` is {alpha}; choose one inside (0, 1).")
    matrix, variance = _equilibrate(A, omega)
    numerical = rank_report(A).rank
    tests: list[RankTest] = []
    for rank in range(numerical):
        try:
            tests.append(kleibergen_paap(matrix, variance, n_units, rank))
        except InferenceError:  # a Gram matrix: its numerical rank is its rank
            break
        if tests[-1].p_value > alpha:
            return RankSelection(rank, numerical, alpha, tuple(tests))
    return RankSelection(numerical, numerical, alpha, tuple(tests))


def weak_rank(A: Any, omega: Any, n_units: int, *, rank: int | None = None) -> WeakRank:
    r"""Return whether a retained singular value is close to its error.

    .. math:: \min_j \sigma_j / se_j, \quad
       se_j^2 = (v_j \otimes u_j)'\Omega(v_j \otimes u_j)/n

    Below ten standard errors the constant-rank theory is a poor guide: intervals
    may be too short, and rates slower than the square root of n. All values kept are
    compared, since balanced rows and columns may give a weak direction as large a value
    as a strong one, with a larger error.

    Parameters
    ----------
    A, omega, n_units
        See `kleibergen_paap`; A is equilibrated first.
    rank : int, optional
        Rank in use; by default the numerical rank.

    Raises
    ------
    ValueError
        If the rank is zero or larger than A allows.

    Examples
    --------
    >>> weak_rank(np.eye(2), np.eye(4), n_units=25).is_weak
    True
    """
    found = rank_report(A, rank=rank, omega=omega, n_units=n_units)
    if found.weak is None:
        raise ValueError(
            f"`rank` is {found.rank}; no singular value is kept, so none is weak. "
            f"Choose one in 1..{len(found.singular_values)}."
        )
    return found.weak
