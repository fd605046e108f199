"""Estimates: a root with its covariance, and everything reported from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy

from eestim._arrays import Matrix, Vector, as_float
from eestim._differentiate import jacobian as difference_jacobian
from eestim._differentiate import response_steps, vanishes
from eestim._linalg import equilibrated_factor
from eestim.covariance.base import (
    Covariance,
    CovarianceRule,
    covariance_of,
    influence_of,
    sensitivity_factor,
)
from eestim.covariance.hc import HC
from eestim.equations import EstimatingEquation, Evaluated, Parameters, require
from eestim.errors import (
    DataError,
    IdentificationError,
    InferenceError,
    InterpolationError,
)
from eestim.findings import Finding
from eestim.roots import DOUBTFUL, Root, Status, root_at, solve

__all__ = ["Estimate", "IntervalMethod", "estimate"]

IntervalMethod = Literal["wald", "t"]
_RESIDUAL_WARNED = 0.1  # of the noise: a tenth of a standard error
_NO_DIGITS = 1e-8  # reciprocal condition whose square is the rounding of a variance
_ADDED = 1e3  # times what is left of psi, relative to its size: as much as A may gain
_FEW_STEPS = 10  # from a given root to the nearest one, which is near by


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A root, its covariance, and what was used to get them.

    Made by `estimate`; always complete.

    Attributes
    ----------
    names : tuple of p str
    theta : (p,) array
    root : Root
    n_units : int
        Number of independent units.
    spread : Covariance
        What the covariance rule returned: the matrix, degrees of freedom, factor,
        citation and findings.
    equation : EstimatingEquation
        What was solved; a loaded estimate has a tabulated one.
    """

    names: tuple[str, ...]
    theta: Vector
    root: Root
    n_units: int
    spread: Covariance
    equation: Any

    # --------------------------------------------------------------- what it is

    @property
    def params(self) -> "pd.Series[float]":
        """The estimates, by name."""
        return pd.Series(self.theta, index=list(self.names), name="estimate")

    @property
    def se(self) -> "pd.Series[float]":
        """Standard errors, by name."""
        errors = np.sqrt(np.diag(self.spread.matrix))
        return pd.Series(errors, index=list(self.names), name="se")

    @property
    def covariance(self) -> pd.DataFrame:
        """The covariance V of the estimates."""
        labels = list(self.names)
        return pd.DataFrame(self.spread.matrix, index=labels, columns=labels)

    @property
    def dof(self) -> "pd.Series[float]":
        """Degrees of freedom of each parameter; infinite for the normal law."""
        values = np.broadcast_to(self.spread.dof, len(self.names)).astype(float)
        return pd.Series(values, index=list(self.names), name="dof")

    @property
    def dof_kind(self) -> str:
        """How the degrees of freedom were counted: "normal", "n-k", "G-1", ..."""
        return self.spread.dof_kind

    @property
    def rule(self) -> str:
        """The covariance rule with its factor and citation, in words."""
        factor = f", factor {self.spread.factor}" if self.spread.factor else ""
        clusters = ", ".join(f"{count} clusters" for count in self.spread.n_clusters)
        counted = f" ({clusters})" if clusters else ""
        return f"{self.spread.rule}{counted}{factor} [{self.spread.citation}]"

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What a reader of the standard errors should know."""
        return self.spread.findings

    # ----------------------------------------------------------------- intervals

    def _law_dof(self, method: str | None) -> Vector:
        """Return the degrees of freedom that an interval method uses."""
        if method == "wald":
            return np.full(len(self.names), np.inf, dtype=np.float64)
        law: Vector = np.asarray(self.dof, dtype=np.float64)
        return law

    def _quantile(self, level: float, method: str | None) -> Vector:
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must lie between 0 and 1; got {level!r}.")
        tail = 0.5 + level / 2.0
        law = self._law_dof(method)
        quantile: Vector = np.asarray(scipy.stats.t.ppf(tail, law), dtype=np.float64)
        return quantile

    def interval(
        self,
        level: float = 0.95,
        method: Any = None,
        simultaneous: Literal["sup-t", "bonferroni", "holm"] | None = None,
    ) -> pd.DataFrame:
        r"""Return confidence intervals, estimate :math:`\pm` quantile times se.

        Parameters
        ----------
        level : float
            Coverage aimed at.
        method : {"wald", "t"} or a method value, optional
            "wald" uses the normal law, "t" the degrees of freedom of the covariance
            rule. By default the law that the rule names: t where `dof` is finite.
            Methods with choices or draws are values (``ee.Profile()``, ...).
        simultaneous : {"sup-t", "bonferroni", "holm"}, optional
            Cover all parameters at once.

        Returns
        -------
        DataFrame
            Columns estimate, lower, upper; one row a parameter.
        """
        if method is not None and not isinstance(method, str):
            bounds: pd.DataFrame = method.interval(self, level)
            return bounds
        if method not in (None, "wald", "t"):
            raise ValueError(
                f'`method` must be "wald", "t" or a method value; got {method!r}.'
            )
        if simultaneous is None:
            half = self._quantile(level, method) * self.se.to_numpy()
            lower, upper = self.theta - half, self.theta + half
        else:
            from eestim.inference.simultaneous import simultaneous_bounds

            lower, upper = simultaneous_bounds(
                self.theta,
                self.spread.matrix,
                self._law_dof(method),
                level,
                simultaneous,
            )
        return pd.DataFrame(
            {"estimate": self.theta, "lower": lower, "upper": upper},
            index=list(self.names),
        )

    def table(self, level: float = 0.95, method: Any = None) -> pd.DataFrame:
        """Return estimate, se, statistic, p, lower and upper, one row a parameter.

        The p value tests that the parameter is zero, two-sided, with the law of
        ``method`` as in `interval`.
        """
        bounds = self.interval(level, method)
        errors = self.se.to_numpy()
        statistic = self.theta / errors
        dof = self._law_dof(method)
        return pd.DataFrame(
            {
                "estimate": self.theta,
                "se": errors,
                "statistic": statistic,
                "p": 2.0 * scipy.stats.t.sf(np.abs(statistic), dof),
                "lower": bounds["lower"],
                "upper": bounds["upper"],
            },
            index=list(self.names),
        )

    # --------------------------------------------------------------- consequences

    def with_covariance(self, rule: CovarianceRule) -> "Estimate":
        """Return the same estimate under another covariance rule, without solving."""
        return _completed(self.equation, self.root, rule)

    def influence(self) -> pd.DataFrame:
        r"""Return the influence of each unit, :math:`A^{-1} \psi_i`, (n, p)."""
        return pd.DataFrame(self._influence(), columns=list(self.names))

    def _influence(self) -> Matrix:
        equation, theta = self.equation, self.theta
        if self.root.working is not None:
            equation, theta, turn = self.root.working
        error = float(getattr(equation, "derivative_error", 0.0))
        factor = sensitivity_factor(equation.sensitivity(theta), self.names, error)
        influence = influence_of(equation.psi(theta), factor)
        return influence if self.root.working is None else influence @ turn.T

    def _named(self, theta: Vector) -> Vector:
        """Return theta as a user's function reads it: by block, or by name."""
        places = getattr(self.equation, "block_places", None)
        if not places:
            places = {name: (slice(j, j + 1), ()) for j, name in enumerate(self.names)}
        return Parameters(theta, places)

    def functional(
        self,
        h: Callable[[Any], Any],
        *,
        names: Sequence[str] | None = None,
        jacobian: Callable[[Any], Any] | None = None,
    ) -> "Estimate":
        r"""Return the estimate of :math:`h(\theta)` by the delta method.

        .. math:: V_h = J V J^\top, \qquad J = \partial h / \partial \theta^\top.

        Parameters
        ----------
        h : callable
            From theta to a number or a vector. Parameters are read by name,
            ``lambda theta: theta["x"] / theta["z"]``, or by position.
        names : sequence of str, optional
            Names of the values of h.
        jacobian : callable, optional
            From theta to (m, p); numerical otherwise.

        Raises
        ------
        InferenceError
            If h has no finite derivative at the estimate, or is constant there.
        """

        def value(theta: Vector) -> Vector:
            with np.errstate(all="ignore"):  # what is not finite is refused below
                return np.atleast_1d(as_float(h(self._named(theta)), "h")).ravel()

        estimate = value(self.theta)
        labels = tuple(names) if names else _default_names(len(estimate))
        if len(labels) != len(estimate):
            raise DataError(
                f"`names` has {len(labels)} entries for {len(estimate)} values of h."
            )
        if jacobian is not None:
            slope = np.atleast_2d(
                as_float(jacobian(self._named(self.theta)), "jacobian")
            )
        else:
            slope = difference_jacobian(
                value, self.theta, _functional_steps(value, self.theta, self.se)
            )
        if slope.shape != (len(estimate), len(self.theta)):
            raise DataError(
                f"`jacobian` has shape {slope.shape}; expected "
                f"({len(estimate)}, {len(self.theta)})."
            )
        if not (np.isfinite(slope).all() and np.isfinite(estimate).all()):
            raise InferenceError(
                "`h` or its derivative is not finite at the estimate; the delta method "
                "does not apply there. Transform h, or use a resampling interval."
            )
        made = self._linear(estimate, slope, labels)
        if self.spread.replicates is None:
            return made
        # Draws of theta become draws of h itself, not of its tangent.
        draws = np.stack([value(theta) for theta in self.spread.replicates])
        return replace(made, spread=replace(made.spread, replicates=draws))

    def _linear(
        self, value: Vector, slope: Matrix, labels: tuple[str, ...]
    ) -> "Estimate":
        spread = _contrast_spread(self.spread, slope, len(self.names))
        rows = Evaluated(
            labels, self._influence() @ slope.T, np.eye(len(labels)), value
        )
        root = Root(value, self.root.status, self.root.residual, self.root.steps)
        made = Estimate(labels, value, root, self.n_units, spread, rows)
        return _checked(made, slope)

    def wald(self, R: Any, r: Any = None, **options: Any) -> Any:
        r"""Return the Wald test of :math:`R\theta = r`, rank of :math:`R V R^\top`.

        Parameters
        ----------
        R : (m, p) array, or sequence of parameter names
            Names test that those parameters are zero.
        r : (m,) array, optional
            Zero by default.
        **options
            Those of `eestim.inference.wald.wald_test`.
        """
        from eestim.inference.wald import wald_test

        return wald_test(self, self._contrasts(R), r, **options)

    def score(self, restriction: Any, **options: Any) -> Any:
        r"""Return the generalised score test of a restriction (Boos, 1992).

        Parameters
        ----------
        restriction : str, sequence of str, mapping, (R, r), or (m, p) array
            Parameters that are zero, ``{"x": 1.0}``, or :math:`R\theta = r`.
        **options
            Those of `eestim.inference.score_tests.score_test`.
        """
        from eestim.inference.score_tests import score_test

        return score_test(self, restriction, **options)

    def distance(self, restriction: Any, **options: Any) -> Any:
        r"""Return the distance test of a restriction: likelihood ratio, or of psi.

        Parameters
        ----------
        restriction : str, sequence of str, mapping, (R, r), or (m, p) array
            As for `score`.
        **options
            Those of `eestim.inference.score_tests.distance_test`.
        """
        from eestim.inference.score_tests import distance_test

        return distance_test(self, restriction, **options)

    def _contrasts(self, R: Any) -> Matrix:
        wanted = [R] if isinstance(R, str) else list(R)
        if all(isinstance(name, str) for name in wanted):
            unknown = [name for name in wanted if name not in self.names]
            if unknown:
                raise DataError(
                    f"`R` names {unknown}, which are not parameters; they are "
                    f"{list(self.names)}."
                )
            return np.eye(len(self.names))[[self.names.index(name) for name in wanted]]
        matrix = np.atleast_2d(as_float(R, "R"))
        if matrix.shape[1] != len(self.names):
            raise DataError(
                f"`R` has {matrix.shape[1]} columns for {len(self.names)} parameters."
            )
        return matrix

    def predict(
        self,
        new_data: Any,
        level: float = 0.95,
        scale: Literal["mean", "link"] = "mean",
    ) -> pd.DataFrame:
        """Return fitted means at new rows, with standard errors and intervals.

        Intervals are formed on the scale of the linear predictor and mapped to the
        mean, so that they respect its range; the standard error of a mean is by the
        delta method.

        Parameters
        ----------
        new_data : DataFrame, mapping of columns, or (m, p) array
        level : float
        scale : {"mean", "link"}

        Returns
        -------
        DataFrame
            Columns estimate, se, lower, upper.
        """
        if scale not in ("mean", "link"):
            raise ValueError(f'`scale` must be "mean" or "link"; got {scale!r}.')
        capability = require(
            self.equation,
            "predict",
            "`predict`",
            "Use `functional` with the prediction written as a function of theta.",
        )
        made = capability(self.theta, new_data)
        inner, turn = self.spread.parts()
        rows = made.jacobian @ turn
        variance = np.einsum("ij,jk,ik->i", rows, inner, rows)
        if not (variance > 0).all():
            row = int(np.flatnonzero(~(variance > 0))[0])
            raise InferenceError(
                f"the prediction at row {row} has no positive variance "
                f"({variance[row]:.3g}): its row of the design is zero, or the "
                "covariance is indefinite. Check `new_data` and the covariance rule."
            )
        errors = np.sqrt(variance)
        laws = np.broadcast_to(self._prediction_dof(made.jacobian), len(errors))
        half = scipy.stats.t.ppf(0.5 + level / 2.0, laws) * errors
        bounds = np.sort([made.linear - half, made.linear + half], axis=0)
        columns = {"estimate": made.linear, "se": errors}
        columns |= {"lower": bounds[0], "upper": bounds[1]}
        if scale == "mean":
            mapped = np.sort(made.link.inverse(bounds), axis=0)
            columns = {
                "estimate": made.link.inverse(made.linear),
                "se": errors * np.abs(made.link.slope(made.linear)),
                "lower": mapped[0],
                "upper": mapped[1],
            }
        index = new_data.index if isinstance(new_data, pd.DataFrame) else None
        return pd.DataFrame(columns, index=index)

    def diagnose(self, **options: Any) -> Any:
        """Return the findings of `eestim.diagnose`."""
        from eestim.diagnostics import diagnose

        return diagnose(self, **options)

    def regime(self) -> Any:
        """Return which asymptotics hold for this fit, and what may be reported."""
        from eestim.asymptotics import regime

        return regime(self)

    def _prediction_dof(self, rows: Matrix) -> Vector:
        """Return degrees of freedom for rows of a design, (m,)."""
        if self.spread.contrast_dof is not None:
            return self.spread.contrast_dof(rows)
        return _smallest_dof(self.spread, rows, len(self.names))

    # -------------------------------------------------------------------- reports

    def summary(self, level: float = 0.95, method: Any = None) -> str:
        """Return a plain-text report: what was estimated, how, and the table."""
        from eestim.report.tables import plain_summary

        return plain_summary(self, level, method)

    def __str__(self) -> str:
        return self.summary()

    def to_markdown(self, level: float = 0.95, method: Any = None) -> str:
        """Return the table in Markdown with the rule below it."""
        from eestim.report.tables import markdown_table

        return markdown_table(self, level, method)

    def to_latex(self, level: float = 0.95, method: Any = None) -> str:
        """Return the table in LaTeX (booktabs) with the rule below it."""
        from eestim.report.tables import latex_table

        return latex_table(self, level, method)

    def to_html(self, level: float = 0.95, method: Any = None) -> str:
        """Return the table as an HTML fragment with the rule below it."""
        from eestim.report.tables import html_table

        return html_table(self, level, method)

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self, ax: Any = None, level: float = 0.95, **options: Any) -> Any:
        """Return a forest plot: estimates with their intervals, one row a parameter."""
        from eestim.report.plots import forest

        return forest({"estimate": self}, ax=ax, level=level, **options)

    def save(self, path: str | Path) -> Path:
        """Write the estimate to a file that `eestim.load` reads, losslessly."""
        from eestim.storage import save

        return save(self, path)


