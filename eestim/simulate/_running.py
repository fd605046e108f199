"""Running a study: blocks handed out, results taken in, when to stop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from eestim.errors import DataError
from eestim.simulate._design import Point
from eestim.simulate._replications import Block, Plan, run_block
from eestim.simulate._tables import stopping_error
from eestim.simulate.store import Sink, arranged

__all__ = ["Precision", "Progress", "Runner", "verify_store"]

_BLOCK_SECONDS = 5.0  # work that a kill may lose, for each worker
_LEAST_SECONDS = 0.2  # below, handing out and writing a block costs as much
_LARGEST_BLOCK = 1000
_GROWTH = 8  # of a block over the one before, while its cost is being learnt


@dataclass(frozen=True, slots=True)
class Precision:
    """When a design point has been replicated often enough.

    Looked at after every ``every`` replications of a point, so that the number used
    depends on the results alone, not on how they were computed. Coverage and other
    proportions are smoothed by two successes and two failures for this decision
    (Agresti and Coull, 1998): an observed 100% has no Monte Carlo error of its own.

    Attributes
    ----------
    measure : str
        A performance measure, see `Results.performance`.
    mcse : float
        The Monte Carlo standard error that every method and estimand must reach.
    every : int
    """

    measure: str
    mcse: float
    every: int = 200

    def __post_init__(self) -> None:
        if not (self.mcse > 0.0 and self.every >= 2):
            raise ValueError(
                f"`mcse` must be positive and `every` at least 2; got {self.mcse!r} "
                f"and {self.every!r}."
            )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come.

    Attributes
    ----------
    done, total : int
        Replications over all design points; ``total`` is the most there can be.
    seconds : float
        Since the run began.
    rate : float
        Replications a second in this run.
    failures : int
        Rows without a number, so far, those of earlier runs in the store included.
    coverage : dict from method to (coverage, its Monte Carlo error)
        Over design points and estimands, where there are intervals; likewise.
    """

    done: int
    total: int
    seconds: float
    rate: float
    failures: int
    coverage: dict[str, tuple[float, float]]

    @property
    def seconds_left(self) -> float:
        """Time that the rest takes at this rate."""
        return (self.total - self.done) / self.rate if self.rate > 0 else float("inf")


def verify_store(plan: Plan, sink: Sink, seed: int) -> None:
    """Raise where a stored replication is not what running it again gives."""
    for point in plan.points:
        stored = next(iter(sink.tables(point)), None)
        if stored is None:
            continue
        number = int(stored["replication"].iloc[0])
        again = run_block(plan, point, [number], seed).table
        columns = [name for name in again if name not in ("point", "truth")]
        before = stored.loc[stored["replication"] == number, columns]
        if not _same(before.reset_index(drop=True), again[columns]):
            raise DataError(
                f"replication {number} at ({point}) gives other results than the ones "
                "in `store`: `generate`, an estimator or a package has changed since, "
                "or an estimator draws random numbers of its own (take an `rng` "
                "argument). Use a new folder."
            )


