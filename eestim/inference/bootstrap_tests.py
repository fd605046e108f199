"""Bootstrap tests of linear restrictions by studentized (Wald) replicates."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eestim._arrays import Matrix, Vector, as_float, check_finite
from eestim.covariance._least_squares import is_linear
from eestim.covariance._studentized import studentized_draws, wald_statistics
from eestim.covariance.bootstrap import Bootstrap
from eestim.errors import (
    CapabilityError,
    DataError,
    IdentificationError,
    InferenceError,
)
from eestim.findings import Finding
from eestim.inference._replicates import resampling_of

if TYPE_CHECKING:
    from eestim.estimation import Estimate

__all__ = ["BootstrapTest", "bootstrap_p_value", "bootstrap_test"]

_WILD = ("wild", "wild-cluster", "multiplier")


@dataclass(frozen=True, slots=True)
class BootstrapTest:
    r"""A bootstrap test of :math:`R\theta = r`.

    Attributes
    ----------
    statistic : float
        The Wald statistic of the data with the plain sandwich (HC0, or CR0).
    p : float
        Share of replicates at least as large, the data counted as one of them.
    dof : int
        Number of restrictions.
    replicates : (R,) array
        Wald statistics of the replicates, around the value that is true of them.
    rule : str
        The resampling rule in words.
    is_null_imposed : bool
        Whether residuals are those of the fit under the hypothesis.
    findings : tuple of Finding
        Refits that failed; they count as replicates at least as large.
    """

    statistic: float
    p: float
    dof: int
    replicates: Vector
    rule: str
    is_null_imposed: bool
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        imposed = "null imposed" if self.is_null_imposed else "around the estimate"
        return (
            f"Wald statistic {self.statistic:.4g}, {self.dof} restriction"
            f"{'s' if self.dof > 1 else ''}, p = {self.p:.4f} ({self.rule}, {imposed})"
        )


def bootstrap_p_value(statistic: float, replicates: Vector, failed: int = 0) -> float:
    r"""Return :math:`(1 + \#\{T^*_r \ge T\}) / (R + 1)`.

    Replicates within rounding of the statistic count as equal, because draws of few
    clusters repeat it; failed refits count as larger.

    References
    ----------
    Davison and Hinkley (1997), Bootstrap Methods and their Application, eq. 4.11.

    Examples
    --------
    >>> bootstrap_p_value(2.0, np.array([1.0, 2.0, 3.0]))
    0.75
    """
    larger = int((replicates >= statistic * (1.0 - 1e-10)).sum()) + failed
    return (1.0 + larger) / (len(replicates) + failed + 1.0)


def bootstrap_test(
    estimate: "Estimate",
    R: Any,
    r: Any = None,
    *,
    by: Bootstrap | None = None,
    impose_null: bool | None = None,
) -> BootstrapTest:
    r"""Test :math:`R\theta = r` against the law of bootstrap Wald statistics.

    .. math:: T = (R\hat\theta - r)^\top (R V R^\top)^{-1} (R\hat\theta - r), \quad
        T^* = (R\delta^*)^\top (R V^* R^\top)^{-1} R\delta^* .

    With a wild-cluster rule and the hypothesis imposed this is the wild cluster
    bootstrap-t of Cameron, Gelbach and Miller (2008), which keeps its level with few
    clusters where the clustered t test does not.

    Parameters
    ----------
    estimate : Estimate
    R : (m, p) array, or sequence of parameter names
        Names test that those parameters are zero.
    r : (m,) array, optional
        Zero by default.
    by : Bootstrap, optional
        ``Bootstrap(kind="wild")`` by default; clusters must be named here.
    impose_null : bool, optional
        Draw residuals under the hypothesis: wild kinds of a linear model only, and
        the default there.

    Raises
    ------
    InferenceError
        If the estimate is clustered and `by` is not given.
    CapabilityError
        If the hypothesis cannot be imposed.

    References
    ----------
    Cameron, Gelbach and Miller (2008), Rev. Econ. Stat. 90, 414-427; Kline and Santos
    (2012), J. Econom. Methods 1, 23-41.

    Examples
    --------
    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 3.0, 4.0, 6.0, 8.0]))
    >>> bootstrap_test(fit, [[1.0]], [4.0]).p
    1.0
    """
    contrasts = estimate._contrasts(R)
    target = np.zeros(len(contrasts))
    if r is not None:
        target = check_finite(np.atleast_1d(as_float(r, "r")), "r")
    _check_restrictions(contrasts, target)
    resampling_of(estimate, None, None, by)  # refuses to ignore dependence
    rule = Bootstrap("wild") if by is None else by
    can_impose = rule.kind in _WILD and is_linear(estimate.equation)
    imposed = can_impose if impose_null is None else impose_null
    if imposed and not can_impose:
        raise CapabilityError(
            "`impose_null=True` needs a linear model and a bootstrap of kind "
            f"{_WILD}; leave it out to draw around the estimate."
        )
    null = (contrasts, target) if imposed else None
    drawn = studentized_draws(estimate.equation, estimate.root, rule, null)
    gap = contrasts @ estimate.theta - target
    own = contrasts @ drawn.own @ contrasts.T
    statistic = float(wald_statistics(gap[None], own[None])[0])
    if not np.isfinite(statistic):
        raise InferenceError(
            f"the covariance of the {len(contrasts)} restrictions has lost rank (fewer "
            "units or clusters than restrictions); test fewer of them."
        )
    replicates = wald_statistics(
        drawn.moved @ contrasts.T, contrasts @ drawn.spread @ contrasts.T
    )
    return BootstrapTest(
        statistic,
        bootstrap_p_value(statistic, replicates, len(drawn.failures)),
        len(contrasts),
        replicates,
        drawn.text,
        imposed,
        drawn.findings,
    )


def _check_restrictions(contrasts: Matrix, target: Vector) -> None:
    if target.shape != (len(contrasts),):
        raise DataError(
            f"`r` has shape {target.shape} for {len(contrasts)} restrictions."
        )
    size = np.linalg.norm(contrasts, axis=1, keepdims=True)
    if (size == 0).any() or np.linalg.matrix_rank(contrasts / size) < len(contrasts):
        raise IdentificationError(
            f"`R` has {len(contrasts)} rows that are not independent; drop the "
            "redundant restrictions."
        )
