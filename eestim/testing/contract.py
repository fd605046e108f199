"""What any equation must satisfy before a sandwich makes sense.

These have number 0. They run first, at the start where there is no root yet, since
a wrong derivative or a psi that changes between calls makes every other answer wrong.
"""

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from eestim._arrays import IntVector, Matrix, Vector
from eestim._differentiate import jumping_columns, response_steps
from eestim.errors import EestimError
from eestim.testing.records import Violation
from eestim.testing.registry import can_take_rows, holds, require
from eestim.testing.subjects import Subject
from eestim.testing.units import OTHER_ROWS, has_no_units, require_same_rows
from eestim.weights import Frequency

__all__ = ["contract_point"]

_IDENTICAL = "the same call twice: not a bit may differ"
_TENTHS = 100.0 * np.e  # steps of a thousandth of psi; not round, as theta may be
_DIFFERENCES = 1e-6  # of a row, theta in steps of its own
_MINUTE = 1e-7  # of a step of a thousandth: beyond 24 bits, well within 53
_HUGE = 1e50  # of psi; squares of sums of larger ones overflow
_GLOBAL = "uses the global generator"
_REDRAWN = "draws are redrawn at every call, or a state is kept between calls"


def contract_point(subject: Subject) -> Vector:
    """Return where psi is looked at: near the start, or near the root for odd seeds.

    A wrong derivative keeps the solver busy for long, so the first example, whose seed
    is 0, does not solve.
    """
    start = getattr(subject.equation, "start", None)
    if start is None or subject.example.seed % 2:
        try:
            return _within_domain(subject, subject.theta, subject.near - subject.theta)
        except EestimError:  # what keeps it from a root is looked for at the start
            start = np.zeros(len(subject.equation.names)) if start is None else start
    point: Vector = np.array(start, dtype=np.float64)
    part = subject.example.shift * np.arange(1, len(point) + 1) / len(point)
    return _within_domain(subject, point, part * _reach(subject, point))


def _within_domain(subject: Subject, point: Vector, away: Vector) -> Vector:
    """Return ``point + away``, or less far where the domain of psi ends."""
    for part in (1.0, 0.1, 0.01):
        if _is_finite(subject, point + part * away):
            return point + part * away
    return point


def _reach(subject: Subject, point: Vector) -> Vector:
    """Return moves that change psi by some tenths, whatever the units of theta.

    In units of theta itself a covariate of a million would saturate a logistic psi,
    whose derivatives are then rounding.
    """
    try:
        steps = response_steps(subject.equation.psi, point)
    except EestimError:
        return 0.1 * np.maximum(np.abs(point), 1.0)
    reach: Vector = np.where(steps > 0, _TENTHS * steps, -steps)
    return np.where(np.isfinite(reach), reach, 0.0)


def _is_finite(subject: Subject, point: Vector) -> bool:
    with np.errstate(all="ignore"):
        try:
            values = np.asarray(subject.equation.psi(point.copy()))
        except EestimError:
            return False
    return bool(np.isfinite(values).all() and np.abs(values).max() < _HUGE)


def _other_point(subject: Subject, theta: Vector) -> Vector:
    """Return another theta: near by, and nearer where the domain of psi ends."""
    away = 0.01 * _reach(subject, theta)
    for part in (1.0, 1e-3, 1e-6):
        if _is_finite(subject, theta + part * away):
            break
    return theta + part * away


@holds(
    0,
    "shapes",
    "psi is (n_units, q) of finite float64, the sensitivity (q, p), names differ",
    0.0,
    "no tolerance: counts",
)
def _shapes(subject: Subject, bound: float) -> None:  # noqa: ARG001
    equation, theta = subject.equation, contract_point(subject)
    psi, slope = equation.psi(theta), equation.sensitivity(theta)
    n, p = int(equation.n_units), len(equation.names)
    if len(set(equation.names)) != p or p != len(theta):
        raise Violation(f"{p} names {equation.names} for {len(theta)} parameters")
    if np.ndim(psi) != 2 or len(psi) != n:
        cause = "n_units is not the number of rows of psi"
        if np.shape(psi)[:1] == (1,):
            cause = "psi sums over rows"
        raise Violation(f"psi has shape {np.shape(psi)} for {n} units", cause)
    if np.shape(slope) != (psi.shape[1], p) or psi.shape[1] < p:
        cause = (
            "psi drops an equation" if psi.shape[1] < p else "sensitivity is transposed"
        )
        raise Violation(
            f"the sensitivity has shape {np.shape(slope)}, psi {psi.shape[1]} columns, "
            f"and there are {p} parameters",
            cause,
        )
    for name, values in (("psi", psi), ("the sensitivity", slope)):
        if np.asarray(values).dtype != np.float64:
            raise Violation(
                f"{name} is {np.asarray(values).dtype}", "computed in another precision"
            )
        if not np.isfinite(values).all():
            raise Violation(f"{name} is not finite at {theta}", "outside the domain")