def _same(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    for name in first:
        a, b = first[name].to_numpy(), second[name].to_numpy()
        if np.asarray(b).dtype.kind == "f":
            if not np.array_equal(a.astype(float), b, equal_nan=True):
                return False
        elif list(a) != list(b):
            return False
    return True


@dataclass(slots=True)
class Runner:
    """The state of one run: blocks handed out, results taken in."""

    plan: Plan
    sink: Sink
    seed: int
    jobs: int | None
    progress: Callable[[Progress], None] | None
    replications: int
    cost: dict[int, float] = field(default_factory=dict)
    tally: dict[str, list[int]] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    done: int = 0
    fresh: int = 0
    failures: int = 0

    def run(self, until: Precision | None) -> dict[int, int]:
        """Run all that is missing; return the replications of each point."""
        self._look_at_what_is_held()
        counts = dict.fromkeys(range(len(self.plan.points)), 0)
        active = list(self.plan.points)
        step = self.replications if until is None else until.every
        while active:
            reached = min(counts[active[0].number] + step, self.replications)
            for point in active:
                counts[point.number] = reached
            self._advance(active, reached, sum(counts.values()))
            active = [
                point
                for point in active
                if reached < self.replications
                and not self._settled(point, reached, until)
            ]
        return counts

    def _settled(self, point: Point, reached: int, until: Precision | None) -> bool:
        if until is None:
            return True
        plan = self.plan
        counts = {point.number: reached}
        table = arranged(self.sink, [point], plan.methods, plan.estimands, counts)
        return stopping_error(table, until.measure) <= until.mcse

    def _advance(self, points: list[Point], reached: int, wanted: int) -> None:
        """Run replications 0 .. reached - 1 of some points, where they are missing."""
        missing = {
            point.number: sorted(set(range(reached)) - self.sink.done(point))
            for point in points
        }
        self.done = wanted - sum(map(len, missing.values()))
        tasks = self._tasks(missing)
        for block in self._blocks(tasks):
            self.sink.add(self.plan.points[block.point], block)
            self._take_in(block)

    def _tasks(
        self, missing: dict[int, list[int]]
    ) -> Iterator[tuple[Point, list[int]]]:
        """Return blocks of replications, points in turn, sized by what they cost."""
        left = {number: numbers for number, numbers in missing.items() if numbers}
        size, workers = dict.fromkeys(left, 1), self._workers()
        while left:
            for number in list(left):
                numbers = left[number]
                length = size[number]
                if workers > 1:  # ever smaller, so that none is left alone at the end
                    share = sum(map(len, left.values())) // (3 * workers)
                    length = min(
                        length, max(share, self._count(number, _LEAST_SECONDS))
                    )
                run = _run_length(numbers, length, self._batch())
                yield self.plan.points[number], numbers[:run]
                left[number] = numbers[run:]
                size[number] = self._next_size(number, size[number])
                if not left[number]:
                    del left[number]

    def _batch(self) -> int:
        return self.plan.batch if self.plan.is_batched else 1

    def _workers(self) -> int:
        import joblib

        options = {} if self.jobs is None else {"n_jobs": self.jobs}
        return int(joblib.effective_n_jobs(**options))

    def _count(self, number: int, seconds: float) -> int:
        """Return how many replications of a point take so long, one if unknown."""
        cost = self.cost.get(number)
        return 1 if cost is None else max(1, int(seconds / max(cost, 1e-9)))

    def _next_size(self, number: int, before: int) -> int:
        if number not in self.cost:
            return before
        aim = self._count(number, _BLOCK_SECONDS)
        return max(1, min(aim, _LARGEST_BLOCK, before * _GROWTH))

    def _blocks(self, tasks: Iterator[tuple[Point, list[int]]]) -> Iterator[Block]:
        import joblib
        from joblib.parallel import get_active_backend

        backend = get_active_backend()[0]
        is_default = type(backend).__name__ in ("LokyBackend", "SequentialBackend")
        if self.jobs == 1 and is_default:
            for point, numbers in tasks:
                yield run_block(self.plan, point, numbers, self.seed)
            return
        options = {} if self.jobs is None else {"n_jobs": self.jobs}
        with joblib.Parallel(
            **options, return_as="generator_unordered", batch_size=1
        ) as parallel:
            yield from parallel(
                joblib.delayed(run_block)(self.plan, point, numbers, self.seed)
                for point, numbers in tasks
            )

    def _look_at_what_is_held(self) -> None:
        """Count what an earlier run left, so that progress tells of all of it."""
        if self.progress is not None:
            for point in self.plan.points:
                for table in self.sink.tables(point):
                    truth = table["estimand"].map(point.truth).astype(float)
                    self._tally(table.assign(truth=truth))

    def _tally(self, table: pd.DataFrame) -> None:
        self.failures += int((table["status"] != "ok").sum())
        known = table[table["lower"].notna() & table["upper"].notna()]
        covered = (known["lower"] <= known["truth"]) & (
            known["truth"] <= known["upper"]
        )
        for method, hits in covered.groupby(known["method"], sort=False):
            held = self.tally.setdefault(str(method), [0, 0])
            held[0] += int(hits.sum())
            held[1] += len(hits)

    def _take_in(self, block: Block) -> None:
        count = len(block.numbers)
        self.cost[block.point] = block.seconds / count
        self.done += count
        self.fresh += count
        self._tally(block.table)
        if self.progress is None:
            return
        seconds = time.perf_counter() - self.began
        total = self.replications * len(self.plan.points)
        self.progress(
            Progress(
                self.done,
                total,
                seconds,
                self.fresh / seconds,
                self.failures,
                {name: _proportion(*held) for name, held in self.tally.items()},
            )
        )


def _proportion(hits: int, count: int) -> tuple[float, float]:
    share = hits / count
    return share, float(np.sqrt(share * (1.0 - share) / count))


def _run_length(numbers: list[int], size: int, batch: int) -> int:
    """Return how many leading numbers make a block: consecutive, whole batches.

    >>> _run_length([0, 1, 2, 5, 6], 10, 1)
    3
    >>> _run_length([0, 1, 2, 3, 4, 5], 1, 4)
    4
    """
    wanted = -(-size // batch) * batch
    end = (numbers[0] // batch) * batch + max(wanted, batch)
    length = 1
    while (
        length < len(numbers)
        and numbers[length] == numbers[0] + length
        and numbers[length] < end
    ):
        length += 1
    return length
