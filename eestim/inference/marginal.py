r"""Average predictions and average marginal effects of regressions.

.. math:: h = \frac{1}{n} \sum_i g(x_i, \theta)

has two sources of error: theta is estimated, and the covariates are a sample. With
``covariates="sampled"`` h estimates :math:`E\, g(X, \theta)` in the population that the
rows came from, and both count; with ``"fixed"`` it is about these rows, and only the
first does (the delta method, as most packages have it).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.covariance.base import CovarianceRule
from eestim.equations import Evaluated, require
from eestim.errors import InferenceError
from eestim.estimation import Estimate
from eestim.estimation import estimate as fitted
from eestim.inference._covariate_rows import (
    Rows,
    Source,
    effects_of,
    settings_of,
    source_of,
)
from eestim.inference._restricted import require_independent_units

__all__ = ["Covariates", "average_predictions", "marginal_effects"]

Covariates: TypeAlias = Literal["sampled", "fixed"]


def average_predictions(
    estimate: Estimate,
    at: Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    covariates: Covariates = "sampled",
    covariance: CovarianceRule | None = None,
) -> Estimate:
    r"""Return fitted means averaged over rows, some covariates being set to values.

    .. math:: \frac{1}{n} \sum_i \mu(x_i^{(a)}, \hat\theta)

    With a treatment set to its values this is the g-formula.

    Parameters
    ----------
    estimate : Estimate
        Of a regression with `predict`.
    at : mapping, optional
        Values of covariates, ``{"treated": [0, 1]}``: one average for each combination.
        Without it, the average fitted mean.
    data : DataFrame or mapping, optional
        Rows to average over, given and fixed; those of the fit by default.
    covariates : {"sampled", "fixed"}
        Whether the covariates are a sample of the population meant.
    covariance : covariance rule, optional
        For the averages and the parameters together. Needed with sampled covariates
        where the rule of the fit has dependent units (clusters, time series); otherwise
        the covariance of the fit is used, with the covariates' part added.

    Returns
    -------
    Estimate
        Named ``treated=0``, ``treated=1``; differences and ratios by ``functional``.

    Raises
    ------
    CapabilityError
        If the equation has no `predict`.
    InferenceError
        If units depend on each other and no ``covariance`` is given.

    References
    ----------
    Robins (1986); Stefanski and Boos (2002), Am. Stat. 56, 29-38; Bartus (2005), Stata
    J. 5, 309-329.

    Examples
    --------
    >>> import pandas as pd, eestim as ee
    >>> table = pd.DataFrame({"y": [1.0, 2, 4, 3, 7, 5], "a": [0, 0, 0, 1, 1, 1],
    ...                       "x": [0.0, 1, 2, 0, 1, 2]})
    >>> fit = ee.estimate(ee.ols("y ~ a + x", table))
    >>> average_predictions(fit, {"a": [0, 1]}).params.round(3).to_dict()
    {'a=0': 2.333, 'a=1': 5.0}
    """
    source = source_of(estimate, data, is_sampled=_is_sampled(covariates))
    settings = settings_of(at or {}, source.table)
    labels, parts = [], []
    for setting in settings:
        labels.append(
            ", ".join(f"{name}={value}" for name, value in setting.items()) or "average"
        )
        parts.append(source.mean(source.table.assign(**setting)).value())
    return _averaged(estimate, source, labels, parts, covariates, covariance)


def marginal_effects(
    estimate: Estimate,
    variables: str | Sequence[str] | Mapping[str, Any] | None = None,
    *,
    data: Any = None,
    covariates: Covariates = "sampled",
    covariance: CovarianceRule | None = None,
) -> Estimate:
    r"""Return average marginal effects.

    .. math:: \frac{1}{n} \sum_i \frac{\partial \mu(x_i, \hat\theta)}{\partial x_{ij}}
              \quad \text{or} \quad
              \frac{1}{n} \sum_i \{\mu(x_i^{(b)}, \hat\theta) -
              \mu(x_i^{(a)}, \hat\theta)\}

    Numbers have slopes; columns of zeros and ones, booleans and categories have the
    differences of the other levels from the first.

    Parameters
    ----------
    estimate : Estimate
        Of a regression with `predict`.
    variables : str, sequence of str, or mapping, optional
        Columns of the data (of the design, where it was given as an array); all by
        default. A mapping chooses what to do: ``{"x": "slope", "dose": (10, 20)}``.
    data, covariates, covariance
        As for `average_predictions`.

    Returns
    -------
    Estimate
        Named ``x``, ``dose[20 - 10]``, ``group[b - a]``.

    Raises
    ------
    CapabilityError
        If the equation has no `predict`.
    DataError
        If a variable is unknown, or has no slope.
    InferenceError
        If units depend on each other and no ``covariance`` is given.

    References
    ----------
    Bartus (2005), Stata J. 5, 309-329; Dowd, Greene and Norton (2014), Health Serv.
    Res. 49, 731-750, for the covariates' part of the variance.

    Examples
    --------
    In a linear model the effect is the coefficient:

    >>> import pandas as pd, eestim as ee
    >>> table = pd.DataFrame({"y": [1.0, 2, 4, 3, 7, 5], "x": [0.0, 1, 2, 0, 1, 2]})
    >>> fit = ee.estimate(ee.ols("y ~ x", table))
    >>> effect = marginal_effects(fit)
    >>> bool(np.isclose(effect.params["x"], fit.params["x"], rtol=1e-12))
    True
    """
    source = source_of(estimate, data, is_sampled=_is_sampled(covariates))
    labels, parts = [], []
    for name, how in effects_of(variables, source).items():
        if how == "slope":
            labels.append(name)
            parts.append(source.slope(name))
            continue
        for low, high in how:
            labels.append(f"{name}[{high} - {low}]")
            upper = source.mean(source.table.assign(**{name: high})).value()
            lower = source.mean(source.table.assign(**{name: low})).value()
            parts.append(Rows(upper.value - lower.value, upper.slope - lower.slope))
    return _averaged(estimate, source, labels, parts, covariates, covariance)


def _is_sampled(covariates: str) -> bool:
    if covariates not in get_args(Covariates):
        raise ValueError(
            f'`covariates` must be "sampled" or "fixed"; got {covariates!r}.'
        )
    return covariates == "sampled"


# ------------------------------------------------------------------------ variance


def _averaged(
    estimate: Estimate,
    source: Source,
    labels: Sequence[str],
    parts: Sequence[Rows],
    covariates: str,
    covariance: CovarianceRule | None,
) -> Estimate:
    """Return the averages as an Estimate."""
    share = source.weights / source.weights.sum()
    value = np.array([share @ part.value for part in parts])
    slope = np.array([share @ part.slope for part in parts])
    if covariates == "fixed":
        base = estimate if covariance is None else estimate.with_covariance(covariance)
        return base._linear(value, slope, tuple(labels))
    apart = np.stack([part.value for part in parts], axis=1) - value
    if source.is_frequency:
        apart = np.repeat(apart, source.weights.astype(int), axis=0)
    else:
        apart = apart * (len(share) * share)[:, None]
    if covariance is not None:
        return _jointly(estimate, value, slope, apart, tuple(labels), covariance)
    try:
        require_independent_units(estimate, 'covariates="sampled"')
    except InferenceError as error:
        raise InferenceError(
            f"{error} Or pass the rule as `covariance=`, for parameters and averages "
            'together, or covariates="fixed".'
        ) from None
    return _with_sampling(estimate._linear(value, slope, tuple(labels)), apart)


def _with_sampling(fixed: Estimate, apart: Matrix) -> Estimate:
    r"""Add the covariates' part to the variance of averages.

    .. math::
        G V G^\top + \frac{1}{n^2} \sum_i (d_i d_i^\top + d_i u_i^\top + u_i d_i^\top),
        \quad d_i = g(x_i) - h, \quad u_i = G A^{-1} \psi_i .
    """
    n = len(apart)
    influence = fixed.equation.psi(fixed.theta)
    cross = apart.T @ influence
    added = (apart.T @ apart + cross + cross.T) / n**2
    spread = replace(
        fixed.spread,
        matrix=fixed.spread.matrix + added,
        coordinates=None,
        rule=f"{fixed.spread.rule}, covariates sampled",
        contrast_dof=None,
        replicates=None,
    )
    rows = Evaluated(
        fixed.names, influence + apart, np.eye(len(fixed.names)), fixed.theta
    )
    if not (np.diag(spread.matrix) > 0).all():
        raise InferenceError(
            "the variance of an average is not positive with the covariates' part; "
            "pass covariance=ee.HC(0), or covariates='fixed'."
        )
    return replace(fixed, spread=spread, equation=rows)


@dataclass(frozen=True, slots=True)
class _Joint:
    """The equations of the fit and of its averages, at their root."""

    fit: Any
    names: tuple[str, ...]
    table: Matrix
    slope: Matrix

    @property
    def n_units(self) -> int:
        return len(self.table)

    def psi(self, theta: Vector) -> Matrix:  # noqa: ARG002 - tabulated
        return self.table

    def sensitivity(self, theta: Vector) -> Matrix:  # noqa: ARG002 - tabulated
        return self.slope

    def column(self, name: str) -> Any:
        return require(self.fit, "column", f"the labels {name!r}", "Pass an array.")(
            name
        )

    def aligned(self, values: Any) -> Any:
        align = getattr(self.fit, "aligned", None)
        return values if align is None else align(values)


def _jointly(
    estimate: Estimate,
    value: Vector,
    slope: Matrix,
    apart: Matrix,
    labels: tuple[str, ...],
    covariance: CovarianceRule,
) -> Estimate:
    """Return the averages with a rule for the stacked equations."""
    p, m = len(estimate.names), len(value)
    A = np.zeros((p + m, p + m))
    A[:p, :p] = estimate.equation.sensitivity(estimate.theta)
    A[p:, :p], A[p:, p:] = -slope, np.eye(m)
    table = np.concatenate([estimate.equation.psi(estimate.theta), apart], axis=1)
    names = (*(f"theta[{j}]" for j in range(p)), *labels)
    joint = _Joint(estimate.equation, names, table, A)
    made = fitted(joint, covariance, root=np.concatenate([estimate.theta, value]))
    return made._linear(value, np.eye(p + m)[p:], labels)