@holds(
    0,
    "arguments untouched",
    "psi and A modify neither theta nor the data",
    0.0,
    _IDENTICAL,
)
def _untouched(subject: Subject, bound: float) -> None:  # noqa: ARG001
    equation, theta = subject.equation, contract_point(subject)
    before = [array.copy() for array in _arrays_of(subject)]
    given = theta.copy()
    for name in ("psi", "sensitivity"):
        getattr(equation, name)(given)
        if not np.array_equal(given, theta):
            raise Violation(f"{name} modifies theta", "theta is modified in place")
        after = _arrays_of(subject)  # a column may have been replaced
        for array, copy in zip(after, before, strict=False):
            if len(after) != len(before) or not _equal(array, copy):
                raise Violation(f"{name} modifies the data", "data modified in place")


def _equal(one: Any, two: Any) -> bool:
    return bool(np.array_equal(one, two, equal_nan=one.dtype.kind == "f"))


def _arrays_of(subject: Subject) -> list[Any]:
    """Return the arrays that an equation holds, and those a factory was given."""
    made: list[Any] = []
    holders = [subject.equation, getattr(subject.equation, "data", None), subject.data]
    for holder in holders:
        if isinstance(holder, pd.DataFrame):
            made += [holder[name].to_numpy() for name in holder]
        elif isinstance(holder, Mapping):
            made += [v for v in holder.values() if isinstance(v, np.ndarray)]
        elif holder is not None:
            members = getattr(holder, "__dict__", {})
            made += [
                v
                for name, v in members.items()
                if isinstance(v, np.ndarray) and not name.startswith("_")
            ]
    return made


@holds(
    0,
    "same answer twice",
    "psi(theta) called twice gives the same numbers, and moves no global generator",
    0.0,
    _IDENTICAL,
)
def _deterministic(subject: Subject, bound: float) -> None:  # noqa: ARG001
    equation, theta = subject.equation, contract_point(subject)
    with _other_generators():  # one that seeds them itself leaves its own state
        before = _generators()
        first = [np.array(equation.psi(theta)), np.array(equation.sensitivity(theta))]
        touched = _generators() != before
    second = [np.array(equation.psi(theta)), np.array(equation.sensitivity(theta))]
    if touched:
        raise Violation("psi or the sensitivity moves a global generator", _GLOBAL)
    for name, one, two in zip(("psi", "the sensitivity"), first, second, strict=True):
        if not np.array_equal(one, two):
            raise Violation(
                f"{name} differs between two calls at one theta, by up to "
                f"{np.abs(one - two).max():.3g}",
                _REDRAWN,
            )


@contextlib.contextmanager
def _other_generators() -> Iterator[None]:
    """Put the global generators of NumPy and Python elsewhere, and back."""
    kept, own = np.random.get_state(), random.getstate()  # noqa: NPY002 - to restore
    np.random.seed(20260101)  # noqa: NPY002 - only for the time of the check
    random.seed(20260101)
    try:
        yield
    finally:
        np.random.set_state(kept)  # noqa: NPY002
        random.setstate(own)