def _default_names(count: int) -> tuple[str, ...]:
    return ("h",) if count == 1 else tuple(f"h[{j}]" for j in range(count))


def _functional_steps(
    h: Callable[[Vector], Vector], theta: Vector, errors: "pd.Series[float]"
) -> Vector:
    """Return steps for a derivative of h: at most a tenth of a standard error."""
    with np.errstate(all="ignore"):
        steps = response_steps(h, theta)
    bound = np.maximum(0.1 * errors.to_numpy(), 1e-6 * np.abs(theta))
    shorter: Vector = np.minimum(np.abs(steps), bound)
    return shorter


def _contrast_spread(spread: Covariance, slope: Matrix, p: int) -> Covariance:
    """Return the covariance of linear combinations, with their own dof."""
    if spread.contrast_dof is not None:
        return spread.transformed(slope)
    taken = _smallest_dof(spread, slope, p)
    return replace(spread.transformed(slope), dof=taken)


def _smallest_dof(spread: Covariance, slope: Matrix, p: int) -> Vector:
    dof = np.broadcast_to(spread.dof, p)
    smallest: Vector = np.where(slope != 0, dof, np.inf).min(axis=1)
    return smallest


def _checked(made: Estimate, slope: Matrix | None = None) -> Estimate:
    """Return the estimate, or raise where a standard error is not a number above 0."""
    variance = np.diag(made.spread.matrix)
    bad = ~(np.isfinite(variance) & (variance > 0))
    if slope is not None:
        bad |= ~slope.any(axis=1)
    if not bad.any():
        return made
    j = int(np.flatnonzero(bad)[0])
    if np.isfinite(variance[j]) and variance[j] < 0:
        _refuse_near_singular(made)
        raise InferenceError(
            f"the covariance rule {made.spread.rule} gives a negative variance for "
            f"{made.names[j]!r} ({variance[j]:.3g}). Use fewer ways of clustering, "
            "more clusters, or `repair_psd=True`."
        )
    if not np.isfinite(variance[j]):
        raise InferenceError(
            f"the variance of {made.names[j]!r} is {variance[j]}; check psi and its "
            "derivative at the root."
        )
    raise InterpolationError(
        f"the standard error of {made.names[j]!r} would be zero: no unit contributes "
        "to it at the root. The fit interpolates the data, or the quantity does not "
        "depend on them. Use fewer parameters or more units; for p near n see "
        "ee.asymptotics."
    )


