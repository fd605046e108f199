"""One replication after another: seeds, data, estimators, and what became of them.

The random numbers of a replication are a function of the study's seed, the factors of
its design point and its number alone. An estimator that asks for ``rng`` has its own,
identified by its name, so that adding a method changes no other.
"""

import inspect
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from eestim.errors import ConvergenceError
from eestim.simulate._design import Point, words_of
from eestim.simulate._outcomes import (
    Attempt,
    Batched,
    Failure,
    Outcome,
    SpecificationError,
    Variants,
    outcome_of,
)
from eestim.simulate._threads import one_blas_thread
from eestim.simulate.batched import BatchedFit

__all__ = ["Block", "Plan", "Produced", "produce", "run_block", "stream_of"]

_DATA = (0,)  # the purpose of a stream: the data; estimators have words of their own
_NOT_CONVERGED = ("not converged", "separated")
_MESSAGE_LENGTH = 300
_WARNINGS = threading.RLock()  # recording warnings replaces a state of the process


@dataclass(frozen=True, slots=True)
class Plan:
    """What workers need of a study.

    Attributes
    ----------
    generate : callable
    estimators : mapping from label to callable, `Variants` or `Batched`
    points : tuple of Point
    estimands, methods : tuple of str
    levels : tuple of float
    batch : int
    """

    generate: Callable[..., Any]
    estimators: Mapping[str, Any]
    points: tuple[Point, ...]
    estimands: tuple[str, ...]
    methods: tuple[str, ...]
    levels: tuple[float, ...]
    batch: int

    @property
    def is_batched(self) -> bool:
        """Whether some estimator takes many data sets at once."""
        return any(isinstance(made, Batched) for made in self.estimators.values())


@dataclass(frozen=True, slots=True)
class Block:
    """A run of replications at one point, as a table and the time it took."""

    point: int
    table: pd.DataFrame
    seconds: float

    @property
    def numbers(self) -> list[int]:
        """Numbers of its replications, in order."""
        return [int(number) for number in self.table["replication"].unique()]


@dataclass(frozen=True, slots=True)
class Produced:
    """The data of one replication, or the failure to make them."""

    stream: str
    data: Any
    failure: Failure | None
    warnings: tuple[str, ...]


def stream_of(
    seed: int, point: Point, number: int, purpose: tuple[int, ...] = _DATA
) -> np.random.SeedSequence:
    """Return the seed sequence of one replication, for one purpose."""
    return np.random.SeedSequence(seed, spawn_key=(*point.key, number, *purpose))


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_MESSAGE_LENGTH]


def _failure(error: Exception) -> Failure:
    status = "not converged" if isinstance(error, ConvergenceError) else "error"
    return Failure(status, _shown(error))


OnError = Literal["record", "raise"]
_BROKEN = (TypeError, NameError, AttributeError, ImportError)  # code, not data


def _caught(
    function: Callable[[], Any],
    on_error: OnError,
    fatal: tuple[type[Exception], ...] = (),
) -> tuple[Any, tuple[str, ...]]:
    """Return what a call returned, or a Failure, and the warnings it gave."""
    with _WARNINGS, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            value = function()
        except Exception as error:
            if on_error == "raise" or isinstance(error, (SpecificationError, *fatal)):
                raise
            value = _failure(error)
    return value, tuple(
        f"{entry.category.__name__}: {entry.message}"[:_MESSAGE_LENGTH]
        for entry in seen
    )


def produce(
    plan: Plan, point: Point, number: int, seed: int, on_error: OnError = "record"
) -> Produced:
    """Return the data of one replication."""
    sequence = stream_of(seed, point, number)
    rng = np.random.default_rng(sequence)
    value, seen = _caught(
        lambda: plan.generate(rng, **point.factors), on_error, _BROKEN
    )
    words = sequence.generate_state(4)
    stream = "".join(f"{int(word):08x}" for word in words)
    if isinstance(value, Failure):
        failure = Failure(value.status, f"generate: {value.message}")
        return Produced(stream, None, failure, seen)
    return Produced(stream, value, None, seen)


