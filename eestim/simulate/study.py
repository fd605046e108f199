"""Simulation studies: what is run, in which order, and where it goes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eestim.simulate._design import Point, points_of
from eestim.simulate._outcomes import Batched, Variants
from eestim.simulate._replications import OnError, Plan, produce, run_block
from eestim.simulate._running import Precision, Progress, Runner, verify_store
from eestim.simulate._threads import one_blas_thread
from eestim.simulate.results import Results
from eestim.simulate.store import Memory, Parquet, Sink, arranged

__all__ = ["Replication", "Study"]


@dataclass(frozen=True, slots=True)
class Replication:
    """One replication run alone.

    Attributes
    ----------
    data : object
        What `generate` returned.
    table : DataFrame
        Its rows, those of the study's table.
    """

    data: Any
    table: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Study:
    """A simulation study: data from a known law, methods, and the truth.

    Attributes
    ----------
    generate : callable
        ``generate(rng, **factors)`` returns the data of one replication. Where it
        raises every method fails, but a TypeError, NameError, AttributeError or
        ImportError stops the study.
    estimators : mapping from label to callable
        From the data (and ``rng``, where it has such an argument) to an `Estimate`,
        ``(estimate, se)``, ``(estimate, se, dof)``, ``(estimate, se, (lower, upper))``
        or a mapping with these names. `Variants` share a fit; `Batched` ones take
        many data sets at once. All see the same data and must not change them.
    truth : number, mapping, or callable
        What is estimated: one number, numbers by the names of parameters, or a
        function of the factors that returns either.
    design : mapping, DataFrame, sequence of mappings, optional
        Factors and their levels (all combinations), or one point a row.
    level : float
        Of the intervals.
    levels : tuple of float
        Further levels at which intervals are kept. Normal and t intervals need none:
        theirs follow from the standard error.
    batch : int
        Data sets that a `Batched` estimator gets at once.

    Notes
    -----
    The random numbers of a replication depend on the seed, on the factors of its
    point and on its number alone. Results are the same to the last bit whatever the
    number of jobs, the order and the interruptions, because every replication runs
    on one BLAS thread.

    References
    ----------
    Morris, White and Crowther (2019), Stat. Med. 38, 2074-2102.

    Examples
    --------
    >>> study = Study(
    ...     generate=lambda rng, n: rng.normal(1.0, 1.0, n),
    ...     estimators={"mean": lambda y: (y.mean(), y.std(ddof=1) / len(y) ** 0.5)},
    ...     truth=1.0,
    ...     design={"n": [20, 80]},
    ... )
    >>> results = study.run(50, seed=1)
    >>> len(results.table), set(results.table["status"])
    (100, {'ok'})
    >>> alone = study.replicate({"n": 80}, 7, seed=1)
    >>> row = results.table.query("n == 80 and replication == 7")
    >>> row["estimate"].item() == float(alone.data.mean())
    True
    """

    generate: Callable[..., Any]
    estimators: Mapping[str, Any]
    truth: Any
    design: Any = None
    level: float = 0.95
    levels: tuple[float, ...] = ()
    batch: int = 64
    plan: Plan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.generate):
            raise TypeError(
                "`generate` must be a function of (rng, **factors); got "
                f"{self.generate!r}."
            )
        levels = (self.level, *self.levels)
        if not all(0.0 < level < 1.0 for level in levels):
            raise ValueError(f"levels must lie between 0 and 1; got {levels}.")
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1; got {self.batch}.")
        points = points_of(self.design, self.truth)
        plan = Plan(
            self.generate,
            dict(self.estimators),
            points,
            tuple(points[0].truth),
            _methods(self.estimators),
            tuple(dict.fromkeys(levels)),
            self.batch,
        )
        object.__setattr__(self, "plan", plan)

    @property
    def points(self) -> pd.DataFrame:
        """The design points, one a row."""
        return pd.DataFrame([point.factors for point in self.plan.points])

    def _point(self, design_point: Any) -> Point:
        points = self.plan.points
        if isinstance(design_point, Mapping):
            for point in points:
                if point.factors == dict(design_point):
                    return point
        elif isinstance(design_point, int | np.integer):
            if 0 <= int(design_point) < len(points):
                return points[int(design_point)]
        elif design_point is None and len(points) == 1:
            return points[0]
        raise ValueError(
            f"`design_point` {design_point!r} is none of the {len(points)} points; "
            f"give its number or its factors, such as {points[0].factors}."
        )

    def replicate(
        self,
        design_point: Any,
        number: int,
        seed: int,
        *,
        on_error: OnError = "record",
    ) -> Replication:
        """Run one replication alone, exactly as it ran in the study.

        Parameters
        ----------
        design_point : int or mapping
            Number of the point, or its factors.
        number : int
            The ``replication`` of the table.
        seed : int
            That of the run.
        on_error : {"record", "raise"}
            "raise" lets the error of an estimator through, to look at its traceback.
        """
        point = self._point(design_point)
        _checked_count(number, "number", 0)
        with one_blas_thread():
            made = produce(self.plan, point, number, _checked_seed(seed), on_error)
        block = run_block(self.plan, point, [number], seed, on_error)
        held = Memory()
        held.add(point, block)
        counts = {point.number: number + 1}
        plan = self.plan
        table = arranged(held, [point], plan.methods, plan.estimands, counts)
        return Replication(made.data, table)

    def run(
        self,
        replications: int,
        seed: int,
        jobs: int | None = 1,
        store: str | Path | None = None,
        *,
        until: Precision | None = None,
        progress: Callable[[Progress], None] | None = None,
        verify: bool = True,
    ) -> Results:
        """Run the study, or what is missing of it, and return its results.

        Parameters
        ----------
        replications : int
            At each design point; with ``until``, the most there can be.
        seed : int
        jobs : int or None
            Worker processes (joblib's loky). Under ``joblib.parallel_config`` its
            back end is used, Dask for instance; None takes its number of jobs too.
        store : path, optional
            Folder of Parquet parts. A run that was killed goes on from there, and a
            longer or wider one adds to it.
        until : Precision, optional
            Stop replicating a point when its Monte Carlo error is small enough.
        progress : callable, optional
            Called with a `Progress` after every block.
        verify : bool
            Run one stored replication of each point again and compare it, so that
            results of another `generate` or another version are never mixed.

        Raises
        ------
        ValueError
            If an estimator returns something that cannot be read.
        DataError
            If the store holds another study, or results that this one does not give.
        """
        _checked_count(replications, "replications", 1)
        entropy = _checked_seed(seed)
        sink: Sink = Memory()
        if store is not None:
            sink = Parquet.opened(store, self.plan, entropy)
            if verify:
                verify_store(self.plan, sink, entropy)
        runner = Runner(self.plan, sink, entropy, jobs, progress, replications)
        counts = runner.run(until)
        plan = self.plan
        table = arranged(sink, plan.points, plan.methods, plan.estimands, counts)
        return Results(table, tuple(plan.points[0].factors), plan.levels, entropy)


def _methods(estimators: Any) -> tuple[str, ...]:
    if not isinstance(estimators, Mapping) or not estimators:
        raise TypeError("`estimators` must be a mapping from labels to callables.")
    methods: list[str] = []
    for label, estimator in estimators.items():
        if isinstance(estimator, Variants):
            methods += [f"{label} {name}".strip() for name in estimator.variants]
        elif callable(estimator) or isinstance(estimator, Batched):
            methods.append(str(label))
        else:
            raise TypeError(
                f"`estimators[{label!r}]` is {estimator!r}, which cannot be called."
            )
    if len(set(methods)) < len(methods):
        raise ValueError(f"`estimators` has labels that coincide: {methods}.")
    return tuple(methods)


def _checked_count(value: Any, argument: str, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{argument}` must be a whole number; got {value!r}.")
    if value < least:
        raise ValueError(f"`{argument}` must be at least {least}; got {value}.")


def _checked_seed(seed: Any) -> int:
    _checked_count(seed, "seed", 0)
    return int(seed)