def _refuse_near_singular(made: Estimate) -> None:
    """Raise where a variance is negative because A^-1 M A^-T has no digits left."""
    equation = made.equation
    if made.root.working is not None or isinstance(equation, Evaluated):
        return
    factor = equilibrated_factor(equation.sensitivity(made.theta))
    if factor.rcond > _NO_DIGITS:
        return
    raise IdentificationError(
        f"`sensitivity` is singular to the digits of its sandwich (reciprocal "
        f"condition {factor.rcond:.1e} after scaling), whose variances come out "
        f"negative; nearly free direction: {factor.null_direction(equation.names)}. "
        "Fix or drop some of these parameters, or report an identified function of "
        "them."
    )


def _refuse_unidentified(equation: EstimatingEquation, root: Root) -> None:
    """Raise where A is regular at a given root only through what is left of psi.

    What a root found elsewhere leaves of the equations adds to A; the nearest root
    solved to rounding shows whether anything else keeps A regular.
    """
    is_model = getattr(equation, "check_root", None) is not None
    if is_model or root.working is not None or isinstance(equation, Evaluated):
        return
    if getattr(equation, "blocks", None) is not None:
        return
    error = float(getattr(equation, "derivative_error", 0.0))
    psi, slope = equation.psi(root.theta), equation.sensitivity(root.theta)
    size = np.sqrt(np.mean(psi**2, axis=0))
    left = np.max(np.abs(psi.mean(axis=0)) / np.where(size > 0, size, 1.0))
    if slope.shape[0] != slope.shape[1]:
        return
    if equilibrated_factor(slope).rcond > min(DOUBTFUL, _ADDED * left):
        return
    nearest = solve(equation, root.theta, max_steps=_FEW_STEPS)
    if nearest.is_converged:
        sensitivity_factor(equation.sensitivity(nearest.theta), equation.names, error)


