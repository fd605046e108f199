"""Properties of rows, weights and clusters: 5-11, 14, 27, 30, 35."""

import numpy as np

from eestim._arrays import IntVector, Matrix, Vector
from eestim.covariance.clustered import Clustered
from eestim.equations import EstimatingEquation, sum_by_code
from eestim.errors import EestimError
from eestim.estimation import Estimate, estimate
from eestim.models.linear import GeneralizedLinear
from eestim.testing import changed
from eestim.testing.records import Violation
from eestim.testing.registry import (
    ROUNDING,
    SOLVED,
    apart,
    can_take_rows,
    holds,
    require,
    require_same_fit,
)
from eestim.testing.subjects import Subject
from eestim.weights import Frequency, Sampling

__all__ = ["OTHER_ROWS", "has_no_units", "require_same_rows"]

_ORDER = "a row of psi depends on its place (another row is read, draws go by position)"
OTHER_ROWS = "psi looks at other rows: it sums over rows, or centres by the sample"


def has_no_units(subject: Subject) -> bool:
    """Whether a row is a unit, so that rows can be repeated and reweighted."""
    return getattr(subject.equation, "unit_codes", None) is None


def _repeats_rows(subject: Subject) -> bool:
    return can_take_rows(subject) and has_no_units(subject) and subject.is_smooth


def _takes_weights(subject: Subject) -> bool:
    return _repeats_rows(subject) and _is_unweighted(subject) and subject.takes_weights


def _is_unweighted(subject: Subject) -> bool:
    linear = getattr(subject.equation, "linear", subject.equation)
    return getattr(linear, "row_weights", None) is None


def _is_reweightable(subject: Subject) -> bool:
    """Whether weights, of the package or of a capability, can be multiplied."""
    return _takes_weights(subject) or (
        hasattr(subject.equation, "reweighted") and subject.is_smooth
    )


def _refit(subject: Subject, other: EstimatingEquation) -> Estimate:
    """Fit the same model on other rows, near the root where the model has no say."""
    if not subject.is_smooth:
        return estimate(other)
    return estimate(other, start=subject.theta + 0.1 * subject.errors)


def _counts(subject: Subject, low: int) -> Vector:
    return subject.rng.integers(low, 5, subject.n_rows).astype(float)


@holds(
    5,
    "frequency weights",
    "weights w_i give theta and V of the data with row i written w_i times",
    1e-7,
    SOLVED,
    differences=1e-5,
    needs=_takes_weights,
)
def _frequencies(subject: Subject, bound: float) -> None:
    w = _counts(subject, 1)
    one = _refit(subject, subject.rows(np.arange(len(w)), Frequency(w)))
    two = _refit(subject, subject.rows(np.repeat(np.arange(len(w)), w.astype(int))))
    _require_equal(one, two, bound, "frequency weights are not replication")


def _require_equal(
    one: Estimate, two: Estimate, bound: float, what: str, cause: str = ""
) -> None:
    errors = np.asarray(two.se, dtype=np.float64)
    moved = float(np.max(np.abs(one.theta - two.theta) / errors))
    require(moved, bound, f"{what}: estimates differ, in standard errors", cause)
    require(
        apart(one.spread.matrix, two.spread.matrix, errors),
        bound,
        f"{what}: covariances differ",
        cause,
    )


@holds(
    6,
    "scale of weights",
    "sampling weights w and c w give the same theta and V",
    1e-7,
    SOLVED,
    differences=1e-5,
    needs=_is_reweightable,
)
def _scale_free(subject: Subject, bound: float) -> None:
    if _takes_weights(subject):
        w = subject.rng.uniform(0.5, 2.0, subject.n_rows)
        every = np.arange(subject.n_rows)
        one, two = (subject.rows(every, Sampling(c * w)) for c in (1.0, 7.3))
    else:
        w = subject.rng.uniform(0.5, 2.0, len(subject.psi))
        one, two = (subject.equation.reweighted(c * w) for c in (1.0, 7.3))
    first, second = _refit(subject, one), _refit(subject, two)
    _require_equal(
        first,
        second,
        bound,
        "results depend on the scale of the weights",
        "weights are missing in psi or in the sensitivity",
    )


