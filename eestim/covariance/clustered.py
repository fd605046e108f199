"""Cluster-robust covariances, one- and multi-way, with small-sample adjustments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector
from eestim.covariance._cluster_findings import (
    cluster_findings,
    dof_findings,
    semidefinite,
)
from eestim.covariance._clusters import (
    ClusteredRegression,
    clustered_regression,
    pieces,
    signed_intersections,
    untransposed_scores,
)
from eestim.covariance._factor import finite_factor
from eestim.covariance._satterthwaite import Satterthwaite
from eestim.covariance.base import (
    Covariance,
    equation_sandwich,
    label_text,
    resolve_labels,
    row_psi,
    sensitivity_factor,
    working_of,
)
from eestim.equations import EstimatingEquation, Working, effective_n, sum_by_code
from eestim.errors import CapabilityError, InferenceError
from eestim.findings import Finding
from eestim.roots import Root

__all__ = ["ClusterKind", "Clustered", "Satterthwaite", "finite_factor"]

ClusterKind: TypeAlias = Literal[
    "CR0", "CR1", "CR1p", "CR1S", "CR2", "CR3", "vcovCL-HC2", "vcovCL-HC3"
]

_VANISHED = 1e-24  # sums within clusters, squared, relative to rows: rounding

_FACTOR = {"CR1": "G/(G-1)", "CR1p": "G/(G-k)", "CR1S": "G/(G-1)*(n-1)/(n-k)"}
_POWER = {"CR2": 0.5, "CR3": 1.0, "vcovCL-HC2": 0.5, "vcovCL-HC3": 1.0}
_CITATION = {
    "CR0": "Liang and Zeger (1986), Biometrika 73, 13-22",
    "CR2": "Bell and McCaffrey (2002); Pustejovsky and Tipton (2018), JBES 36, 672-683",
    "CR3": "Bell and McCaffrey (2002), Survey Methodology 28, 169-181",
    "vcovCL-HC2": "Zeileis, Koell and Graham (2020), J. Stat. Softw. 95(1)",
    "vcovCL-HC3": "Zeileis, Koell and Graham (2020), J. Stat. Softw. 95(1)",
}
_MULTI_WAY = "Cameron, Gelbach and Miller (2011), JBES 29, 238-249"
_INSTEAD = (
    "For any psi use kind 'CR0', 'CR1', 'CR1p' or 'CR1S', Jackknife(groups=...) or "
    "FayGraubard()."
)


# ------------------------------------------------------------------------ the rule


@dataclass(frozen=True, slots=True, init=False)
class Clustered:
    r"""The sandwich for clusters of dependent rows.

    .. math::
        V = A^{-1} \Big( \sum_r (-1)^{|r|+1} c_r \sum_g s_{rg} s_{rg}^\top \Big)
        A^{-\top} / n^2

    with the sums :math:`s_{rg}` of psi within the clusters of one way, or of the
    intersections r of several, and a factor :math:`c_r` of each term's own number
    of clusters G (k parameters, n rows).

    Parameters
    ----------
    *labels : str or (n,) array
        A column name or one label a row, for each way of clustering.
    kind : str
        "CR0" no factor; "CR1" G/(G-1); "CR1p" G/(G-k); "CR1S"
        G/(G-1) (n-1)/(n-k), the default of Stata and statsmodels; "CR2" and "CR3"
        adjust the residuals by ``(I - H_gg)`` to the power -1/2 (exactly unbiased
        under the working model) and -1 (leave one cluster out), and need a
        regression with a linear predictor. "vcovCL-HC2" and "vcovCL-HC3" are what R
        `sandwich` computes under these names for GLMs (not equal to CR2 and CR3
        there; the same for linear models).
    factor : str, optional
        Expression in G, n, k that replaces the factor of `kind`; see Notes.
    multi0 : bool
        Several ways: the last term is that of rows (HC0) without a factor.
    repair_psd : bool
        Set negative eigenvalues of a multi-way covariance to zero, with a Finding.
    dof : {"G-1", "satterthwaite"}, optional
        "satterthwaite" by default for one-way CR2 and CR3, else the smallest G - 1
        of the ways.

    Raises
    ------
    InferenceError
        With one cluster, with a factor that is not positive, or with a negative
        variance (several ways).
    CapabilityError
        CR2 and CR3 for an equation that is not a regression.

    Notes
    -----
    Conventions of other packages: R `sandwich` ``vcovCL`` HC0 with ``cadjust`` is
    CR1, HC1 is CR1S, HC1 without cadjust ``factor="(n-1)/(n-k)"``, HC2 and HC3
    without cadjust CR2 and CR3 with ``factor="(G-1)/G"``, and its ``multi0`` for
    HC1 is ``kind="CR1S", multi0=True``. statsmodels ``cluster`` is CR1S and
    ``cluster-crv3`` CR3 with ``factor="(G-1)/G"``. linearmodels is CR0 by default,
    ``factor="n/(n-k)"`` with ``debiased``, ``factor="G/(G-1)*(n-1)/n"`` with
    ``group_debias``, and CR1S with both.

    CR2 depends on the square root taken. Where `working` supplies the variance of the
    response (GLMs), it is the symmetric root in units of the response, as in
    clubSandwich; otherwise that in units of the working standard deviation.

    References
    ----------
    Liang and Zeger (1986); Bell and McCaffrey (2002); Cameron, Gelbach and Miller
    (2011), eq. 2.13; Ma (2014) for ``multi0``; Pustejovsky and Tipton (2018).
    """

    labels: tuple[Any, ...]
    kind: ClusterKind
    factor: str | None
    multi0: bool
    repair_psd: bool
    dof: Literal["G-1", "satterthwaite"] | None

    def __init__(
        self,
        *labels: Any,
        kind: ClusterKind = "CR0",
        factor: str | None = None,
        multi0: bool = False,
        repair_psd: bool = False,
        dof: Literal["G-1", "satterthwaite"] | None = None,
    ) -> None:
        _check_arguments(labels, kind, factor, dof)
        given = {
            "labels": labels,
            "kind": kind,
            "factor": factor,
            "multi0": bool(multi0),
            "repair_psd": bool(repair_psd),
            "dof": dof,
        }
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def __call__(self, equation: EstimatingEquation, root: Root) -> Covariance:
        """Return the covariance of the root."""
        equation = self._summed(equation, root.theta)
        source = _source(equation, root.theta, self)
        ways = self._ways(equation, source.n_rows)
        sensitivity = equation.sensitivity(root.theta)
        sensitivity_factor(sensitivity, equation.names)  # refuse before whitening
        terms = _meats(source, ways, self.kind, self.factor, self.multi0)
        meat = _signed_sum(terms) / equation.n_units
        matrix = equation_sandwich(equation, sensitivity, meat)
        findings = cluster_findings(
            min(_count(codes) for codes in ways), sum(count for _, _, count in terms)
        )
        if len(ways) > 1:
            one_way = _signed_sum(terms[: len(ways)]) / equation.n_units
            reference = equation_sandwich(equation, sensitivity, one_way)
            matrix, found = semidefinite(
                matrix, reference, self.repair_psd, equation.names
            )
            findings += found
        dof, matched, found = self._degrees(source, ways, equation.names)
        return Covariance(
            matrix,
            self._description(),
            _CITATION.get(self.kind, _CITATION["CR0"])
            + (f"; {_MULTI_WAY}" if len(ways) > 1 else ""),
            factor=self.factor or _FACTOR.get(self.kind, ""),
            dof=dof,
            dof_kind="satterthwaite" if matched is not None else "G-1",
            n_clusters=tuple(_count(codes) for codes in ways),
            findings=findings + found,
            contrast_dof=matched,
        )

    def _summed(self, equation: Any, theta: Vector) -> Any:
        """Return sums within the finest intersections of data read in blocks."""
        streamed = getattr(equation, "summed_within", None)
        needs_rows = self.kind in _POWER or self.dof == "satterthwaite"
        needs_rows |= self.multi0 and len(self.labels) > 1
        if streamed is None or needs_rows:  # refused there, naming what works
            return equation
        return streamed(self.labels, theta)

    def _ways(self, equation: EstimatingEquation, n_rows: int) -> list[IntVector]:
        ways = []
        for label in self.labels:
            codes, groups = resolve_labels(equation, label, "labels", n_rows)
            if groups < 2:
                raise InferenceError(
                    f"`labels` {label_text(label)!r} has one cluster, and the variance "
                    "between clusters needs at least two (preferably 20); psi sums to "
                    "zero over a single cluster. Cluster on a finer level."
                )
            ways.append(codes)
        return ways

    def _degrees(
        self, source: "_Source", ways: Sequence[IntVector], names: Sequence[str]
    ) -> tuple[Vector | float, Satterthwaite | None, tuple[Finding, ...]]:
        wanted = self.dof or (
            "satterthwaite" if self.kind in ("CR2", "CR3") and len(ways) == 1 else "G-1"
        )
        if wanted == "G-1":
            return float(min(_count(codes) for codes in ways) - 1), None, ()
        if len(ways) > 1:
            raise InferenceError(
                "`dof='satterthwaite'` is not defined for several ways of clustering; "
                "leave `dof` out to use the smallest G - 1."
            )
        matched = Satterthwaite(source.regression(ways[0], self.kind))
        dof = matched(np.eye(len(names)))
        return dof, matched, dof_findings(dof, names)

    def _description(self) -> str:
        by = " and ".join(label_text(label) for label in self.labels)
        extra = ", multi0" if self.multi0 and len(self.labels) > 1 else ""
        return f"{self.kind} clustered by {by}{extra}"


def _check_arguments(
    labels: tuple[Any, ...], kind: str, factor: str | None, dof: str | None
) -> None:
    if not labels:
        raise ValueError(
            "`labels` is empty; give a column name or an array of labels for each way "
            "of clustering."
        )
    if kind not in get_args(ClusterKind):
        raise ValueError(
            f"`kind` must be one of {', '.join(get_args(ClusterKind))}; got {kind!r}."
        )
    if factor is not None:
        finite_factor(factor, G=1e9, n=1e12, k=1.0)
    if dof not in (None, "G-1", "satterthwaite"):
        raise ValueError(f"`dof` must be 'G-1' or 'satterthwaite'; got {dof!r}.")


def _count(codes: IntVector) -> int:
    return int(codes.max()) + 1


# ------------------------------------------------------------- meat of every term


@dataclass(frozen=True, slots=True)
class _Source:
    """Where sums within clusters come from: rows of psi, or a weighted regression.

    ``rows`` is empty, (0, k), where no term sums psi itself.
    """

    n_rows: int
    n_effective: float
    k: int
    rows: Matrix
    working: Working | None
    squares: Vector | None = None  # sums over rows of psi squared, where streamed

    def regression(self, codes: IntVector, kind: str) -> ClusteredRegression:
        if self.working is None:
            raise CapabilityError(
                f"Satterthwaite degrees of freedom need `working`, the linear form of "
                f"a regression, which this equation does not supply. {_INSTEAD}"
            )
        return clustered_regression(
            self.working.design,
            self.working.weight,
            self.working.residual,
            codes,
            _POWER.get(kind, 0.0),
            getattr(self.working, "variance", None),
        )


def _source(equation: EstimatingEquation, theta: Vector, rule: "Clustered") -> _Source:
    k = len(equation.names)
    is_adjusted = rule.kind in _POWER
    working = None
    if is_adjusted or rule.dof == "satterthwaite":
        wanted_by = f"Clustered(kind={rule.kind!r}, dof={rule.dof!r})"
        working = working_of(equation, theta, wanted_by, _INSTEAD)
        if working.design.shape[1] != k:
            raise CapabilityError(
                f"{wanted_by} needs a linear predictor in all {k} parameters; "
                f"`working` has {working.design.shape[1]}. {_INSTEAD}"
            )
    rows = np.empty((0, k))
    if not is_adjusted or (rule.multi0 and len(rule.labels) > 1):
        rows = row_psi(equation, theta)
    n_rows = len(rows) if working is None else len(working.design)
    squares = getattr(equation, "row_squares", None)
    is_unit = n_rows == equation.n_units or squares is not None
    effective = effective_n(equation) if is_unit else float(n_rows)
    return _Source(n_rows, effective, k, rows, working, squares)


def _meats(
    source: _Source,
    ways: Sequence[IntVector],
    kind: str,
    factor: str | None,
    multi0: bool,
) -> list[tuple[int, Matrix, int]]:
    """Return (sign, sum over clusters of s s', singular clusters) of every term."""
    expression = factor or _FACTOR.get(kind, "1")
    terms = []
    signed = signed_intersections(ways)
    for position, (sign, _, codes, groups) in enumerate(signed):
        if multi0 and len(ways) > 1 and position == len(signed) - 1:
            part, singular = source.rows.T @ source.rows, 0
        else:
            value = finite_factor(
                expression, G=groups, n=source.n_effective, k=source.k
            )
            part, singular = _cluster_meat(source, codes, groups, kind)
            part = value * part
        terms.append((sign, part, singular))
    if len(terms) == 1:
        _refuse_vanishing(source, terms[0][1])
    return terms


def _refuse_vanishing(source: _Source, meat: Matrix) -> None:
    if source.squares is not None:
        alone = source.squares
    elif source.working is None:
        alone = np.einsum("ij,ij->j", source.rows, source.rows)
    else:
        design, residual = source.working.design, source.working.residual
        alone = np.einsum("ij,i,ij->j", design, residual**2, design)
    if (np.diag(meat) <= _VANISHED * source.n_rows * alone).all():
        raise InferenceError(
            "psi sums to zero within every cluster (each has its own parameters), so "
            "the covariance between clusters is zero; cluster on a coarser level or "
            "remove the parameters of the clusters."
        )


def _signed_sum(terms: Sequence[tuple[int, Matrix, int]]) -> Matrix:
    total = np.zeros_like(terms[0][1])
    for sign, part, _ in terms:
        total += sign * part
    return total


def _cluster_meat(
    source: _Source, codes: IntVector, groups: int, kind: str
) -> tuple[Matrix, int]:
    if kind not in _POWER:
        sums = sum_by_code(source.rows, codes, groups)
        meat = sums.T @ sums
        return meat, 0
    model = source.regression(codes, kind)
    meat, singular = np.zeros((source.k, source.k)), 0
    if kind.startswith("vcovCL"):
        for scores in untransposed_scores(model):
            meat += scores.T @ scores
        return meat, 0
    for block in pieces(model):
        meat += block.scores.T @ block.scores
        singular += block.n_singular
    return model.triangle.T @ meat @ model.triangle, singular
