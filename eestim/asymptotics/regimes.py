"""Which asymptotic regime a fit is in, in words."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from eestim._arrays import Matrix, Vector
from eestim.asymptotics.designs import constant_column, design_findings
from eestim.asymptotics.existence import frontier_aspect
from eestim.asymptotics.free_roots import free_root
from eestim.asymptotics.interpolation import (
    interpolation_ratio,
    vanishes_to_rounding,
)
from eestim.asymptotics.rank import RankReport, rank_report
from eestim.asymptotics.terms import term_sizes
from eestim.asymptotics.weak import weak_rank_finding
from eestim.equations import Evaluated
from eestim.errors import CapabilityError
from eestim.findings import Finding
from eestim.roots import Status

__all__ = ["Regime", "regime"]

CLASSICAL_ASPECT = 0.05  # p/n up to which classical errors are short by about 3%
_VANISHED = 1e-6
_NOTHING = "nothing."

_RESAMPLING = (
    "the pairs bootstrap and jackknife (too wide) and the residual bootstrap (too "
    "short), whose errors grow with p/n"
)

RegimeName = Literal[
    "classical", "many-covariate", "proportional", "rank-deficient", "interpolating"
]


@dataclass(frozen=True, slots=True)
class Regime:
    """The asymptotic regime of a fit, and what follows from it.

    Attributes
    ----------
    name : str
        "classical", "many-covariate", "proportional", "rank-deficient" or
        "interpolating".
    n_units, n_parameters, rank : int
        Counts; rank is that of the sensitivity.
    aspect : float
        Parameters over units.
    reason : str
        Why this regime.
    reported, refused, instead : str
        What can be reported, what is refused, and what to do instead.
    findings : tuple of Finding
        Checks of what the regime's methods assume.
    """

    name: RegimeName
    n_units: int
    n_parameters: int
    rank: int
    aspect: float
    reason: str
    reported: str
    refused: str
    instead: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.reason}",
            f"reported: {self.reported}",
            f"refused: {self.refused}",
            f"instead: {self.instead}",
        ]
        return "\n".join(lines + [str(finding) for finding in self.findings])


def regime(fit: Any, theta: Any = None, *, start: Any = None) -> Regime:
    """Return the asymptotic regime of an estimate, or of an equation at a root.

    Decided in this order: every contribution vanishes (interpolating); the
    sensitivity is singular (rank-deficient); p/n above 0.05 in least squares
    (many-covariate) or another model (proportional); else classical. In each but the
    first, a rank that is within ten standard errors of a smaller one is warned of.

    Parameters
    ----------
    fit : Estimate or EstimatingEquation
        What to look at; an equation that `eestim.estimate` refuses is looked at too.
    theta : (p,) array, optional
        A root of the equation; without it one is sought.
    start : (p,) array, optional
        Where to seek it from, by default the equation's own start.

    Raises
    ------
    CapabilityError
        If an equation has no start and theta is not given.
    ConvergenceError
        If no root is found, other than one where psi vanishes.

    Examples
    --------
    >>> import eestim as ee
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.standard_normal((100, 30)), rng.standard_normal(100)
    >>> regime(ee.estimate(ee.ols(y, X))).name
    'many-covariate'
    >>> regime(ee.ols(y[:20], X[:20])).name
    'interpolating'
    """
    equation = getattr(fit, "equation", fit)
    free = [f for f in _findings(fit) if f.name == "free direction"]
    if free and theta is None:
        return _of_functionals(fit, free)
    if theta is None:
        theta = getattr(fit, "theta", None)
    if theta is None:
        return _without_root(equation, start)
    at = np.asarray(theta, dtype=np.float64)
    psi = equation.psi(at)
    report = rank_report(
        equation.sensitivity(at),
        psi.T @ psi / len(psi),
        derivative_error=float(getattr(equation, "derivative_error", 0.0)),
        names=equation.names,
        terms=term_sizes(equation, at),
    )
    counts = (int(equation.n_units), len(at), report.rank, len(at) / equation.n_units)
    if _vanishes(equation, psi, at):
        return Regime("interpolating", *counts, *_INTERPOLATING, ())
    weak = weak_rank_finding(equation, at, report)
    if report.rank < len(at) or report.is_ambiguous:
        made = Regime("rank-deficient", *counts, *_deficient(report), ())
    elif counts[3] <= CLASSICAL_ASPECT:
        words = _classical(counts[3], isinstance(equation, Evaluated))
        made = Regime("classical", *counts, *words, ())
    else:
        made = _crowded(equation, at, counts)
    return made if weak is None else _weakened(made, weak)


def _weakened(made: Regime, weak: Finding) -> Regime:
    """Return a regime whose rank is close to noise, said in words."""
    nothing = made.refused == _NOTHING
    too = "coverage of Wald intervals in the weak direction is not assured."
    return replace(
        made,
        reason=f"{made.reason} {weak.meaning}",
        refused=too if nothing else f"{made.refused} Also: {too}",
        instead=weak.advice if nothing else f"{made.instead} {weak.advice}",
        findings=(*made.findings, weak),
    )


def _without_root(equation: Any, start: Any) -> Regime:
    """Return the regime at a root sought from a start."""
    if start is None and getattr(equation, "start", None) is None:
        raise CapabilityError(
            "`theta` is needed with this equation, which has no start of its own: "
            "pass a root, `start`, or an Estimate."
        )
    found = free_root(equation, start)
    if found.status is Status.DIVERGED and _is_binomial(equation):
        counts = (int(equation.n_units), len(found.theta), 0)
        return Regime("interpolating", *counts, counts[1] / counts[0], *_SEPARATED, ())
    made = regime(equation, found.theta)
    if made.name != "interpolating":
        found.require_converged()
    return made


_INTERPOLATING = (
    "psi vanishes at every unit, so the fit reproduces the data.",
    "the fit itself, and predictions of penalised or early-stopped versions of it.",
    "every sandwich of these contributions: it would be zero whatever the noise.",
    "df-debiased intervals of a penalised fit (`debiased_ridge`), linearised "
    "predictions with their bias stated (`linearised_prediction`), the limit of "
    "descent with its filter (`spectral_root`), cross-fitting, or psi of held-out "
    "units.",
)
_SEPARATED = (
    "the outcomes are separated: psi vanishes only as theta grows without bound, where "
    "A is zero.",
    "penalised fits, and the separating direction.",
    "estimates, and every interval and likelihood ratio of them: there is no root.",
    "`separation(X, y)` for the direction, df-debiased intervals of a penalised fit "
    "(`df_debiased`), fewer covariates or more units.",
)


def _findings(fit: Any) -> tuple[Finding, ...]:
    return tuple(getattr(getattr(fit, "spread", None), "findings", ()))


def _of_functionals(fit: Any, free: list[Finding]) -> Regime:
    """Return the regime of the equation that estimable functionals come from."""
    rank, count = int(free[0].value or 0), int(free[0].threshold or 0)
    directions = "; ".join(finding.meaning for finding in free[:3])
    made = Regime(
        "rank-deficient",
        int(fit.n_units),
        count,
        rank,
        count / fit.n_units,
        f"A of the equation behind these values has rank {rank} of {count}: "
        f"{directions}",
        "these functionals, which are constant along the free directions.",
        "standard errors of single coefficients that take part in a free direction.",
        "check other starts with `invariance_over_roots`.",
        (),
    )
    weak = [f for f in _findings(fit) if f.name == "weak rank"]
    return _weakened(made, weak[0]) if weak else made


def _classical(aspect: float, is_tabulated: bool) -> tuple[str, str, str, str]:
    values = "values tabulated here" if is_tabulated else "parameters"
    behind = " Of the equation behind them nothing is known." if is_tabulated else ""
    return (
        f"A has full rank and {values} are {aspect:.2%} of the units.{behind}",
        "estimates with their sandwich, Wald and score tests.",
        _NOTHING,
        "no change needed.",
    )


def _deficient(report: RankReport) -> tuple[str, str, str, str]:
    free = "; ".join(report.free_directions()[:3]) or "undecided"
    count = report.n_parameters - report.rank
    reason = f"A has rank {report.rank} of {report.n_parameters}; free: {free}."
    if report.is_ambiguous:
        ranks = ", ".join(str(cut.rank) for cut in report.cuts)
        reason = (
            f"the rank of A is ambiguous (candidates {ranks} of "
            f"{report.n_parameters}): its singular values have no gap."
        )
    instead = "`estimable(equation, h)` for what is identified; fix or drop "
    instead += f"{max(count, 1)} parameter(s) otherwise."
    if report.range_violation > 1e-8:
        instead += (
            " The variance of psi leaves the range of A: there is no regular root, "
            "so combine redundant equations first."
        )
    return (
        reason,
        "functionals that are constant along the free directions, with the rank as "
        "degrees of freedom.",
        "standard errors of single coefficients that take part in a free direction.",
        instead,
    )


def _vanishes(equation: Any, psi: Matrix, theta: Vector) -> bool:
    """Return whether psi is negligible, beside rounding or its size before fitting."""
    if isinstance(equation, Evaluated):
        return not psi.any()
    if vanishes_to_rounding(equation.psi, theta):
        return True
    start = getattr(equation, "start", None)
    if start is None:
        return False
    before = equation.psi(np.asarray(start, dtype=np.float64))
    if not np.median(np.linalg.norm(before, axis=1)) > 0:
        return False
    return interpolation_ratio(psi, before) < _VANISHED


def _crowded(
    equation: Any, theta: Vector, counts: tuple[int, int, int, float]
) -> Regime:
    """Return the regime of a full-rank fit with many parameters per unit."""
    family = getattr(getattr(equation, "family", None), "name", None)
    link = getattr(getattr(equation, "link", None), "name", None)
    aspect = counts[3]
    reason = f"parameters are {aspect:.1%} of the units."
    findings = _assumptions(equation, theta)
    if family == "gaussian" and link == "identity":
        words = (
            reason,
            "coefficients with leave-out variances; classical errors if the noise "
            "is homoskedastic.",
            f"HC0 and HC1 (short by about {aspect:.0%} in variance), HC3 (long), "
            f"{_RESAMPLING}.",
            "ee.HCK() or ee.LeaveOut(), and ee.HC(2) where leverages are even.",
        )
        return Regime("many-covariate", *counts, *words, findings)
    if family == "binomial" and link == "logit":
        words = (
            f"{reason} The logistic estimate exaggerates and exists only below p/n = "
            f"{frontier_aspect(0.0):.2f}, less with signal.",
            "adjusted coefficients, tests by the observable scale, rescaled "
            "likelihood ratios.",
            f"classical and sandwich intervals of coefficients, {_RESAMPLING}.",
            "`adjusted_fit(fit)`, if the design is Gaussian-like.",
        )
        return Regime("proportional", *counts, *words, findings)
    if aspect >= 1.0:
        return Regime("proportional", *counts, *_beyond(reason), findings)
    words = (
        reason,
        "estimates, with tests by held-out data.",
        f"coverage of classical and sandwich intervals is not assured; {_RESAMPLING}.",
        "`df_adjusted_sandwich` for M-estimates of regression, fewer parameters, or "
        "a penalty with `df_debiased`.",
    )
    return Regime("proportional", *counts, *words, findings)


def _beyond(reason: str) -> tuple[str, str, str, str]:
    """Return the words for a penalised root with more parameters than units."""
    return (
        f"{reason} Only a penalty makes A regular, and biases what it identifies.",
        "functionals in the span of the data, with the bias of the penalty stated "
        "apart.",
        "sandwich intervals of single coefficients: they leave that bias out (a ridge "
        f"fit covered 7% to 80% in place of 95%); {_RESAMPLING}.",
        "`df_debiased` or `debiased_ridge` for coefficients of a convex penalty, "
        "`linearised_prediction` for predictions.",
    )


def _is_binomial(equation: Any) -> bool:
    return getattr(getattr(equation, "family", None), "name", None) == "binomial"


def _assumptions(equation: Any, theta: Vector) -> tuple[Finding, ...]:
    working = getattr(equation, "working", None)
    if working is None:
        return ()
    design = working(theta).design
    place = constant_column(design)
    columns = design if place is None else np.delete(design, place, axis=1)
    return design_findings(columns)