@holds(
    7,
    "order of rows",
    "permuting the rows of the data permutes psi and leaves theta and V",
    1e-7,
    SOLVED,
    differences=1e-5,
    needs=can_take_rows,
)
def _permuted(subject: Subject, bound: float) -> None:
    order = subject.rng.permutation(subject.n_rows)
    other = subject.rows(order)
    theta = subject.near
    psi, seen = subject.equation.psi(theta), np.asarray(other.psi(theta))
    require_same_rows(subject, psi, seen, order)
    if not subject.is_smooth and not hasattr(other, "check_root"):
        return  # a general psi that jumps has many roots within a unit's reach
    fit = _refit(subject, other)
    bound = bound if subject.is_smooth else max(bound, 1e-6)
    require_same_fit(
        subject, fit.theta, fit.spread.matrix, bound, "the order of rows", _ORDER
    )


def require_same_rows(
    subject: Subject, psi: Matrix, seen: Matrix, order: IntVector
) -> None:
    """Raise unless ``seen`` is psi of the same rows in that order."""
    size = np.abs(psi).max(axis=0) + 1e-300
    if len(psi) == len(order) and has_no_units(subject):
        gap = float(np.max(np.abs(seen - psi[order]) / size))
        require(gap, 1e-9, "psi of permuted rows is not permuted psi", _ORDER)
    for power in (1, 2):
        gap = float(
            np.max(np.abs((seen**power).sum(axis=0) - (psi**power).sum(axis=0)))
            / np.max(np.abs(psi**power).sum(axis=0) + 1e-300)
        )
        require(gap, 1e-9, f"the sum of psi**{power} depends on the order", _ORDER)


# ------------------------------------------------------------------------ clusters


def _clustered(subject: Subject, labels: object) -> Matrix:
    rule = Clustered(labels, kind="CR0")
    return subject.fit.with_covariance(rule).spread.matrix


def _labels(subject: Subject) -> IntVector:
    groups = max(subject.p + 3, 6)
    return subject.rng.integers(0, groups, subject.n_psi_rows)


@holds(
    8,
    "clusters of one",
    "clusters of size 1 give HC0",
    1e-9,
    ROUNDING,
    needs=has_no_units,
)
def _clusters_of_one(subject: Subject, bound: float) -> None:
    V = _clustered(subject, np.arange(subject.n_psi_rows))
    gap = apart(V, subject.fit.spread.matrix, subject.errors)
    require(gap, bound, "clusters of size 1 are not HC0")


@holds(
    9,
    "a single cluster",
    "one cluster gives M = 0 at the root, so the rule must refuse it",
    0.0,
    "it raises or it does not",
)
def _single_cluster(subject: Subject, bound: float) -> None:  # noqa: ARG001
    try:
        _clustered(subject, np.zeros(subject.n_psi_rows))
    except EestimError:
        return
    raise Violation("one cluster gave a covariance instead of an error", "")


@holds(
    10,
    "names of clusters",
    "V does not depend on how clusters are called",
    1e-10,
    ROUNDING,
)
def _relabelled(subject: Subject, bound: float) -> None:
    labels = _labels(subject)
    names = np.array([f"g{v}" for v in subject.rng.permutation(labels.max() + 1)])
    V = _clustered(subject, labels)
    errors: Vector = np.asarray(np.sqrt(np.diag(V)))
    require(
        apart(_clustered(subject, names[labels]), V, errors), bound, "labels matter"
    )


@holds(
    11,
    "sums within clusters",
    "clustering is the sandwich of psi summed within clusters",
    1e-8,
    ROUNDING,
    differences=1e-6,
)
def _presummed(subject: Subject, bound: float) -> None:
    labels = _labels(subject)
    _, codes = np.unique(labels, return_inverse=True)
    V = _clustered(subject, labels)
    rows = getattr(subject.equation, "psi_rows", subject.equation.psi)(subject.theta)
    sums = sum_by_code(np.asarray(rows), codes, codes.max() + 1)
    scale = subject.slope * subject.equation.n_units
    half = np.linalg.solve(scale, sums.T)
    gap = apart(half @ half.T, V, np.sqrt(np.diag(V)))
    require(gap, bound, "clustering is not the sandwich of summed psi")