def _check_interpolation(equation: EstimatingEquation, root: Root) -> None:
    """Raise where psi is zero to rounding at every unit, so that M says nothing."""
    if getattr(equation, "check_root", None) is not None:
        return  # models look at their residuals instead
    if isinstance(equation, Evaluated):
        return
    if vanishes(equation.psi, root.theta):
        largest = np.abs(equation.psi(root.theta)).max()
        raise InterpolationError(
            f"psi vanishes at every unit at the root (largest entry {largest:.1e}), so "
            "the sandwich would be zero whatever the noise. The equations interpolate "
            "the data: use fewer parameters or more units; see ee.asymptotics."
        )


def _completed(
    equation: EstimatingEquation, root: Root, rule: CovarianceRule
) -> Estimate:
    if not callable(rule):
        raise TypeError(
            "`covariance` must be a rule such as ee.HC(0) or ee.Clustered('firm'); "
            f"got {rule!r}."
        )
    if isinstance(rule, type):
        raise TypeError(f"`covariance` is a class; call it: ee.{rule.__name__}(...).")
    spread = covariance_of(equation, root, rule)
    if root.residual > _RESIDUAL_WARNED:
        spread = replace(spread, findings=(*spread.findings, _far_from_root(root)))
    made = Estimate(
        tuple(equation.names), root.theta, root, equation.n_units, spread, equation
    )
    return _checked(made)


