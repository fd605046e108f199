"""Wald tests of linear restrictions: rank-aware, chi-squared, F and Hotelling."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import scipy

from eestim._arrays import Matrix, Vector, as_float
from eestim._linalg import symmetric_power
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.findings import Finding

__all__ = [
    "IndependentRestrictions",
    "WaldLaw",
    "WaldTest",
    "hotelling_dof",
    "independent_restrictions",
    "wald_test",
]

WaldLaw: TypeAlias = Literal["chi2", "F", "HTZ", "HTA"]

_RANK = 1e-10  # of singular values of R, and variances, in standard errors
_CONTRADICTS = 1e-8  # a restriction without variance, of the terms in it


@dataclass(frozen=True, slots=True)
class WaldTest:
    r"""A Wald test of :math:`R\theta = r`.

    Attributes
    ----------
    statistic : float
        What is referred to the law: the quadratic form for "chi2", else the F value.
    dof : int
        Number of independent restrictions, the rank of :math:`R V R^\top`.
    dof_denominator : float
        Infinite for "chi2".
    p : float
    law : {"chi2", "F", "HTZ", "HTA"}
    quadratic : float
        :math:`(R\hat\theta - r)^\top (R V R^\top)^{-} (R\hat\theta - r)`.
    scale : float
        The F value is ``scale * quadratic / dof``; one but for the Hotelling laws.
    findings : tuple of Finding
        Restrictions that were redundant.
    """

    statistic: float
    dof: int
    dof_denominator: float
    p: float
    law: WaldLaw
    quadratic: float
    scale: float = 1.0
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        if self.law == "chi2":
            return f"chi2({self.dof}) = {self.statistic:.4g}, p = {self.p:.4g}"
        return (
            f"F({self.dof}, {self.dof_denominator:.4g}) = {self.statistic:.4g}, "
            f"p = {self.p:.4g} ({self.law})"
        )


@dataclass(frozen=True, slots=True)
class IndependentRestrictions:
    """Restrictions reduced to independent ones of unit variance.

    Attributes
    ----------
    contrasts : (rank, p) array
        Combinations of the rows of R whose estimated covariance is the identity.
    difference : (rank,) array
        The same combinations of ``R theta - r``.
    """

    contrasts: Matrix
    difference: Vector

    @property
    def rank(self) -> int:
        """Number of independent restrictions."""
        return len(self.difference)

    @property
    def quadratic(self) -> float:
        """The Wald statistic."""
        return float(self.difference @ self.difference)


def independent_restrictions(
    theta: Vector, covariance: Matrix, restrictions: Matrix, values: Vector
) -> IndependentRestrictions:
    r"""Return independent combinations of restrictions, with unit variance.

    With D the diagonal of V and :math:`R D^{1/2} = P S Q^	op`, the rows of
    :math:`Q^	op D^{-1/2}` say the same as those of R; in them the covariance is
    :math:`Q^	op D^{-1/2} V D^{-1/2} Q = U \Lambda U^	op`, and
    :math:`\Lambda^{-1/2} U^	op` of them have unit variance. The sum of squared
    differences is the Wald statistic with any generalised inverse; neither it nor the
    rank depends on units of measure or on how the restrictions are combined.

    Parameters
    ----------
    theta : (p,) array
    covariance : (p, p) array
    restrictions : (m, p) array
    values : (m,) array

    Raises
    ------
    InferenceError
        If no restriction has a variance, a combination has a negative one, or a
        combination without variance differs from its value (contradictory rows).

    Examples
    --------
    Saying the same thing twice is one restriction:

    >>> twice = np.array([[1.0, 0.0], [2.0, 0.0]])
    >>> found = independent_restrictions(
    ...     np.array([3.0, 1.0]), np.eye(2), twice, np.zeros(2)
    ... )
    >>> found.rank, round(found.quadratic, 12)
    (1, 9.0)
    """
    variance = np.diag(covariance)
    scale = np.sqrt(np.where(variance > 0.0, variance, 1.0))
    scaled = restrictions * scale
    length = np.linalg.norm(scaled, axis=1)
    length = np.where(length > 0.0, length, 1.0)
    left, singular, right = np.linalg.svd(scaled / length[:, None])
    rank = int((singular > _RANK * max(singular[0], 1e-300)).sum())
    combine = left / length[:, None]  # of the rows of R: independent ones first
    combine[:, :rank] /= singular[:rank]
    difference = combine.T @ (restrictions @ theta - values)
    size = np.abs(restrictions) @ np.abs(theta) + np.abs(values)
    rounding = _CONTRADICTS * (np.abs(combine).T @ size)
    _refuse_contradiction(combine[:, rank:], difference[rank:], rounding[rank:])
    standard = covariance / np.outer(scale, scale)
    eigenvalues, vectors = np.linalg.eigh(right[:rank] @ standard @ right[:rank].T)
    if rank == 0 or eigenvalues[-1] <= _RANK:
        raise InferenceError(
            "`R` theta has no variance at all, so there is nothing to test; check that "
            "the rows of `R` are not zero and the covariance is not."
        )
    if eigenvalues[0] < -_RANK:
        raise InferenceError(
            "`R` has a combination whose variance is negative (eigenvalue "
            f"{eigenvalues[0]:.2g} in units of standard errors): the covariance is "
            "indefinite. Use `repair_psd=True`, or fewer ways of clustering."
        )
    kept = eigenvalues > _RANK
    null = vectors[:, ~kept]
    _refuse_contradiction(
        combine[:, :rank] @ null,
        null.T @ difference[:rank],
        np.abs(null).T @ rounding[:rank],
    )
    weights = vectors[:, kept] / np.sqrt(eigenvalues[kept])
    contrasts = weights.T @ (right[:rank] / scale)
    return IndependentRestrictions(contrasts, weights.T @ difference[:rank])


def _refuse_contradiction(
    combine: Matrix, difference: Vector, rounding: Vector
) -> None:
    """Raise where combinations of the rows of R that must vanish do not."""
    wrong = np.abs(difference) > rounding
    if wrong.any():
        share = np.abs(combine[:, int(np.flatnonzero(wrong)[0])])
        rows = np.flatnonzero(share > 1e-6 * share.max()).tolist()
        raise InferenceError(
            f"rows {rows} of `R` have a combination without variance whose value is "
            "not the one in `r`: the restrictions contradict each other, or the "
            "parameter is known exactly. Remove or correct one of these rows."
        )


def hotelling_dof(
    mean: Matrix, covariance: npt.NDArray[np.float64], law: Literal["HTZ", "HTA"]
) -> float:
    r"""Return the degrees of freedom of the Wishart law nearest to a covariance.

    With D the estimated covariance of q contrasts, standardised to
    :math:`E D = I`,

    .. math::
        \nu_{HTZ} = \frac{q (q + 1)}{\sum_{s,t} \mathrm{Var}(d_{st})}, \qquad
        \nu_{HTA} = \frac{2 \sum_{s,t} \mathrm{Var}(d_{st})}
        {\sum_{s,t,u,v} \mathrm{Cov}(d_{st}, d_{uv})^2} .

    HTZ matches the total variance, HTA all covariances by least squares.

    Parameters
    ----------
    mean : (q, q) array
        :math:`E D` before standardising.
    covariance : (q, q, q, q) array
        ``Cov(d_st, d_uv)`` in the same units.
    law : {"HTZ", "HTA"}

    References
    ----------
    Zhang (2012), J. Stat. Plan. Inference 142, 1310-1319; Pustejovsky and Tipton
    (2018), J. Bus. Econ. Stat. 36, 672-683, section 3.2 and supplement.

    Examples
    --------
    A sample covariance of two normals from 11 draws is Wishart with 10:

    >>> one = np.eye(2)
    >>> products = np.einsum("su,tv->stuv", one, one)
    >>> products += np.einsum("sv,tu->stuv", one, one)
    >>> round(hotelling_dof(one, products / 10.0, "HTZ"), 12)
    10.0
    """
    root, rank = symmetric_power(mean, -0.5)
    q = len(mean)
    if rank < q:
        raise InferenceError(
            f"{law}: the expected covariance of {q} contrasts has rank {rank}; the "
            "residuals carry no information on some of them. Test fewer contrasts."
        )
    standard = covariance
    for _ in range(4):  # each step moves the axis it has turned to the end
        standard = np.tensordot(standard, root, axes=(0, 0))
    total = float(np.einsum("stst->", standard))
    if law == "HTZ":
        return q * (q + 1) / total
    return 2.0 * total / float(np.square(standard).sum())


def wald_test(
    estimate: Any,
    R: Any,
    r: Any = None,
    *,
    law: WaldLaw | None = None,
    dof: float | None = None,
) -> WaldTest:
    r"""Return the Wald test of :math:`R\theta = r`.

    .. math:: W = (R\hat\theta - r)^\top (R V R^\top)^{-} (R\hat\theta - r)

    "chi2" refers W to a chi-squared law with :math:`q = \mathrm{rank}\, R V R^\top`,
    "F" W / q to F(q, dof), and the approximate Hotelling laws
    :math:`\frac{\nu - q + 1}{\nu q} W` to :math:`F(q, \nu - q + 1)`, with
    :math:`\nu` from the cluster structure of the design.

    Parameters
    ----------
    estimate : Estimate
    R : (m, p) array
    r : (m,) array or number, optional
        Zero by default.
    law : {"chi2", "F", "HTZ", "HTA"}, optional
        By default "HTZ" where the covariance has Satterthwaite degrees of freedom
        (CR2, CR3), else "F" where it has finite ones, else "chi2".
    dof : float, optional
        Denominator for "F"; the smallest of the tested parameters by default.

    Raises
    ------
    InferenceError
        If there are no more clusters than restrictions, the restrictions contradict
        each other, or too few degrees of freedom are left.
    CapabilityError
        If "HTZ" or "HTA" is asked of a covariance without a working model.

    References
    ----------
    Pustejovsky and Tipton (2018), J. Bus. Econ. Stat. 36, 672-683, eqs. 12-15.

    Examples
    --------
    The mean of 1, 2, 3 has variance (2/3) / 3, so W for mean zero is 18:

    >>> import eestim as ee
    >>> fit = ee.estimate(ee.ols(np.array([1.0, 2.0, 3.0]), np.ones((3, 1))))
    >>> print(wald_test(fit, [[1.0]]))
    chi2(1) = 18, p = 2.209e-05
    """
    if law is not None and law not in get_args(WaldLaw):
        raise ValueError(
            f"`law` must be one of {', '.join(get_args(WaldLaw))}; got {law!r}."
        )
    restrictions, values = _as_restrictions(R, r, len(estimate.names))
    spread = estimate.spread
    wanted = int(np.linalg.matrix_rank(restrictions / _row_sizes(restrictions)))
    _refuse_few_clusters(spread.n_clusters, wanted)
    found = independent_restrictions(
        estimate.theta, spread.matrix, restrictions, values
    )
    law = law or _default_law(spread)
    findings = _rank_findings(len(restrictions), wanted, found.rank)
    if law == "chi2":
        p = float(scipy.stats.chi2.sf(found.quadratic, found.rank))
        return WaldTest(
            found.quadratic, found.rank, np.inf, p, law, found.quadratic, 1.0, findings
        )
    if law == "F":
        below, scale = _denominator(estimate, restrictions, dof), 1.0
    else:
        nu = _hotelling(spread, found, law)
        below = nu - found.rank + 1.0
        scale = below / nu
        if below <= 0.0:
            raise InferenceError(
                f"{law}: {nu:.3g} degrees of freedom do not support {found.rank} "
                "restrictions (nu - q + 1 must be positive); test fewer at a time."
            )
    value = scale * found.quadratic / found.rank
    p = float(scipy.stats.f.sf(value, found.rank, below))
    return WaldTest(value, found.rank, below, p, law, found.quadratic, scale, findings)


def _as_restrictions(R: Any, r: Any, p: int) -> tuple[Matrix, Vector]:
    restrictions = np.atleast_2d(as_float(R, "R"))
    if restrictions.shape[1] != p or not np.isfinite(restrictions).all():
        raise DataError(
            f"`R` has shape {restrictions.shape}; finite rows of {p} coefficients were "
            "expected, one a parameter."
        )
    values = np.zeros(len(restrictions)) if r is None else as_float(r, "r")
    values = np.broadcast_to(values, len(restrictions)) if values.ndim == 0 else values
    if values.shape != (len(restrictions),) or not np.isfinite(values).all():
        raise DataError(
            f"`r` has shape {values.shape}; one finite value for each of "
            f"{len(restrictions)} rows of `R` was expected."
        )
    return restrictions, values


def _row_sizes(restrictions: Matrix) -> Matrix:
    size = np.abs(restrictions).max(axis=1, keepdims=True)
    return np.where(size > 0, size, 1.0)


def _refuse_few_clusters(n_clusters: Sequence[int], rank: int) -> None:
    if n_clusters and min(n_clusters) - 1 < rank:
        raise InferenceError(
            f"`R` has {rank} restrictions, but {min(n_clusters)} clusters give a "
            f"covariance of rank {min(n_clusters) - 1} at most; test fewer "
            "restrictions at a time."
        )


def _default_law(spread: Any) -> WaldLaw:
    if getattr(spread.contrast_dof, "moments", None) is not None:
        return "HTZ"
    return "F" if np.isfinite(np.min(spread.dof)) else "chi2"


def _denominator(estimate: Any, restrictions: Matrix, dof: float | None) -> float:
    if dof is not None:
        if not dof > 0:
            raise ValueError(f"`dof` must be positive; got {dof!r}.")
        return float(dof)
    every = np.broadcast_to(estimate.spread.dof, len(estimate.names))
    return float(every[(restrictions != 0).any(axis=0)].min())


def _hotelling(spread: Any, found: IndependentRestrictions, law: WaldLaw) -> float:
    moments = getattr(spread.contrast_dof, "moments", None)
    if moments is None or law not in ("HTZ", "HTA"):
        raise CapabilityError(
            f'`law="{law}"` needs the moments of a clustered covariance; use '
            'covariance=Clustered(..., kind="CR2") (or dof="satterthwaite"), or '
            '`law="F"`.'
        )
    mean, covariance = moments(found.contrasts)
    return hotelling_dof(mean, covariance, law)


def _rank_findings(rows: int, wanted: int, rank: int) -> tuple[Finding, ...]:
    if rank == rows:
        return ()
    if rank == wanted:
        meaning = f"{rows - rank} of {rows} restrictions follow from the others."
        return (Finding("rank of the restrictions", "pass", rank, rows, meaning),)
    return (
        Finding(
            "rank of the restrictions",
            "warn",
            float(rank),
            float(wanted),
            f"{wanted} independent restrictions, but their covariance has rank {rank}: "
            "some combination of parameters has no variance.",
            "Check that it is identified and not fixed by construction.",
        ),
    )