def _generators() -> list[Any]:
    """Return the state of the generators that a function may reach for."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - what we look for
    states = [kind, np.asarray(keys).tobytes(), rest, random.getstate()]
    torch = sys.modules.get("torch")
    if torch is not None:
        states.append(torch.get_rng_state().numpy().tobytes())
    return states


@holds(
    0,
    "no memory",
    "psi and A depend on theta alone, not on what was asked before",
    0.0,
    f"{_IDENTICAL}; differences of psi agree to their accuracy, 1e-6",
)
def _no_memory(subject: Subject, bound: float) -> None:  # noqa: ARG001
    equation, theta = subject.equation, contract_point(subject)
    other = _other_point(subject, theta)
    for name in ("psi", "sensitivity"):
        call = getattr(equation, name)
        here = call(theta.copy())
        kept = np.array(here)
        there = np.array(call(other.copy()))
        if not np.array_equal(here, kept):
            raise Violation(
                f"the array that {name} returned changed at the next call",
                "the same array is returned every time",
            )
        if not _agree(subject, name, np.array(call(theta.copy())), kept):
            raise Violation(
                f"{name} at one theta changes once it was asked at another",
                "hidden state: something is kept between calls",
            )
        moving = theta.copy()
        call(moving)
        moving[:] = other
        if not _agree(subject, name, np.array(call(moving)), there):
            raise Violation(
                f"{name} at a theta changed in place is that of the old theta",
                "stale cache, keyed by the array rather than its values",
            )
    _same_when_fresh(subject, theta, other)


def _agree(subject: Subject, name: str, one: Matrix, two: Matrix) -> bool:
    """Whether two answers are one: to the bit, differences to their own accuracy.

    Differences may keep the steps of an earlier theta, as those of eestim do.
    """
    if np.array_equal(one, two):
        return True
    if name == "psi" or subject.is_exact or one.shape != two.shape:
        return False
    steps = np.abs(response_steps(subject.equation.psi, contract_point(subject)))
    return _in_steps(one, two, steps) <= _DIFFERENCES


def _same_when_fresh(subject: Subject, theta: Vector, other: Vector) -> None:
    """Raise where an equation made anew from the same data answers otherwise."""
    if subject.take is None:
        return
    fresh = subject.rows(np.arange(subject.n_rows))
    names = ["psi"]
    if not jumping_columns(fresh.psi, other).any():
        names.append("sensitivity")
    for name in names:
        for point in (other, theta):
            one = np.asarray(getattr(subject.equation, name)(point))
            two = np.asarray(getattr(fresh, name)(point))
            size = np.abs(two).max() + 1e-300
            is_same = one.shape == two.shape and (
                np.abs(one - two).max() <= 1e-7 * size
                or _agree(subject, name, one, two)
            )
            if not is_same:
                raise Violation(
                    f"{name} differs from that of an equation made anew from its data",
                    "hidden state or a stale cache: something is kept between calls",
                )


@holds(
    0,
    "units differ",
    "psi is not one number for all units that moves with theta",
    0.0,
    "no tolerance: equal numbers",
)
def _units_differ(subject: Subject, bound: float) -> None:  # noqa: ARG001
    theta = contract_point(subject)
    here, there = (
        np.asarray(subject.equation.psi(point))
        for point in (theta, _other_point(subject, theta))
    )
    are_same = all((np.ptp(psi, axis=0) == 0).all() for psi in (here, there))
    if len(here) > 2 and are_same and not np.array_equal(here, there):
        raise Violation("every unit has the same psi", "psi sums over rows")


@holds(
    0,
    "a unit of its own",
    "psi of a unit does not depend on which other units there are",
    1e-9,
    "relative to the largest entry of a column",
    needs=can_take_rows,
)
def _additive(subject: Subject, bound: float) -> None:
    if subject.n_rows < 2 or not has_no_units(subject):
        return
    theta = contract_point(subject)
    psi = np.asarray(subject.equation.psi(theta))
    order = np.random.default_rng(subject.example.seed).permutation(subject.n_rows)
    require_same_rows(subject, psi, np.asarray(subject.rows(order).psi(theta)), order)
    kept = np.sort(order[: max(subject.n_rows // 2, 1)])
    rest = np.sort(order[len(kept) :])
    parts = [np.asarray(subject.rows(rows).psi(theta)) for rows in (kept, rest)]
    size = np.abs(psi).max(axis=0) + 1e-300
    if _is_normalised(subject):
        parts = [
            part * _common_factor(psi, part, rows)
            for part, rows in zip(parts, (kept, rest), strict=True)
        ]
    if len(psi) == subject.n_rows:
        for rows, part in zip((kept, rest), parts, strict=True):
            gap = float(np.max(np.abs(part - psi[rows]) / size))
            require(gap, bound, "psi of a row changes with the other rows", OTHER_ROWS)
    for power in (1, 2):
        whole = (psi**power).sum(axis=0)
        gap = np.abs(sum((part**power).sum(axis=0) for part in parts) - whole)
        value = float(np.max(gap / (len(psi) * size**power)))
        require(value, bound, "sums of psi do not add up over parts", OTHER_ROWS)


@holds(
    0,
    "double precision",
    "psi follows a change of theta that moves it by a ten-billionth",
    0.0,
    "a psi in float64 moves where its derivative says that it moves by more than "
    "10,000 roundings",
)
def _double_precision(subject: Subject, bound: float) -> None:  # noqa: ARG001
    equation, theta = subject.equation, contract_point(subject)
    if jumping_columns(equation.psi, theta).any():
        return
    psi = np.asarray(equation.psi(theta))
    _refuse_float32_values(psi)
    step = np.abs(response_steps(equation.psi, theta))
    far = np.asarray(equation.psi(theta + step))
    predicted = np.abs(far - psi) * _MINUTE
    visible = predicted > 1e4 * np.finfo(np.float64).eps * np.maximum(
        np.abs(psi).max(axis=0), 1e-300
    )
    moved = np.asarray(equation.psi(theta + _MINUTE * step)) != psi
    share = float(np.mean(moved[visible])) if visible.sum() > 8 else 1.0
    if share < 0.2:
        raise Violation(
            f"{1 - share:.0%} of the contributions do not move with theta in the tenth "
            "digit",
            "theta or psi is truncated to float32",
        )


def _refuse_float32_values(psi: Matrix) -> None:
    for k in range(psi.shape[1]):
        column = psi[:, k]
        values = np.unique(column[column != 0])
        with np.errstate(over="ignore"):
            single = values.astype(np.float32).astype(np.float64)
        short = values == np.round(values, 3)  # typed in with few digits
        if len(values) > 8 and (single == values).all() and not short.all():
            raise Violation(
                f"all {len(values)} values in column {k} of psi have 24 bits",
                "psi is truncated to float32",
            )


@holds(
    0,
    "derivative",
    "the sensitivity is minus the mean derivative of psi",
    1e-5,
    "central differences, extrapolated, in units of the largest entry of a row; a "
    "kink of psi within a step is stepped around",
)
def _derivative(subject: Subject, bound: float) -> None:
    equation, theta = subject.equation, contract_point(subject)
    if jumping_columns(equation.psi, theta).any():
        return  # its derivative is an estimate of a density
    steps = np.abs(response_steps(equation.psi, theta))
    A = np.asarray(equation.sensitivity(theta))
    size = np.sqrt(np.mean(np.square(equation.psi(theta)), axis=0))
    scale = np.where(size > 0, size, 1.0)[:, None] / steps
    seen, gap = A, np.inf
    for length in (0.25, 0.02, 0.002):
        trial = _differences(equation, theta, length * steps)
        row = np.maximum(np.abs(trial), np.abs(A)) / scale
        worst = np.abs(trial - A) / scale / np.maximum(row.max(axis=1), 1e-7)[:, None]
        if float(worst.max()) < gap:
            seen, gap = trial, float(worst.max())
        if gap <= bound:
            return
    where = np.unravel_index(int(np.argmax(np.abs(seen - A) / scale)), A.shape)
    k, j = (int(v) for v in where)
    raise Violation(
        f"entry ({k}, {j}) of the sensitivity is {A[k, j]:.6g}, and differences of psi "
        f"give {seen[k, j]:.6g} (relative deviation {gap:.2g}, allowed {bound:.2g})",
        _derivative_cause(A, seen, scale, int(equation.n_units)),
    )


def _differences(equation: Any, theta: Vector, steps: Vector) -> Matrix:
    def along(j: int, h: float) -> Vector:
        up, down = theta.copy(), theta.copy()
        up[j] += h
        down[j] -= h
        change = np.asarray(equation.psi(up)) - np.asarray(equation.psi(down))
        slope: Vector = -change.mean(axis=0) / (up[j] - down[j])
        return slope

    columns = [(4.0 * along(j, h / 2) - along(j, h)) / 3.0 for j, h in enumerate(steps)]
    return np.column_stack(columns)


def _derivative_cause(A: Matrix, seen: Matrix, scale: Matrix, n: int) -> str:
    """Return what a wrong derivative looks like."""
    told, true = A / scale, seen / scale

    def close(one: Matrix, two: Matrix) -> bool:
        return bool(np.abs(one - two).max() <= 1e-3 * max(np.abs(two).max(), 1e-300))

    if close(-told, true):
        return "sensitivity has the wrong sign"
    is_square = A.shape[0] == A.shape[1]
    if is_square and not close(A / scale, A.T / scale) and close(A.T / scale, true):
        return "sensitivity is transposed"
    ratio = float(np.sum(told * true) / max(float(np.sum(true * true)), 1e-300))
    if abs(ratio - 1) > 0.01 and close(told, ratio * true):
        if abs(ratio / n - 1) < 1e-3:
            return "sensitivity sums over rows instead of taking their mean"
        return f"sensitivity is {ratio:.4g} times the derivative: a factor is missing"
    silent = np.flatnonzero(~told.any(axis=0) & true.any(axis=0))
    if len(silent):
        return f"sensitivity misses the column of parameter {int(silent[0])}"
    wrong = np.abs(told - true) > 1e-4 * np.abs(true).max()
    signs = wrong & (np.abs(told + true) <= 1e-3 * np.abs(true).max())
    if wrong.any() and (wrong == signs).all():
        return "sensitivity has the wrong sign in some entries"
    is_large = bool(np.abs(told - true).max() > 0.05 * np.abs(true).max())
    lines = wrong.any(axis=1).sum() == 1 or wrong.any(axis=0).sum() == 1
    if is_large and lines and len(A) > 1:
        line = "row" if wrong.any(axis=1).sum() == 1 else "column"
        place = int(np.flatnonzero(wrong.any(axis=1 if line == "row" else 0))[0])
        return f"sensitivity is wrong in {line} {place} alone"
    return (
        "sensitivity is not the derivative of psi: a weight or a term is missing, a "
        "link derivative is wrong, or it is that of another theta"
    )


@holds(
    0,
    "capabilities",
    "moments, unit_sensitivity, psi_rows and reweighted agree with psi and A",
    1e-7,
    "the same sums by two routes; 1e-4 for derivatives of single units by differences",
)
def _capabilities(subject: Subject, bound: float) -> None:
    equation, theta = subject.equation, contract_point(subject)
    psi, A = np.asarray(equation.psi(theta)), np.asarray(equation.sensitivity(theta))
    size = np.sqrt(np.mean(psi**2, axis=0)) + 1e-300
    if hasattr(equation, "moments"):
        equation.moments(_other_point(subject, theta))  # what it keeps must not show
        told = equation.moments(theta)
        gaps = (
            np.abs(told.mean - psi.mean(axis=0)) / size,
            np.abs(told.meat - psi.T @ psi / len(psi)) / np.outer(size, size),
            np.abs(told.sensitivity - A) / np.maximum(np.abs(A).max(), 1e-300),
        )
        for name, gap in zip(("mean", "meat", "sensitivity"), gaps, strict=True):
            require(
                float(gap.max()), bound, f"`moments` has another {name}", "stale cache"
            )
    if hasattr(equation, "psi_rows"):
        rows = np.asarray(equation.psi_rows(theta))
        gap = np.abs(rows.sum(axis=0) - psi.sum(axis=0)) / (len(psi) * size)
        require(float(gap.max()), bound, "`psi_rows` does not sum to psi")
    if not jumping_columns(equation.psi, theta).any():
        _smooth_capabilities(subject, theta, psi, A)


def _smooth_capabilities(
    subject: Subject, theta: Vector, psi: Matrix, A: Matrix
) -> None:
    equation = subject.equation
    steps = np.abs(response_steps(equation.psi, theta))
    if hasattr(equation, "unit_sensitivity") and len(psi) <= 500:
        mean = np.asarray(equation.unit_sensitivity(theta)).mean(axis=0)
        gap = _in_steps(mean, A, steps)
        cause = "unit_sensitivity has the wrong sign" if abs(gap - 2) < 1e-3 else ""
        told = "`unit_sensitivity` does not average to the sensitivity"
        require(gap, 1e-4, told, cause)
    if not hasattr(equation, "reweighted"):
        return
    w = np.random.default_rng(subject.example.seed).uniform(0.2, 3.0, len(psi))
    other = equation.reweighted(w)
    size = np.sqrt(np.mean(psi**2, axis=0)) + 1e-300
    told = np.asarray(other.psi(theta)).sum(axis=0) / w.sum()
    gap = np.abs(told - w @ psi / w.sum()) / size
    cause = "psi ignores the weights"
    require(float(gap.max()), 1e-7, "`reweighted` psi is not w psi", cause)
    seen = _differences(other, theta, 0.02 * steps)
    gap = _in_steps(np.asarray(other.sensitivity(theta)), seen, steps)
    require(
        gap,
        1e-3,
        "the sensitivity of `reweighted` is not the derivative of its psi",
        "sensitivity ignores the weights",
    )


def _is_normalised(subject: Subject) -> bool:
    """Whether weights are scaled to sum to the number of rows, so that parts differ."""
    linear = getattr(subject.equation, "linear", subject.equation)
    has_weights = getattr(linear, "row_weights", None) is not None
    return has_weights and getattr(linear, "weight_kind", None) is not Frequency


def _common_factor(psi: Matrix, part: Matrix, rows: IntVector) -> float:
    """Return the number that brings psi of a part to the scale of the whole."""
    return float(np.sum(psi[rows] * part) / max(float(np.sum(part * part)), 1e-300))


def _in_steps(told: Matrix, true: Matrix, steps: Vector) -> float:
    """Return how far two derivatives are apart, theta measured in steps of its own."""
    scale = np.maximum(np.max(np.abs(true) * steps, axis=1), 1e-300)[:, None]
    return float(np.max(np.abs(told - true) * steps / scale))
