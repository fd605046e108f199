"""Functionals of a root that is not unique: which are estimable, and their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.asymptotics.rank import RankReport, describe_direction, rank_report
from eestim.errors import IdentificationError, InterpolationError

__all__ = [
    "Estimability",
    "FunctionalCovariance",
    "estimability",
    "functional_covariance",
]

_RESIDUAL_64, _RESIDUAL_32 = 1e-6, 1e-3  # theory: non-estimable above these
_RANGE_64, _RANGE_32 = 1e-8, 1e-4  # share of the variance of psi outside range A
_NO_NOISE = 1e-14  # of the terms of a variance: their rounding
_CUTS_AGREE = 1e-6  # relative difference of standard errors over candidate ranks


@dataclass(frozen=True, slots=True)
class Estimability:
    r"""Whether each functional is a function of what A identifies.

    Attributes
    ----------
    residual : (k,) array
        :math:`\|(I - A^+A)g\| / \|g\|` after equilibration; this decides.
    raw_residual : (k,) array
        The same in the units of theta.
    tolerance : float
        Largest residual that rounding explains.
    coefficients : (k, q) array
        Minimum-norm solutions c of :math:`A'c = g`, one a row.
    directions : tuple of str
        For each functional, its part in the kernel of A, in words.
    """

    residual: Vector
    raw_residual: Vector
    tolerance: float
    coefficients: Matrix
    directions: tuple[str, ...]

    @property
    def is_estimable(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return one flag a functional, (k,)."""
        return self.residual <= self.tolerance


@dataclass(frozen=True, slots=True)
class FunctionalCovariance:
    """Covariance of estimable functionals, with what it rests on.

    Attributes
    ----------
    covariance : (k, k) array
        Of the k functionals; it carries 1/n.
    se : (k,) array
        Standard errors.
    coefficients : (k, q) array
        The influence of unit i on functional j is ``coefficients[j] @ psi[i]``.
    report : RankReport
        The rank decision.
    """

    covariance: Matrix
    se: Vector
    coefficients: Matrix
    report: RankReport


def _as_rows(gradient: Any, n_parameters: int) -> Matrix:
    rows = np.atleast_2d(as_float(gradient, "gradient"))
    check_finite(rows, "gradient")
    if rows.ndim != 2 or rows.shape[1] != n_parameters:
        raise ValueError(
            f"`gradient` has shape {np.shape(gradient)}; expected (P,) or (k, P) with "
            f"P = {n_parameters} parameters."
        )
    return rows


def _is_single(A: Any) -> bool:
    return np.asarray(A).dtype == np.float32


def _coefficients(report: RankReport, rows: Matrix, rank: int) -> Matrix:
    """Return the minimum-norm solutions c of A'c = g at a given rank, (k, q)."""
    svd = report.decomposition
    inner = (rows * svd.columns) @ svd.right[:, :rank] / svd.values[:rank]
    solution: Matrix = (inner @ svd.left[:, :rank].T) * svd.rows
    outside = np.linalg.qr(svd.rows[:, None] * svd.left[:, rank:])[0]
    least: Matrix = solution - (solution @ outside) @ outside.T
    return least


def _norm_ratio(part: Matrix, whole: Matrix) -> Vector:
    size = np.linalg.norm(whole, axis=1)
    ratio: Vector = np.linalg.norm(part, axis=1) / np.where(size > 0, size, 1.0)
    return ratio


def estimability(
    A: Any, gradient: Any, *, report: RankReport | None = None
) -> Estimability:
    r"""Return how far each functional is from being estimable.

    A functional h of gradient g is estimable when g lies in the row space of A:
    then :math:`A'c = g` has a solution and
    :math:`\sqrt n (h(\hat\theta) - h(\theta_0)) = c'\sqrt n\bar\psi + o_p(1)`.

    Parameters
    ----------
    A : (q, P) array
        Sensitivity.
    gradient : (P,) or (k, P) array
        Gradients of the functionals, one a row.
    report : RankReport, optional
        A rank decision already made for this A.

    Raises
    ------
    ValueError
        If the gradient does not have P columns.

    Examples
    --------
    Only the sum of two coefficients of equal regressors is estimable:

    >>> result = estimability(np.ones((2, 2)), [[1.0, 1.0], [1.0, 0.0]])
    >>> result.is_estimable
    array([ True, False])
    """
    decided = report if report is not None else rank_report(A)
    rows = _as_rows(gradient, decided.n_parameters)
    svd = decided.decomposition
    scaled = rows * svd.columns
    kernel = svd.right[:, decided.rank :]
    inside = scaled @ kernel @ kernel.T
    raw_kernel = decided.null_space
    return Estimability(
        residual=_norm_ratio(inside, scaled),
        raw_residual=_norm_ratio(rows @ raw_kernel @ raw_kernel.T, rows),
        tolerance=_RESIDUAL_32 if _is_single(A) else _RESIDUAL_64,
        coefficients=_coefficients(decided, rows, decided.rank),
        directions=tuple(
            describe_direction(direction * svd.columns, svd.columns, decided.names)
            for direction in inside
        ),
    )


def _refuse_not_estimable(found: Estimability, report: RankReport) -> None:
    bad = np.flatnonzero(~found.is_estimable)
    if bad.size:
        j = int(bad[0])
        raise IdentificationError(
            f"`gradient` row {j} is not estimable: A has rank {report.rank} for "
            f"{report.n_parameters} parameters, and the functional changes along the "
            f"free direction {found.directions[j]} (residual {found.residual[j]:.2e}, "
            f"tolerance {found.tolerance:.0e}). Report a functional that is constant "
            "along it, or fix a parameter that takes part."
        )