def _far_from_root(root: Root) -> Finding:
    return Finding(
        "root residual",
        "warn" if root.residual < 1.0 else "fail",
        root.residual,
        _RESIDUAL_WARNED,
        f"The mean of psi is {root.residual:.2g} times its noise at this root.",
        "Polish it with `ee.estimate(equation, start=root)`, or say that the interval "
        "is for the value reached.",
    )


def estimate(
    equation: EstimatingEquation,
    covariance: CovarianceRule | None = None,
    *,
    start: Any = None,
    root: Any = None,
) -> Estimate:
    """Solve an estimating equation and attach the covariance of its root.

    Parameters
    ----------
    equation : EstimatingEquation
        A model (``ee.ols(...)``), ``ee.equation(...)``, ``ee.stack(...)``.
    covariance : covariance rule, optional
        ``ee.HC(0)`` by default.
    start : (p,) array-like, optional
        Where the solver begins; the equation's own start by default.
    root : (p,) array-like or Root, optional
        A root found elsewhere (SGD, another package). Nothing is solved; its
        residual is reported in units of noise, with a finding where it is large.

    Returns
    -------
    Estimate

    Raises
    ------
    ConvergenceError
        If no root is found, SeparationError where it lies at infinity.
    IdentificationError
        If A is singular at the root, naming the free direction.
    InterpolationError
        If psi vanishes at every unit.
    CapabilityError
        If the rule needs what the equation does not supply.

    Examples
    --------
    >>> import eestim as ee
    >>> fit = ee.estimate(ee.mean([1.0, 2.0, 6.0]), covariance=ee.HC(1))
    >>> fit.params.round(3).to_dict(), fit.se.round(3).to_dict()
    ({'mean': 3.0}, {'mean': 1.528})
    """
    rule = HC(0) if covariance is None else covariance
    if isinstance(equation, Estimate):
        raise TypeError(
            "`equation` is already an Estimate; use its `with_covariance(rule)`."
        )
    if root is not None and start is not None:
        raise ValueError("pass `start` or `root`, not both.")
    try:
        return _solved(equation, rule, start, root)
    except (IdentificationError, InterpolationError) as refused:
        refused.explained_by(lambda: _regime_of(equation, start, root))
        raise


