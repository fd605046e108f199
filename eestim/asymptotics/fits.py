"""Asymptotics applied to equations and estimates of the package."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eestim._arrays import Matrix, Vector, as_float
from eestim._differentiate import jacobian as difference_jacobian
from eestim._differentiate import response_steps
from eestim.asymptotics.adjusted import AdjustedLogistic, adjusted_logistic
from eestim.asymptotics.designs import constant_column, design_findings
from eestim.asymptotics.estimable import functional_covariance
from eestim.asymptotics.free_roots import as_given, free_root
from eestim.asymptotics.interpolation import (
    interpolation_guard,
    vanishes_to_rounding,
)
from eestim.asymptotics.rank_wald import RootInvariance, root_invariance
from eestim.asymptotics.terms import term_sizes
from eestim.asymptotics.weak import weak_rank_finding
from eestim.covariance.base import Covariance
from eestim.equations import EstimatingEquation, Evaluated
from eestim.errors import (
    CapabilityError,
    ConvergenceError,
    DataError,
    InterpolationError,
)
from eestim.estimation import Estimate
from eestim.findings import Finding
from eestim.roots import Root, root_at

__all__ = ["AdjustedFit", "adjusted_fit", "estimable", "invariance_over_roots"]

_ROOT_RESIDUAL = 0.01  # of the noise: a hundredth of a standard error
_CITATION = "Rao & Mitra (1971), Generalized Inverse of Matrices, sec. 2.2"


def estimable(
    equation: EstimatingEquation,
    h: Callable[[Vector], Any],
    *,
    start: Any = None,
    root: Any = None,
    jacobian: Callable[[Vector], Any] | None = None,
    names: Sequence[str] | None = None,
    rank: int | None = None,
) -> Estimate:
    r"""Return estimates of functionals that are identified though theta is not.

    .. math:: \operatorname{se}(h)^2 = c'Mc/n, \quad A'c = \partial h/\partial\theta

    Parameters
    ----------
    equation : EstimatingEquation
        Its sensitivity may be singular at the root.
    h : callable
        From theta (p,) to a number or vector, constant along the free directions.
    start, root : (p,) array-like, optional
        As in `eestim.estimate`.
    jacobian : callable, optional
        From theta to (k, p); central differences otherwise.
    names : sequence of str, optional
        Names of the values of h.
    rank : int, optional
        Rank to use where the singular values leave it open (`rank_report`).

    Raises
    ------
    IdentificationError
        If a functional is not estimable, naming the free direction.
    InterpolationError
        If psi vanishes at every unit.
    ConvergenceError
        If no root is found.

    Examples
    --------
    Two factors of a mean are not identified, their product is:

    >>> import eestim as ee
    >>> def psi(theta, data):
    ...     a, b = theta
    ...     error = data["y"] - a * b
    ...     return np.column_stack([b * error, a * error])
    >>> model = ee.equation(psi, {"y": np.array([1.0, 2.0, 6.0])}, start=[1.0, 2.0])
    >>> fit = estimable(model, lambda theta: theta[0] * theta[1], names=["ab"])
    >>> fit.params.round(6).to_dict(), fit.se.round(4).to_dict()
    ({'ab': 3.0}, {'ab': 1.2472})
    """
    found = _found(equation, start, root)
    theta = found.theta
    value = np.atleast_1d(as_float(h(theta), "h")).ravel()
    labels = _labels(names, len(value))
    error = float(getattr(equation, "derivative_error", 0.0))
    psi, A = equation.psi(theta), equation.sensitivity(theta)
    _refuse_interpolation(equation, psi, theta)
    slope = _slope(h, jacobian, theta, value)
    result = functional_covariance(
        A,
        psi.T @ psi / len(psi),
        slope,
        equation.n_units,
        derivative_error=error,
        rank=rank,
        names=equation.names,
        terms=term_sizes(equation, theta),
    )
    report = result.report
    weak = weak_rank_finding(equation, theta, report)
    spread = Covariance(
        matrix=result.covariance,
        rule=f"sandwich of estimable functionals (rank {report.rank} of "
        f"{report.n_parameters})",
        citation=_CITATION,
        findings=tuple(
            Finding(
                "free direction",
                "warn",
                float(report.rank),
                float(report.n_parameters),
                f"{text} is not identified.",
                "Report only functionals that are constant along it.",
            )
            for text in report.free_directions()
        )
        + (() if weak is None else (weak,)),
    )
    rows = Evaluated(labels, psi @ result.coefficients.T, np.eye(len(value)), value)
    at = Root(value, found.status, found.residual, found.steps)
    return Estimate(labels, value, at, equation.n_units, spread, rows)


def _found(equation: EstimatingEquation, start: Any, root: Any) -> Root:
    if root is not None:
        return root if isinstance(root, Root) else root_at(as_given(equation), root)
    found = free_root(equation, start)
    _refuse_interpolation(equation, equation.psi(found.theta), found.theta)
    found.require_converged()
    if not found.residual < _ROOT_RESIDUAL:  # Newton is blind along the kernel of A'
        raise ConvergenceError(
            f"`start` leads to a point where psi is {found.residual:.2g} times its "
            "noise (limit 0.01) along directions that A does not see, so it is no "
            "root. Give another `start`."
        )
    return found


def _labels(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if names is None:
        return ("h",) if count == 1 else tuple(f"h[{j}]" for j in range(count))
    if len(names) != count:
        raise DataError(f"`names` has {len(names)} entries for {count} values of h.")
    return tuple(names)


def _slope(
    h: Callable[[Vector], Any],
    jacobian: Callable[[Vector], Any] | None,
    theta: Vector,
    value: Vector,
) -> Matrix:
    if jacobian is not None:
        given = np.atleast_2d(as_float(jacobian(theta), "jacobian"))
        if given.shape != (len(value), len(theta)):
            raise DataError(
                f"`jacobian` has shape {given.shape}; expected "
                f"({len(value)}, {len(theta)})."
            )
        return given

    def values(at: Vector) -> Vector:
        return np.atleast_1d(as_float(h(at), "h")).ravel()

    return difference_jacobian(values, theta, response_steps(values, theta))


def _refuse_interpolation(
    equation: EstimatingEquation, psi: Matrix, theta: Vector
) -> None:
    """Raise if psi is negligible, beside rounding or its size before fitting."""
    if isinstance(equation, Evaluated):
        return  # tabulated at one theta
    if vanishes_to_rounding(equation.psi, theta):
        raise InterpolationError(
            "`equation` interpolates: psi vanishes to rounding at every unit, and a "
            "sandwich would report standard errors of zero. Use a "
            "degrees-of-freedom adjusted interval (`df_debiased`), cross-fitting, or "
            "psi of held-out units."
        )
    start = getattr(equation, "start", None)
    if start is not None:
        before = equation.psi(np.asarray(start, dtype=np.float64))
        if np.median(np.linalg.norm(before, axis=1)) > 0:
            interpolation_guard(psi, before)


def invariance_over_roots(
    equation: EstimatingEquation,
    h: Callable[[Vector], float],
    starts: Sequence[Any],
    *,
    rank: int | None = None,
) -> RootInvariance:
    """Return whether a functional and its error agree over roots from several starts.

    Parameters
    ----------
    equation : EstimatingEquation
        Its sensitivity may be singular.
    h : callable
        From theta to a number.
    starts : sequence of (p,) array-likes
        At least three, well apart.
    rank : int, optional
        See `estimable`.

    Raises
    ------
    ConvergenceError
        If a start leads to no root.
    IdentificationError
        If h is locally not estimable at a root.

    Examples
    --------
    >>> import eestim as ee
    >>> def psi(theta, data):
    ...     a, b = theta
    ...     error = data["y"] - a * b
    ...     return np.column_stack([b * error, a * error])
    >>> model = ee.equation(psi, {"y": np.array([1.0, 2.0, 6.0])}, start=[1.0, 2.0])
    >>> starts = [[2.0, 1.0], [3.0, 0.5], [-1.0, -4.0]]
    >>> invariance_over_roots(model, lambda t: t[0] * t[1], starts).status
    'invariant'
    """
    fits = [estimable(equation, h, start=start, rank=rank) for start in starts]
    return root_invariance(
        [fit.theta[0] for fit in fits], [float(fit.se.iloc[0]) for fit in fits]
    )


@dataclass(frozen=True, slots=True)
class AdjustedFit:
    """A logistic fit with its bias and variance for p of the order of n.

    Attributes
    ----------
    names : tuple of str
        Names of the slopes.
    adjusted : AdjustedLogistic
        Estimates, errors, tests, and the limit they come from.
    findings : tuple of Finding
        Whether the design is Gaussian enough.
    """

    names: tuple[str, ...]
    adjusted: AdjustedLogistic
    findings: tuple[Finding, ...]

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """Return estimate, se, statistic, p, lower and upper, one row a slope."""
        bounds = self.adjusted.interval(level)
        return pd.DataFrame(
            {
                "estimate": self.adjusted.estimate,
                "se": self.adjusted.se,
                "statistic": self.adjusted.statistic,
                "p": self.adjusted.p_value,
                "lower": bounds[:, 0],
                "upper": bounds[:, 1],
            },
            index=list(self.names),
        )

    def interval(self, level: float = 0.95) -> pd.DataFrame:
        """Return estimate, lower and upper, one row a slope."""
        return self.table(level)[["estimate", "lower", "upper"]]


def adjusted_fit(fit: Estimate) -> AdjustedFit:
    """Return a logistic fit adjusted for many covariates (`adjusted_logistic`).

    The statistic and p-value use the observable scale; estimate, error and limits use
    the limit solved from the SLOE estimate.

    Parameters
    ----------
    fit : Estimate
        Of ``ee.glm(..., family="binomial")`` with the logit link, without offset or
        weights.

    Raises
    ------
    CapabilityError
        If the fit is of another kind.
    SeparationError, ConvergenceError
        See `adjusted_logistic`.

    Examples
    --------
    >>> import eestim as ee
    >>> from scipy import special
    >>> rng = np.random.default_rng(3)
    >>> X = rng.standard_normal((400, 60))
    >>> y = (rng.random(400) < special.expit(X[:, 0])).astype(float)
    >>> fit = ee.estimate(ee.glm(y, X, family="binomial"), covariance=ee.ModelBased())
    >>> adjusted = adjusted_fit(fit)
    >>> bool(abs(adjusted.table()["estimate"].iloc[0]) < abs(fit.theta[0]))
    True
    """
    equation = fit.equation
    family = getattr(getattr(equation, "family", None), "name", None)
    link = getattr(getattr(equation, "link", None), "name", None)
    if family != "binomial" or link != "logit":
        raise CapabilityError(
            f"`fit` is of {type(equation).__name__}; this adjustment is for logistic "
            "regression. For least squares use ee.HCK() or ee.HC(3); for other "
            "M-estimates `df_adjusted_sandwich`."
        )
    if equation.offset is not None or equation.row_weights is not None:
        raise CapabilityError(
            "`fit` has an offset or weights, for which the proportional limit is not "
            "known. Refit without them, or use fewer covariates and ee.HC(3)."
        )
    design, response = equation.design, equation.response
    intercept = constant_column(design)
    adjusted = adjusted_logistic(design, response, fit.theta, intercept=intercept)
    return AdjustedFit(
        names=tuple(fit.names[int(j)] for j in adjusted.columns),
        adjusted=adjusted,
        findings=design_findings(design),
    )