def _refuse_no_regular_root(report: RankReport, single: bool) -> None:
    limit = _RANGE_32 if single else _RANGE_64
    if report.range_violation > limit:
        raise IdentificationError(
            f"`M` has {report.range_violation:.2e} of its size outside the range of A "
            f"(limit {limit:.0e}): no regular root, since psi varies along "
            "directions that theta cannot answer, and the variance depends on the "
            "generalised inverse. Drop the redundant equations or combine them by a "
            "weight; `minimum_norm=True` accepts the minimum-norm inverse knowingly."
        )


def _refuse_no_noise(variance: Vector, c: Matrix, M: Matrix) -> None:
    """Raise if a variance is zero beside the terms that it is summed from."""
    terms = np.einsum("kq,qr,kr->k", np.abs(c), np.abs(M), np.abs(c))
    bad = np.flatnonzero(~(variance > _NO_NOISE * terms))
    if bad.size:
        raise InterpolationError(
            f"`gradient` row {int(bad[0])} would have a standard error of zero: no "
            "unit contributes to this functional. It is constant, or the fit "
            "interpolates the data; use `df_debiased`, cross-fitting, or psi of "
            "held-out units."
        )


def _covariance_at(
    report: RankReport, rows: Matrix, M: Matrix, rank: int, n_units: int
) -> Matrix:
    c = _coefficients(report, rows, rank)
    covariance: Matrix = c @ M @ c.T / n_units
    return (covariance + covariance.T) / 2


def _refuse_sensitive(
    report: RankReport, rows: Matrix, M: Matrix, n_units: int, names: str
) -> None:
    """Raise if candidate ranks of an ambiguous A give different standard errors."""
    if not report.is_ambiguous:
        return
    matrices = [_covariance_at(report, rows, M, c.rank, n_units) for c in report.cuts]
    errors = np.array([np.sqrt(np.clip(np.diag(V), 0.0, None)) for V in matrices])
    spread = errors.max(axis=0) - errors.min(axis=0)
    if (spread > _CUTS_AGREE * errors.max(axis=0)).any():
        table = "; ".join(
            f"rank {cut.rank}: se {np.array2string(error, precision=4)}"
            for cut, error in zip(report.cuts, errors, strict=True)
        )
        raise IdentificationError(
            f"{names} has an ambiguous rank (no gap of 1000 around the cut) and the "
            f"standard errors depend on it ({table}). Pass `rank=` after looking at "
            "rank_report(A).cuts, or `derivative_error=` if A is a difference."
        )


def functional_covariance(
    A: Any,
    M: Any,
    gradient: Any,
    n_units: int,
    *,
    derivative_error: float = 0.0,
    rank: int | None = None,
    names: Sequence[str] | None = None,
    terms: Any = None,
    minimum_norm: bool = False,
) -> FunctionalCovariance:
    r"""Return the covariance of estimable functionals when A may be singular.

    .. math:: \operatorname{cov}(h_j, h_k) = c_j' M c_k / n, \quad A'c_j = g_j.

    The value is the same for every generalised inverse exactly when g lies in the
    range of A' and the range of M in the range of A; both are checked.

    Parameters
    ----------
    A : (q, P) array
        Sensitivity.
    M : (q, q) array
        Variance of psi for one unit.
    gradient : (P,) or (k, P) array
        Gradients of the functionals, one a row.
    n_units : int
        Number of independent units, n.
    derivative_error, rank, names, terms
        See `rank_report`.
    minimum_norm : bool
        Accept an M that leaves the range of A, with the minimum-norm inverse.

    Raises
    ------
    IdentificationError
        If a functional is not estimable (the free direction is named), if M leaves
        the range of A, or if the rank is ambiguous and the answer depends on it.
    InterpolationError
        If a variance is zero to rounding.
    ValueError
        If shapes do not fit, or n is not positive.

    References
    ----------
    Rao and Mitra (1971), Generalized Inverse of Matrices and its Applications,
    section 2.2.

    Examples
    --------
    The sum of two indistinguishable effects of variance 4 over n = 100 units:

    >>> A = np.ones((2, 2))
    >>> functional_covariance(A, 4 * A, [1.0, 1.0], n_units=100).covariance
    array([[0.04]])
    """
    if n_units < 1:
        raise ValueError(f"`n_units` is {n_units}; at least one unit is needed.")
    report = rank_report(
        A,
        M,
        derivative_error=derivative_error,
        rank=rank,
        names=names,
        terms=terms,
    )
    meat = as_float(M, "M", ndim=2)
    rows = _as_rows(gradient, report.n_parameters)
    found = estimability(A, rows, report=report)
    _refuse_not_estimable(found, report)
    if not minimum_norm:
        _refuse_no_regular_root(report, _is_single(A))
    _refuse_sensitive(report, rows, meat, n_units, "`A`")
    covariance = _covariance_at(report, rows, meat, report.rank, n_units)
    variance = np.diag(covariance)
    _refuse_no_noise(variance * n_units, found.coefficients, meat)
    se = np.sqrt(variance)
    return FunctionalCovariance(covariance, se, found.coefficients, report)