def _regime_of(equation: EstimatingEquation, start: Any, root: Any) -> Any:
    """Return the regime of an equation that has no Estimate."""
    from eestim.asymptotics import regime

    at = root.theta if isinstance(root, Root) else root
    return regime(equation, at, start=start)


def _solved(
    equation: EstimatingEquation, rule: CovarianceRule, start: Any, root: Any
) -> Estimate:
    """Return the estimate at a root, given or solved for, after refusing bad ones."""
    if root is not None:
        found = root if isinstance(root, Root) else root_at(equation, root)
    else:
        found = solve(equation, start)
    inspect = getattr(equation, "check_root", None)
    with np.errstate(all="ignore"):  # what is not finite is refused below, by name
        if inspect is not None and np.isfinite(found.theta).all():
            inspect(found)
        if root is not None:
            _refuse_unidentified(equation, found)
        _explain_singular(equation, found)
        found.require_converged()
        _check_interpolation(equation, found)
        return _completed(equation, found, rule)


def _explain_singular(equation: EstimatingEquation, root: Root) -> None:
    """Raise IdentificationError where a failed search ended at a singular A."""
    if root.is_converged or root.status is Status.DIVERGED:
        return
    error = float(getattr(equation, "derivative_error", 0.0))
    try:
        sensitivity_factor(equation.sensitivity(root.theta), equation.names, error)
    except DataError:
        return
    except IdentificationError as singular:
        raise IdentificationError(f"no root found: {singular}") from None
