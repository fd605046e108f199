"""Refitting an equation under weights, and the groups of units that are resampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs

from eestim._arrays import IntVector, Matrix, Vector, show_rows
from eestim._linalg import Factor
from eestim.covariance.base import (
    influence_of,
    label_text,
    resolve_labels,
    row_psi,
    sensitivity_factor,
)
from eestim.equations import EstimatingEquation, sum_by_code
from eestim.errors import DataError, InferenceError
from eestim.findings import Finding

__all__ = [
    "Groups",
    "aspect_finding",
    "distinct_finding",
    "failure_finding",
    "few_clusters_finding",
    "group_scores",
    "group_slopes",
    "groups_of",
    "in_parallel",
    "reference_factor",
    "unit_influence",
    "unit_slopes",
]

_WIDE = 0.1  # parameters per unit from which resampling is biased
_FEW_FAILURES = 0.05
_FEW_CLUSTERS = 20

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class Groups:
    """Units that are resampled or deleted together.

    Attributes
    ----------
    codes : (n,) array
        Group 0 .. count - 1 of each unit.
    count : int
    name : str
        Of the labels; empty where every unit is a group of its own.
    """

    codes: IntVector
    count: int
    name: str

    def spread(self, values: Vector) -> Vector:
        """Return the value of its group for every unit."""
        return values[self.codes] if self.name else values


def groups_of(
    equation: EstimatingEquation, theta: Vector, labels: Any, argument: str
) -> Groups:
    """Return the groups of units that a column name or an array of labels defines.

    Raises
    ------
    DataError
        If labels are missing, or rows of one unit are in different groups.
    InferenceError
        If there are fewer than two groups.
    """
    n = equation.n_units
    if labels is None:
        codes, count, name = np.arange(n), n, ""
    else:
        codes, count = _unit_codes(equation, theta, labels, argument)
        name = label_text(labels)
    if count < 2:
        what = f"`{argument}` {name!r} has" if name else "there is"
        raise InferenceError(
            f"{what} one group; resampling needs at least two independent ones."
        )
    return Groups(codes, count, name)


def _unit_codes(
    equation: Any, theta: Vector, labels: Any, argument: str
) -> tuple[IntVector, int]:
    n = equation.n_units
    places = getattr(equation, "unit_codes", None)
    if places is None:
        return resolve_labels(equation, labels, argument, n)
    n_rows = len(row_psi(equation, theta))
    codes, count = resolve_labels(equation, labels, argument, n_rows)
    if len(places) != n_rows:  # frequencies repeat the rows of psi
        places = np.repeat(places, np.asarray(equation.row_weights, dtype=int))
    unit = np.zeros(n, dtype=np.intp)
    unit[places] = codes
    torn = np.flatnonzero(unit[places] != codes)
    if len(torn):
        raise DataError(
            f"`{argument}` differs within a unit ({show_rows(torn)}); groups must hold "
            "whole units."
        )
    return unit, count


# ------------------------------------------------------------ parts of the sandwich


def reference_factor(equation: EstimatingEquation, theta: Vector) -> Factor:
    """Return the factors of A at the root."""
    error = float(getattr(equation, "derivative_error", 0.0))
    return sensitivity_factor(equation.sensitivity(theta), equation.names, error)


def unit_influence(equation: EstimatingEquation, theta: Vector) -> Matrix:
    r"""Return the influences :math:`A^{-1}\psi_i / n` of the units, (n, p).

    Raises
    ------
    InferenceError
        If the equation has no rows of its own to resample (a pooled estimate).
    """
    refuse = getattr(equation, "refuse_rows", None)
    if refuse is not None:
        refuse()
    influence = influence_of(equation.psi(theta), reference_factor(equation, theta))
    return influence / equation.n_units


def group_scores(rows: Matrix, groups: Groups) -> Matrix:
    """Return sums of the rows of units within groups, (G, q)."""
    return sum_by_code(rows, groups.codes, groups.count) if groups.name else rows


def unit_slopes(equation: EstimatingEquation, theta: Vector) -> Matrix | None:
    """Return minus the derivative of each unit's psi, (n, q, p), or None."""
    capability = getattr(equation, "unit_sensitivity", None)
    return None if capability is None else np.asarray(capability(theta))


