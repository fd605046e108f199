"""Results of a study: every replication, and what they say about the methods."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eestim.simulate import _tables as tables
from eestim.simulate.store import Parquet, arranged, stored_plan

__all__ = ["Results", "read_results"]

_SHOWN = ("bias", "empirical_se", "model_se", "coverage", "width")


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """Every replication of a study, and its performance.

    Attributes
    ----------
    table : DataFrame
        One row a design point, replication, method and estimand, in that order, with
        the factors, ``truth``, ``estimate``, ``se``, ``dof``, ``lower``, ``upper``,
        ``status`` ("ok", "not converged", "error", "not finite"), the number of
        ``warnings``, a ``message``, and ``stream``, which identifies the random
        numbers. Rows without status "ok" have no numbers.
    factors : tuple of str
    levels : tuple of float
        Levels of the intervals kept; the first is that of ``lower`` and ``upper``.
    seed : int
    """

    table: pd.DataFrame
    factors: tuple[str, ...]
    levels: tuple[float, ...]
    seed: int

    @property
    def methods(self) -> tuple[str, ...]:
        """Labels of the methods."""
        return tuple(str(name) for name in self.table["method"].cat.categories)

    @property
    def estimands(self) -> tuple[str, ...]:
        """Names of what is estimated."""
        return tuple(str(name) for name in self.table["estimand"].cat.categories)

    @property
    def points(self) -> pd.DataFrame:
        """The design points with the number of replications of each."""
        grouped = self.table.groupby("point")
        first = grouped[list(self.factors)].first()
        return first.assign(replications=grouped["replication"].nunique())

    def _known(self, method: str, argument: str) -> str:
        if method not in self.methods:
            raise ValueError(
                f"`{argument}` is {method!r}; the methods are {list(self.methods)}."
            )
        return method

    # -------------------------------------------------------------------- measures

    def performance(
        self,
        reference: str | None = None,
        *,
        null: float = 0.0,
        mcse: tables.MonteCarlo = "published",
    ) -> pd.DataFrame:
        """Return every performance measure with its Monte Carlo standard error.

        Measures: ``mean``, ``bias``, ``relative_bias`` (a fraction of the truth),
        ``empirical_se``, ``mse``, ``rmse``, ``model_se`` (root mean square of the
        standard errors), ``relative_error`` (of the model standard error, per cent),
        ``coverage``, ``be_coverage`` (of the mean estimate: bias-eliminated),
        ``power`` (intervals without ``null``), ``width``, ``relative_precision``
        (per cent, against the reference on common data); over all replications
        ``failed``, ``not_converged``, ``warned`` and ``coverage_of_all``, in which a
        failure does not cover.

        Parameters
        ----------
        reference : str, optional
            Method for the relative precision; the first by default.
        null : float
            The value that ``power`` is against.
        mcse : {"published", "robust"}
            As published, some of them under normal estimates; or from the influence
            of each replication, without that assumption.

        Returns
        -------
        DataFrame
            Columns point, the factors, estimand, method, measure, value, mcse, n_used
            and n_failed. All but the last four measures are conditional on success:
            they are based on ``n_used`` replications, ``n_failed`` were left out.

        References
        ----------
        Morris, White and Crowther (2019), Stat. Med. 38, 2074-2102, table 6.
        """
        if mcse not in ("published", "robust"):
            raise ValueError(f'`mcse` must be "published" or "robust"; got {mcse!r}.')
        chosen = self._known(reference or self.methods[0], "reference")
        return tables.performance_table(self.table, self.factors, chosen, null, mcse)

    def compare(
        self, reference: str | None = None, *, null: float = 0.0
    ) -> pd.DataFrame:
        """Return differences of every measure from a reference, paired by data set.

        The Monte Carlo error of a difference is that of the difference of influence
        values, so that methods which err together are compared sharply. Only
        replications in which both gave numbers are used.

        Returns
        -------
        DataFrame
            Columns point, the factors, estimand, method, reference, measure,
            difference, mcse and n_used.
        """
        chosen = self._known(reference or self.methods[0], "reference")
        return tables.compared(self.table, self.factors, chosen, null)

    def failures(self) -> pd.DataFrame:
        """Return what went wrong or warned: how often, an example, and its message.

        Returns
        -------
        DataFrame
            Columns point, the factors, method, what (a status or "warnings"), count,
            share, mcse, example (a replication for `Study.replicate`) and message.
        """
        first = self.table[self.table["estimand"] == self.estimands[0]]
        rows: list[dict[str, Any]] = []
        for (_, method), own in first.groupby(["point", "method"], observed=True):
            head = {name: own[name].iloc[0] for name in self.factors}
            head = {"point": int(own["point"].iloc[0])} | head | {"method": method}
            kinds = [kind for kind in own["status"].unique() if kind != "ok"]
            found = [(kind, own[own["status"] == kind]) for kind in sorted(kinds)]
            found.append(("warnings", own[own["warnings"] > 0]))
            for what, which in found:
                if not len(which):
                    continue
                share = len(which) / len(own)
                rows.append(
                    head
                    | {
                        "what": what,
                        "count": len(which),
                        "share": share,
                        "mcse": math.sqrt(share * (1.0 - share) / len(own)),
                        "example": int(which["replication"].iloc[0]),
                        "message": which["message"].iloc[0],
                    }
                )
        last = ["method", "what", "count", "share", "mcse", "example", "message"]
        return pd.DataFrame(rows, columns=["point", *self.factors, *last])

    def replications_needed(self, measure: str, mcse: float) -> int:
        """Return the replications that bring a measure to a Monte Carlo error.

        The largest number over design points, methods and estimands, from the errors
        seen here, which fall as one over the root of the number. Coverage and other
        proportions observed at 0 or 1 count as if two more had gone each way.
        """
        if not mcse > 0.0:
            raise ValueError(f"`mcse` must be positive; got {mcse!r}.")
        most = 0.0
        for _, rows in self.table.groupby("point"):
            error = tables.stopping_error(rows, measure)
            most = max(most, rows["replication"].nunique() * (error / mcse) ** 2)
        if not math.isfinite(most):
            raise ValueError(
                f"`measure` {measure!r} has no Monte Carlo error here: some method has "
                "no such measure, or fewer than two replications that gave numbers."
            )
        return max(2, math.ceil(most * (1.0 - 1e-12)))

    def coverage_curve(self, levels: Sequence[float] | None = None) -> pd.DataFrame:
        """Return coverage against nominal level, for every method.

        Methods whose intervals are normal or t are followed at any level; others at
        the levels kept.

        Returns
        -------
        DataFrame
            Columns point, the factors, estimand, method, level, coverage, mcse, n_used.
        """
        from eestim.simulate._curve import coverage_curve

        return coverage_curve(self.table, self.factors, self.levels, levels)

    # ------------------------------------------------------------------ appearance

    def summary(self, shown: Sequence[str] = _SHOWN) -> pd.DataFrame:
        """Return a compact table of text: ``value (Monte Carlo error)``."""
        measures = list(dict.fromkeys([*shown, "failed"]))
        found = self.performance()
        wanted = found[found["measure"].isin(measures)].copy()
        wanted["text"] = [
            f"{value:.4f} ({error:.4f})"
            for value, error in zip(wanted["value"], wanted["mcse"], strict=True)
        ]
        index = ["point", *self.factors, "estimand", "method"]
        wide = wanted.pivot_table(
            index=index,
            columns="measure",
            values="text",
            aggfunc="first",
            sort=False,
            observed=True,
        )
        wide = wide[[name for name in measures if name in wide]]
        return wide.reset_index().drop(columns="point")

    def __str__(self) -> str:
        counts = self.points["replications"]
        span = sorted({int(counts.min()), int(counts.max())})
        lines = [
            f"{len(self.points)} design points, {' to '.join(map(str, span))} "
            f"replications, seed {self.seed}; value (Monte Carlo standard error)",
            self.summary().to_string(index=False),
        ]
        failures = self.failures()
        if len(failures):
            lines += [
                "Measures are conditional on success; failures and warnings:",
                failures.drop(columns="point").to_string(index=False),
            ]
        return "\n".join(lines)

    # -------------------------------------------------------------------- pictures

    def zipper(self, **options: Any) -> Any:
        """Return the zipper plot, see `eestim.simulate.plots.zipper`."""
        from eestim.simulate import plots

        return plots.zipper(self, **options)

    def nested_loop(self, measure: str = "bias", **options: Any) -> Any:
        """Return the nested loop plot, see `eestim.simulate.plots.nested_loop`."""
        from eestim.simulate import plots

        return plots.nested_loop(self, measure, **options)

    def lollipop(self, **options: Any) -> Any:
        """Return the lollipop plot, see `eestim.simulate.plots.lollipop`."""
        from eestim.simulate import plots

        return plots.lollipop(self, **options)

    def bias_and_empirical_se(self, **options: Any) -> Any:
        """Return the plot of bias against empirical standard error."""
        from eestim.simulate import plots

        return plots.bias_and_empirical_se(self, **options)

    def se_ratio(self, **options: Any) -> Any:
        """Return the plot of model over empirical standard error."""
        from eestim.simulate import plots

        return plots.se_ratio(self, **options)

    def coverage_plot(self, **options: Any) -> Any:
        """Return the plot of coverage against nominal level."""
        from eestim.simulate import plots

        return plots.coverage_plot(self, **options)


def read_results(store: str | Path) -> Results:
    """Return the results held in a store, without the study that made them.

    Raises
    ------
    DataError
        If the folder holds no study, or nothing was run yet.
    """
    record, points = stored_plan(store)
    sink = Parquet(Path(store))
    counts = {point.number: _contiguous(sink.done(point)) for point in points}
    held = [point for point in points if counts[point.number]]
    table = arranged(sink, held, record["methods"], record["estimands"], counts)
    return Results(
        table, tuple(record["factors"]), tuple(record["levels"]), int(record["seed"])
    )


def _contiguous(numbers: set[int]) -> int:
    """Return how many replications there are without a gap, from the first.

    >>> _contiguous({0, 1, 2, 5})
    3
    """
    count = 0
    while count in numbers:
        count += 1
    return count
