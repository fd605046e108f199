"""Pooling of estimates from multiply imputed data sets by Rubin's rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance.base import Covariance
from eestim.errors import DataError, InferenceError
from eestim.estimation import Estimate
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["Pooled", "PooledDof", "barnard_rubin_dof", "pool"]


def barnard_rubin_dof(
    within: Vector, between: Vector, m: int, complete: Vector | float
) -> Vector:
    r"""Return the degrees of freedom of pooled estimates.

    .. math::
        \lambda = \frac{(1 + 1/m) B}{T}, \quad
        \nu_{old} = \frac{m - 1}{\lambda^2}, \quad
        \nu_{obs} = \frac{\nu_c + 1}{\nu_c + 3} \nu_c (1 - \lambda), \quad
        \frac{1}{\nu} = \frac{1}{\nu_{old}} + \frac{1}{\nu_{obs}} .

    Parameters
    ----------
    within, between : (p,) arrays
        Mean of the variances, and variance of the estimates.
    m : int
        Number of imputations.
    complete : (p,) array or float
        :math:`\nu_c`, degrees of freedom of complete data; infinite gives
        :math:`\nu_{old}`, the rule of Rubin (1987).

    References
    ----------
    Barnard and Rubin (1999), Biometrika 86, 948-955.

    Examples
    --------
    >>> barnard_rubin_dof(np.ones(1), np.ones(1), 4, np.inf).round(6)
    array([9.72])
    """
    inflated = (1.0 + 1.0 / m) * between
    share = inflated / (within + inflated)
    nu = np.broadcast_to(np.asarray(complete, dtype=np.float64), share.shape)
    finite = np.where(np.isinf(nu), 1.0, nu)
    # 1 / nu_obs; 0 where complete data have the normal law.
    with np.errstate(divide="ignore"):
        observed = (finite + 3.0) / ((finite + 1.0) * finite * (1.0 - share))
        rate = share**2 / (m - 1.0) + np.where(np.isinf(nu), 0.0, observed)
        dof: Vector = 1.0 / rate
    return dof


@dataclass(frozen=True, slots=True)
class PooledDof:
    """Degrees of freedom of linear combinations of pooled parameters.

    Calling it with contrasts (k, p) returns (k,) degrees of freedom.

    Attributes
    ----------
    within, between : (p, p) arrays
    m : int
    complete : float
        Degrees of freedom of complete data, the smallest of the parameters.
    """

    within: Matrix
    between: Matrix
    m: int
    complete: float

    def __call__(self, contrasts: Matrix) -> Vector:
        """Return the degrees of freedom of each row, (k,)."""
        rows = np.atleast_2d(np.asarray(contrasts, dtype=np.float64))
        own = np.einsum("kp,pq,kq->k", rows, self.within, rows)
        spread = np.einsum("kp,pq,kq->k", rows, self.between, rows)
        return barnard_rubin_dof(own, spread, self.m, self.complete)


@dataclass(frozen=True, slots=True)
class Pooled:
    """What a pooled estimate is a function of: influences averaged over imputations.

    They serve functionals; covariance rules and comparisons are refused, because rows
    know nothing of the variance between imputations.

    Attributes
    ----------
    names : tuple of p str
    table : (n, p) array
    theta : (p,) array
    """

    names: tuple[str, ...]
    table: Matrix
    theta: Vector

    @property
    def n_units(self) -> int:
        """Number of independent units, n."""
        return len(self.table)

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - tabulated
        """Return the average influences, (n, p)."""
        return self.table

    def sensitivity(self, theta: Vector) -> Matrix:
        """Return the identity."""
        return np.eye(len(theta))

    def refuse_rows(self) -> NoReturn:
        """Raise: a covariance from these rows would leave out the imputations.

        Raises
        ------
        InferenceError
            Always.
        """
        raise InferenceError(
            "a pooled estimate has no covariance but the pooled one: rows leave out "
            "the variance between imputations. Fit (or compare) within each imputation "
            "and pool the results."
        )

    def moments(self, theta: Vector) -> NoReturn:  # noqa: ARG002 - refused
        """Raise, as `refuse_rows`."""
        self.refuse_rows()

    def psi_rows(self, theta: Vector) -> NoReturn:  # noqa: ARG002 - refused
        """Raise, as `refuse_rows`."""
        self.refuse_rows()


def pool(
    estimates: Sequence[Estimate], *, complete_dof: float | None = None
) -> Estimate:
    r"""Return the estimate pooled over multiply imputed data sets.

    .. math::
        \bar Q = \frac{1}{m} \sum_k \hat\theta_k, \qquad
        T = \bar U + \Big(1 + \frac{1}{m}\Big) B,

    with the mean of the covariances :math:`\bar U` and the covariance of the estimates
    B, and t intervals with the degrees of freedom of Barnard and Rubin.

    Parameters
    ----------
    estimates : sequence of m >= 2 Estimates
        The same equation fitted to each imputation, with any covariance rule.
    complete_dof : float, optional
        Degrees of freedom without missing data: by default those of the fits where
        they are finite, else n - p.

    Raises
    ------
    DataError
        If there are fewer than two, or they differ in parameters or units.

    References
    ----------
    Rubin (1987), Multiple Imputation for Nonresponse in Surveys, section 3.1; Barnard
    and Rubin (1999), Biometrika 86, 948-955.

    Examples
    --------
    >>> import eestim as ee
    >>> fits = [ee.estimate(ee.mean([1.0, 2.0, 6.0, x]), ee.HC(1)) for x in (3.0, 4.0)]
    >>> pooled = pool(fits)
    >>> pooled.params.to_dict(), pooled.se.round(4).to_dict()
    ({'mean': 3.125}, {'mean': 1.1157})
    """
    fits = tuple(estimates)
    _check_alike(fits)
    m, names = len(fits), fits[0].names
    thetas = np.array([fit.theta for fit in fits])
    theta = thetas.mean(axis=0)
    within = np.mean([fit.spread.matrix for fit in fits], axis=0)
    between = np.atleast_2d(np.cov(thetas, rowvar=False))
    complete = _complete_dof(fits, complete_dof)
    total = within + (1.0 + 1.0 / m) * between
    law = PooledDof(within, between, m, float(np.min(complete)))
    dof = barnard_rubin_dof(np.diag(within), np.diag(between), m, complete)
    spread = Covariance(
        total,
        f"Rubin's rules over {m} imputations; within: {fits[0].spread.rule}",
        "Rubin (1987); Barnard and Rubin (1999), Biometrika 86, 948-955",
        factor="1+1/m of the variance between imputations",
        dof=dof,
        dof_kind="Barnard-Rubin",
        n_clusters=fits[0].spread.n_clusters,
        findings=_findings(np.diag(between), np.diag(total), dof, m, names),
        contrast_dof=law,
    )
    rows = np.mean([fit._influence() for fit in fits], axis=0)
    worst = max(fits, key=lambda fit: fit.root.residual).root
    root = Root(theta, worst.status, worst.residual, worst.steps)
    return Estimate(
        names, theta, root, fits[0].n_units, spread, Pooled(names, rows, theta)
    )


def _check_alike(fits: tuple[Estimate, ...]) -> None:
    if len(fits) < 2:
        raise DataError(
            f"`estimates` has {len(fits)}; the variance between imputations needs at "
            "least two (20 or more are usual)."
        )
    for k, fit in enumerate(fits):
        if not isinstance(fit, Estimate):
            raise TypeError(f"`estimates[{k}]` is a {type(fit).__name__}.")
        if fit.names != fits[0].names:
            raise DataError(
                f"`estimates[{k}]` has parameters {list(fit.names)}, the first "
                f"{list(fits[0].names)}; imputations need the same model."
            )
        if fit.n_units != fits[0].n_units:
            raise DataError(
                f"`estimates[{k}]` has {fit.n_units} units, the first "
                f"{fits[0].n_units}; imputed data sets have the same rows."
            )


def _complete_dof(fits: tuple[Estimate, ...], given: float | None) -> Vector:
    p, n = len(fits[0].names), fits[0].n_units
    if given is not None:
        if not given > 0:
            raise ValueError(f"`complete_dof` must be positive; got {given!r}.")
        return np.full(p, float(given))
    own = np.min([np.broadcast_to(fit.spread.dof, p) for fit in fits], axis=0)
    if np.isinf(own).any() and n <= p:
        raise InferenceError(f"n - p = {n} - {p} is not positive; pass `complete_dof`.")
    return np.where(np.isinf(own), float(n - p), own)


def _findings(
    between: Vector, total: Vector, dof: Vector, m: int, names: Sequence[str]
) -> tuple[Finding, ...]:
    """Return the missing information, a warning where m is small for it."""
    share = (1.0 + 1.0 / m) * between / total
    increase = share / (1.0 - share)
    missing = (increase + 2.0 / (dof + 3.0)) / (increase + 1.0)
    worst = int(np.argmax(missing))
    value = float(missing[worst])
    is_few = m < 100.0 * value
    return (
        Finding(
            "fraction of missing information",
            "warn" if is_few else "pass",
            value,
            m / 100.0,
            f"up to {value:.1%} ({names[worst]}) with {m} imputations.",
            f"Use at least {int(np.ceil(100.0 * value))} imputations, so that standard "
            "errors and p values hardly depend on their random draws (White, Royston "
            "and Wood, 2011)."
            if is_few
            else "",
        ),
    )
