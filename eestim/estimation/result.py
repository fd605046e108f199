"""A root with its covariance, and everything reported from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy

from eestim._arrays import Matrix, Vector, as_float
from eestim._differentiate import jacobian as difference_jacobian
from eestim.covariance.base import (
    Covariance,
    CovarianceRule,
    covariance_of,
    influence_of,
    sensitivity_factor,
)
from eestim.equations import EstimatingEquation, Evaluated, Parameters, require
from eestim.errors import DataError, InferenceError
from eestim.estimation._delta import contrast_spread, default_names, difference_steps
from eestim.estimation._prediction import predictions
from eestim.estimation._refusals import check_variances
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["Estimate", "IntervalMethod", "completed"]

IntervalMethod = Literal["wald", "t"]
_RESIDUAL_WARNED = 0.1  # of the noise: a tenth of a standard error


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
        return completed(self.equation, self.root, rule)

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
        labels = tuple(names) if names else default_names(len(estimate))
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
                value, self.theta, difference_steps(value, self.theta, self.se)
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
        spread = contrast_spread(self.spread, slope, len(self.names))
        rows = Evaluated(
            labels, self._influence() @ slope.T, np.eye(len(labels)), value
        )
        root = Root(value, self.root.status, self.root.residual, self.root.steps)
        made = Estimate(labels, value, root, self.n_units, spread, rows)
        check_variances(made, slope)
        return made

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
        columns = predictions(made, self.spread, len(self.names), level, scale)
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


def completed(
    equation: EstimatingEquation, root: Root, rule: CovarianceRule
) -> Estimate:
    """Return the estimate of a root under a covariance rule.

    Raises
    ------
    TypeError
        If the rule is not one, or a class of rules.
    InferenceError
        If a variance is not a number above zero.
    """
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
    check_variances(made)
    return made


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