def _takes_rng(function: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins without a signature
        return False


def _call(function: Callable[..., Any], label: str, data: Any, where: Any) -> Any:
    if not _takes_rng(function):
        return function(data)
    seed, point, number = where
    sequence = stream_of(seed, point, number, words_of(label))
    return function(data, rng=np.random.default_rng(sequence))


def _attempts(
    plan: Plan, label: str, data: Any, where: Any, on_error: OnError
) -> list[Attempt]:
    """Return the attempts of one estimator: one, or one for each variant."""
    estimator = plan.estimators[label]
    if not isinstance(estimator, Variants):
        made, seen = _caught(
            lambda: _read(plan, _call(estimator, label, data, where), label), on_error
        )
        return [Attempt(made, seen)]
    fit, common = _caught(lambda: _call(estimator.fit, label, data, where), on_error)
    if isinstance(fit, Failure):
        return [Attempt(fit, common) for _ in estimator.variants]
    attempts = []
    for name, variant in estimator.variants.items():
        made, seen = _caught(partial(_varied, plan, fit, variant, name), on_error)
        attempts.append(Attempt(made, common + seen))
    return attempts


def _read(plan: Plan, returned: Any, method: str) -> Outcome | Failure:
    return outcome_of(returned, plan.estimands, plan.levels, method)


def _varied(
    plan: Plan, fit: Any, variant: Callable[[Any], Any], method: str
) -> Outcome | Failure:
    return _read(plan, variant(fit), method)


# ------------------------------------------------------------------------- batched


def _batch_attempts(
    plan: Plan, label: str, produced: Sequence[Produced], on_error: OnError
) -> list[Attempt]:
    """Return one attempt for each data set of a batch."""
    data = [made.data for made in produced if made.failure is None]
    fit = plan.estimators[label].fit

    def solved() -> list[Outcome | Failure]:
        parts = _separate(fit(data), len(data), label)
        return [_read(plan, one, label) for one in parts]

    value, seen = _caught(solved, on_error)
    results = iter([value] * len(data) if isinstance(value, Failure) else value)
    return [
        Attempt(made.failure if made.failure is not None else next(results), seen)
        for made in produced
    ]


def _separate(returned: Any, count: int, label: str) -> Iterator[Any]:
    """Return the results of a batch one by one."""
    if not isinstance(returned, BatchedFit):
        results = list(returned)
        if len(results) != count:
            raise SpecificationError(
                f"{label} returned {len(results)} results for {count} data sets."
            )
        for result in results:
            yield _failure(result) if isinstance(result, Exception) else result
        return
    if len(returned.theta) != count:
        raise SpecificationError(
            f"{label} returned {len(returned.theta)} fits for {count} data sets."
        )
    errors = returned.se
    for r, status in enumerate(returned.status.tolist()):
        if status != "converged":
            kind = "not converged" if status in _NOT_CONVERGED else "error"
            yield Failure(kind, status)
            continue
        names = returned.names
        yield {
            "estimate": dict(zip(names, returned.theta[r], strict=True)),
            "se": dict(zip(names, errors[r], strict=True)),
            "dof": dict.fromkeys(names, returned.dof),
        }


# -------------------------------------------------------------------------- blocks


def run_block(
    plan: Plan,
    point: Point,
    numbers: Sequence[int],
    seed: int,
    on_error: OnError = "record",
) -> Block:
    """Return the rows of some replications at one point.

    A batched estimator always sees its whole batch, so that its results do not
    depend on which replications were asked for.
    """
    began = time.perf_counter()
    with one_blas_thread():
        if plan.is_batched:
            rows = _batched_rows(plan, point, numbers, seed, on_error)
        else:
            rows = []
            for number in numbers:
                made = produce(plan, point, number, seed, on_error)
                where = (seed, point, number)
                attempts = _all_attempts(plan, made, {}, where, on_error)
                rows.append((number, made.stream, attempts))
    table = _table(plan, point, rows)
    return Block(point.number, table, time.perf_counter() - began)


Row = tuple[int, str, list[Attempt]]


def _batched_rows(
    plan: Plan, point: Point, numbers: Sequence[int], seed: int, on_error: OnError
) -> list[Row]:
    wanted = set(numbers)
    rows: list[Row] = []
    for batch in sorted({number // plan.batch for number in numbers}):
        inside = range(batch * plan.batch, (batch + 1) * plan.batch)
        produced = [produce(plan, point, k, seed, on_error) for k in inside]
        batched = {
            label: _batch_attempts(plan, label, produced, on_error)
            for label, estimator in plan.estimators.items()
            if isinstance(estimator, Batched)
        }
        for place, number in enumerate(inside):
            if number not in wanted:
                continue
            made = produced[place]
            known = {label: attempts[place] for label, attempts in batched.items()}
            attempts = _all_attempts(plan, made, known, (seed, point, number), on_error)
            rows.append((number, made.stream, attempts))
    return rows


def _all_attempts(
    plan: Plan,
    made: Produced,
    known: Mapping[str, Attempt],
    where: tuple[int, Point, int],
    on_error: OnError,
) -> list[Attempt]:
    """Return the attempts of all methods on one data set, in order."""
    if made.failure is not None:
        return [Attempt(made.failure, made.warnings) for _ in plan.methods]
    attempts: list[Attempt] = []
    for label in plan.estimators:
        if label in known:
            found = [known[label]]
        else:
            found = _attempts(plan, label, made.data, where, on_error)
        attempts += [Attempt(a.result, made.warnings + a.warnings) for a in found]
    return attempts


def bound_columns(levels: Sequence[float]) -> list[tuple[str, str]]:
    """Return the names of the bounds at each level; plain for the first.

    >>> bound_columns((0.95, 0.5))
    [('lower', 'upper'), ('lower 0.5', 'upper 0.5')]
    """
    return [
        ("lower", "upper") if k == 0 else (f"lower {level:g}", f"upper {level:g}")
        for k, level in enumerate(levels)
    ]


def _table(plan: Plan, point: Point, rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows in long form: one a replication, method and estimand."""
    k, levels = len(plan.estimands), plan.levels
    shape = (len(rows), len(plan.methods), k)
    numbers = {name: np.full(shape, np.nan) for name in ("estimate", "se", "dof")}
    bounds = np.full((2, len(levels), *shape), np.nan)
    counts = np.zeros(shape, dtype=np.int64)
    status, message = np.full(shape, "ok", object), np.full(shape, "", object)
    for i, (_, _, attempts) in enumerate(rows):
        for j, attempt in enumerate(attempts):
            counts[i, j] = len(attempt.warnings)
            message[i, j] = attempt.warnings[0] if attempt.warnings else ""
            result = attempt.result
            if isinstance(result, Failure):
                status[i, j], message[i, j] = result.status, result.message
                continue
            for name, column in numbers.items():
                column[i, j] = getattr(result, name)
            bounds[0, :, i, j], bounds[1, :, i, j] = result.lower, result.upper
    each, methods = len(plan.methods) * k, len(rows) * len(plan.methods)
    columns: dict[str, Any] = {"point": np.full(len(rows) * each, point.number)}
    for name, value in point.factors.items():
        columns[name] = [value] * (len(rows) * each)
    columns["replication"] = np.repeat([row[0] for row in rows], each)
    columns["method"] = np.tile(np.repeat(plan.methods, k), len(rows))
    columns["estimand"] = np.tile(plan.estimands, methods)
    columns["truth"] = np.tile(list(point.truth.values()), methods)
    columns |= {name: column.ravel() for name, column in numbers.items()}
    for level, (low, high) in enumerate(bound_columns(levels)):
        columns[low], columns[high] = bounds[0, level].ravel(), bounds[1, level].ravel()
    columns["status"], columns["warnings"] = status.ravel(), counts.ravel()
    columns["message"] = message.ravel()
    columns["stream"] = np.repeat(np.array([row[1] for row in rows], object), each)
    return pd.DataFrame(columns)