@holds(
    14,
    "disjoint samples",
    "equations on disjoint samples have a block-diagonal V, at an exact root",
    1e-7,
    SOLVED,
    differences=1e-5,
    needs=_repeats_rows,
)
def _disjoint(subject: Subject, bound: float) -> None:
    half = np.arange(subject.n_rows) < subject.n_rows // 2
    order = subject.rng.permutation(subject.n_rows)
    parts = [subject.rows(np.sort(order[where])) for where in (half, ~half)]
    fits = [_refit(subject, part) for part in parts]
    root = np.concatenate([fit.theta for fit in fits])
    whole = estimate(changed.of_disjoint_samples(parts[0], parts[1], root), root=root)
    V, p = whole.spread.matrix, subject.p
    errors = np.concatenate([fit.se.to_numpy() for fit in fits])
    expected = changed.block_diagonal([fit.spread.matrix for fit in fits])
    require(apart(V, expected, errors), bound, "samples that share nothing interact")
    require(
        float(np.abs(V[:p, p:]).max() / errors.max() ** 2), 0.0, "cross block not zero"
    )


@holds(
    27,
    "rows three times",
    "writing each row three times divides V by 3, and clustering on the row undoes it",
    1e-7,
    SOLVED,
    differences=1e-5,
    needs=_repeats_rows,
)
def _triplicate(subject: Subject, bound: float) -> None:
    rows = np.tile(np.arange(subject.n_rows), 3)
    other = subject.rows(rows)
    fit = _refit(subject, other)
    cause = OTHER_ROWS
    require_same_fit(
        subject, fit.theta, 3.0 * fit.spread.matrix, bound, "writing rows thrice", cause
    )
    if subject.n_psi_rows == subject.n_rows:
        V = fit.with_covariance(Clustered(rows, kind="CR0")).spread.matrix
        gap = apart(V, subject.fit.spread.matrix, subject.errors)
        require(gap, bound, "clustering on the original row does not undo it", cause)


@holds(
    30,
    "weight zero",
    "a row of weight zero is a row that is not there, n = sum of weights",
    1e-7,
    SOLVED,
    differences=1e-5,
    needs=_takes_weights,
)
def _weight_zero(subject: Subject, bound: float) -> None:
    w = np.ones(subject.n_rows)
    left_out = subject.rng.permutation(subject.n_rows)[: max(subject.n_rows // 10, 1)]
    w[left_out] = 0.0
    one = _refit(subject, subject.rows(np.arange(len(w)), Frequency(w)))
    two = _refit(subject, subject.rows(np.flatnonzero(w)))
    _require_equal(one, two, bound, "weight zero is not deletion")


# ------------------------------------------------------------------- interpolation


def _can_interpolate(subject: Subject) -> bool:
    if not (_repeats_rows(subject) and _is_unweighted(subject)):
        return False
    return isinstance(subject.equation, GeneralizedLinear) or subject.p == 1


@holds(
    35,
    "interpolation",
    "a fit that makes every psi_i zero has M = 0, so it must be refused",
    0.0,
    "it raises or it does not",
    needs=_can_interpolate,
)
def _saturated(subject: Subject, bound: float) -> None:  # noqa: ARG001
    if subject.p == 1:
        rows = np.full(5, int(subject.rng.integers(subject.n_rows)))
    else:
        rows = subject.rng.permutation(subject.n_rows)[: subject.p]
    try:
        fit = estimate(subject.rows(rows))
    except EestimError:
        return
    raise Violation(
        f"a fit that interpolates {len(rows)} rows has standard errors "
        f"{fit.se.to_numpy()}",
        "psi does not vanish where the model fits a row exactly, or n is wrong",
    )
