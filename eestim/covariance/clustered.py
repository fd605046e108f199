"""Cluster-robust covariances, one- and multi-way, with small-sample adjustments."""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from eestim._arrays import IntVector, Matrix, Vector
from eestim.covariance._clusters import (
    ClusteredRegression,
    clip_negative,
    clustered_regression,
    pieces,
    quadratic_moments,
    satterthwaite_dof,
    signed_intersections,
    untransposed_scores,
)
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

FEW_CLUSTERS = 20
FEW_DOF = 4.0
_INDEFINITE = 1e-12  # of an eigenvalue in units of the one-way standard errors
_VANISHED = 1e-24  # sums within clusters, squared, relative to the rows: rounding

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


# --------------------------------------------------------------- explicit factors

_OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: float(a**b),
}
_SYMBOLS = ("G", "n", "k")


def finite_factor(expression: str, **values: float) -> float:
    """Return the value of an arithmetic expression in G, n and k.

    Only numbers, the three symbols, parentheses and ``+ - * / **`` are read; nothing
    is executed.

    Parameters
    ----------
    expression : str
        For instance ``"G/(G-1)*(n-1)/n"``.
    **values : float
        Values of ``G``, ``n`` and ``k``.

    Raises
    ------
    ValueError
        If the expression has anything else in it.
    InferenceError
        If its value is not a positive number, as G/(G-k) with G <= k.

    Examples
    --------
    >>> finite_factor("G/(G-1)*(n-1)/(n-k)", G=50, n=1000, k=3)
    1.0224551204634311
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise ValueError(_bad_factor(expression, "is not an expression")) from error
    try:
        value = _evaluate(tree, expression, values)
    except (ZeroDivisionError, OverflowError, TypeError):
        value = float("nan")
    if not (np.isfinite(value) and value > 0.0):
        given = ", ".join(f"{name} = {values[name]:g}" for name in values)
        raise InferenceError(
            f"the factor {expression} is {value:g} for {given}, not a positive number; "
            "more clusters than parameters are needed, or another `kind` or `factor`."
        )
    return value


def _evaluate(node: ast.expr, expression: str, values: dict[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number) if number is not True:
            return float(number)
        case ast.Name(id=name) if name in _SYMBOLS:
            return float(values[name])
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluate(inner, expression, values)
        case ast.BinOp(left=left, op=operation, right=right) if (
            type(operation) in _OPERATIONS
        ):
            return _OPERATIONS[type(operation)](
                _evaluate(left, expression, values),
                _evaluate(right, expression, values),
            )
    raise ValueError(_bad_factor(expression, f"contains {ast.unparse(node)!r}"))


def _bad_factor(expression: str, cause: str) -> str:
    return (
        f"`factor={expression!r}` {cause}; write arithmetic (+ - * / **) in the number "
        "of clusters G, of rows n and of parameters k, such as 'G/(G-1)*(n-1)/n'."
    )


# ------------------------------------------------------------- degrees of freedom


@dataclass(frozen=True, slots=True)
class Satterthwaite:
    """Degrees of freedom of clustered variances, matched under the working model.

    Calling it with contrasts (m, p) returns (m,) degrees of freedom; `moments`
    returns what the approximate Hotelling tests need.

    Attributes
    ----------
    model : ClusteredRegression
    transform : (r, p) array or None
        Parameters of the estimate as linear functions of those of the model.
    """

    model: ClusteredRegression
    transform: Matrix | None = None

    def _own(self, contrasts: Matrix) -> Matrix:
        rows = np.atleast_2d(np.asarray(contrasts, dtype=np.float64))
        return rows if self.transform is None else rows @ self.transform

    def __call__(self, contrasts: Matrix) -> Vector:
        """Return the degrees of freedom of each row, (m,)."""
        return satterthwaite_dof(self.model, self._own(contrasts))

    def moments(self, contrasts: Matrix) -> tuple[Matrix, npt.NDArray[np.float64]]:
        """Return mean (q, q) and covariance (q, q, q, q) of ``C V C'``.

        Rows of contrasts are scaled; see `quadratic_moments`.
        """
        return quadratic_moments(self.model, self._own(contrasts))

    def transformed(self, transform: Matrix) -> "Satterthwaite":
        """Return the same for parameters ``transform @ theta``."""
        return Satterthwaite(self.model, self._own(transform))


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
    CR1S with ``group_debias`` and ``debiased`` in this release, and
    ``factor="n/(n-k)"`` with ``debiased`` alone.

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
        source = _source(equation, root.theta, self)
        ways = self._ways(equation, source.n_rows)
        sensitivity = equation.sensitivity(root.theta)
        sensitivity_factor(sensitivity, equation.names)  # refuse before whitening
        terms = _meats(source, ways, self.kind, self.factor, self.multi0)
        meat = _signed_sum(terms) / equation.n_units
        matrix = equation_sandwich(equation, sensitivity, meat)
        findings = _cluster_findings(ways, terms)
        if len(ways) > 1:
            one_way = _signed_sum(terms[: len(ways)]) / equation.n_units
            reference = equation_sandwich(equation, sensitivity, one_way)
            matrix, found = _semidefinite(
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
        return dof, matched, _dof_findings(dof, names)

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
    is_unit = n_rows == equation.n_units
    effective = effective_n(equation) if is_unit else float(n_rows)
    return _Source(n_rows, effective, k, rows, working)


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
    return terms


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
        rows_alone = np.einsum("ij,ij->j", source.rows, source.rows)
        if (np.diag(meat) <= _VANISHED * len(codes) * rows_alone).all():
            raise InferenceError(
                "psi sums to zero within every cluster (each has its own parameters), "
                "so the covariance between clusters is zero; cluster on a coarser "
                "level or remove the parameters of the clusters."
            )
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


# ------------------------------------------------------------------------ findings


def _cluster_findings(
    ways: Sequence[IntVector], terms: Sequence[tuple[int, Matrix, int]]
) -> tuple[Finding, ...]:
    fewest = min(_count(codes) for codes in ways)
    found = []
    if fewest < FEW_CLUSTERS:
        found.append(
            Finding(
                "number of clusters",
                "warn",
                float(fewest),
                float(FEW_CLUSTERS),
                f"{fewest} clusters: the clustered covariance is noisy and on average "
                "too small.",
                'Use kind="CR2" with its Satterthwaite degrees of freedom, or '
                'Bootstrap(kind="wild-cluster").',
            )
        )
    singular = sum(count for _, _, count in terms)
    if singular:
        found.append(
            Finding(
                "clusters of full leverage",
                "warn",
                float(singular),
                0.0,
                f"{singular} clusters determine some parameters alone (I - H_gg is "
                "singular); a pseudo-inverse leaves those directions out.",
                "Standard errors of the parameters that belong to one cluster, such as "
                "its own dummy, are not trustworthy; the others are.",
            )
        )
    return tuple(found)


def _dof_findings(dof: Vector, names: Sequence[str]) -> tuple[Finding, ...]:
    low = np.flatnonzero(dof < FEW_DOF)
    if not len(low):
        return ()
    worst = int(dof.argmin())
    affected = ", ".join(names[j] for j in low[:5]) + (", ..." if len(low) > 5 else "")
    return (
        Finding(
            "Satterthwaite degrees of freedom",
            "warn",
            float(dof[worst]),
            FEW_DOF,
            f"below {FEW_DOF:g} for {affected} (lowest {dof[worst]:.2g}): a few "
            "clusters carry the estimate, and the t approximation is rough.",
            "Read these intervals as indicative; a randomisation test or "
            'Bootstrap(kind="wild-cluster") does not rest on the approximation.',
        ),
    )


def _semidefinite(
    matrix: Matrix, one_way: Matrix, repair: bool, names: Sequence[str]
) -> tuple[Matrix, tuple[Finding, ...]]:
    """Refuse negative variances; report or repair a matrix that is indefinite."""
    scale = np.sqrt(np.diag(one_way))
    scale = np.where(scale > 0.0, scale, 1.0)
    lowest = float(np.linalg.eigvalsh(matrix / np.outer(scale, scale))[0])
    if lowest >= -_INDEFINITE * len(matrix):
        return matrix, ()
    negative = np.flatnonzero(np.diag(matrix) <= 0.0)
    if len(negative) and not repair:
        raise InferenceError(
            f"the multi-way covariance gives {names[negative[0]]!r} the variance "
            f"{matrix[negative[0], negative[0]]:.3g}; pass `repair_psd=True` to set "
            "negative eigenvalues to zero, or cluster on one way."
        )
    what = (
        "The multi-way covariance is not positive semidefinite (smallest eigenvalue "
        f"{lowest:.2g} in units of one-way standard errors)"
    )
    if not repair:
        advice = (
            "Do not use it for joint tests as it is; pass `repair_psd=True`, or use "
            "kind='CR1S', which is less often indefinite, or fewer ways."
        )
        meaning = f"{what}; some contrast has a negative variance."
        return matrix, (_psd_finding(lowest, meaning, advice),)
    repaired = clip_negative(matrix, scale)
    meaning = f"{what}; its negative eigenvalues were set to zero."
    advice = "Standard errors grew by the repair; compare them with one-way clustering."
    return repaired, (_psd_finding(lowest, meaning, advice),)


def _psd_finding(lowest: float, meaning: str, advice: str) -> Finding:
    return Finding(
        "positive semidefinite covariance", "warn", lowest, 0.0, meaning, advice
    )