def group_slopes(slopes: Matrix, groups: Groups) -> Matrix:
    """Return sums of (n, q, p) derivatives within groups, (G, q, p)."""
    if not groups.name:
        return slopes
    flat = sum_by_code(slopes.reshape(len(slopes), -1), groups.codes, groups.count)
    return flat.reshape(groups.count, *slopes.shape[1:])


# -------------------------------------------------------------------------- workers


def in_parallel(
    function: Callable[[Sequence[_Item]], list[_Made]],
    items: Sequence[_Item],
    jobs: int,
) -> list[_Made]:
    """Return what ``function`` makes of the items, shared among worker processes.

    Parameters
    ----------
    function : callable
        From a list of items to a list of results, in order.
    items : sequence
    jobs : int
        Number of processes; 1 uses none, -1 as many as there are cores.
    """
    if jobs == 1 or len(items) < 2:
        return function(items)
    workers = min(effective_n_jobs(jobs), len(items))
    parts = np.array_split(np.arange(len(items)), workers)
    chunks = [[items[i] for i in part] for part in parts]
    tasks = (delayed(function)(chunk) for chunk in chunks)
    made: list[list[_Made]] = Parallel(n_jobs=workers)(tasks)
    return [one for chunk in made for one in chunk]


# ------------------------------------------------------------------------ findings


def aspect_finding(p: int, count: int, method: str) -> tuple[Finding, ...]:
    """Return a warning where there are many parameters for the resampled groups.

    References
    ----------
    El Karoui and Purdom (2018), J. Mach. Learn. Res. 19(5).
    """
    share = p / count
    if share <= _WIDE:
        return ()
    bias = {
        "residual": "too small but for least squares",
        "pairs": "too large",
        "jackknife": "too large",
    }.get(method, "too small")
    return (
        Finding(
            "parameters per resampled unit",
            "warn",
            share,
            _WIDE,
            f"{p} parameters for {count} units: variances by this method are {bias} "
            "when p / n does not tend to zero.",
            "Use HC(3) or HCK for linear models, or the corrections of ee.asymptotics.",
        ),
    )


def failure_finding(reasons: Sequence[str], draws: int) -> tuple[Finding, ...]:
    """Return the rate and the causes of failed refits; nothing where none failed."""
    if not reasons:
        return ()
    rate = len(reasons) / draws
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    causes = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    return (
        Finding(
            "failed refits",
            "warn" if rate <= _FEW_FAILURES else "fail",
            rate,
            _FEW_FAILURES,
            f"{len(reasons)} of {draws} replicates have no root ({causes}) and are "
            "left out, so the covariance is that of samples which have one.",
            'Use Bootstrap(kind="fractional"), whose weights are positive, or '
            'kind="multiplier", which does not refit.',
        ),
    )


def few_clusters_finding(count: int) -> tuple[Finding, ...]:
    """Return a warning where there are few clusters to resample."""
    if count >= _FEW_CLUSTERS:
        return ()
    return (
        Finding(
            "number of clusters",
            "warn",
            float(count),
            float(_FEW_CLUSTERS),
            f"{count} clusters: the bootstrap covariance is noisy and on average too "
            "small.",
            "Test with the wild-cluster bootstrap of the t statistic "
            "(bootstrap_test), or use Clustered(kind='CR2').",
        ),
    )


def distinct_finding(count: int, draws: int, law: str) -> tuple[Finding, ...]:
    """Return a warning where two-point weights have fewer patterns than draws."""
    distinct = 2.0 ** min(count, 60)
    if distinct >= draws:
        return ()
    return (
        Finding(
            "distinct replicates",
            "warn",
            distinct,
            float(draws),
            f"{count} clusters have only {distinct:g} different patterns of {law} "
            "weights.",
            'Use weights="webb", which has six points.',
        ),
    )
