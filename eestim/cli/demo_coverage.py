"""Part (c) of the demo: whether the intervals of part (a) cover."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import eestim as ee
from eestim._arrays import Matrix, Vector
from eestim.cli.demo_intervals import (
    FORMULA,
    LEVEL,
    SLOPES,
    investment,
    once,
    rules,
    variance_components,
)
from eestim.errors import EestimError
from eestim.report.page import Picture, Section, Table, Text
from eestim.report.plots import png
from eestim.report.studies import coverage as coverage_figure

__all__ = ["Truth", "section", "study", "truth_from"]

_CHUNK = 10  # replications a process does between two reports of progress


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The law that data are drawn from: the fitted model with firm effects.

    Attributes
    ----------
    table : DataFrame
        Covariates and firms, held fixed.
    mean : (n,) array
        Fitted means, the true ones here.
    theta : (p,) array
    between, within : float
        Variances of the firm effect and of the rest.
    """

    table: pd.DataFrame
    mean: Vector
    theta: Vector
    between: float
    within: float

    def draw(self, rng: np.random.Generator) -> pd.DataFrame:
        """Return the table with an outcome drawn anew."""
        codes, firms = pd.factorize(self.table["firm"])
        effects = rng.normal(scale=np.sqrt(self.between), size=len(firms))
        noise = rng.normal(scale=np.sqrt(self.within), size=len(codes))
        outcome = self.mean + effects[codes] + noise
        return self.table.assign(log_invest=outcome)


def truth_from(table: pd.DataFrame) -> Truth:
    """Return the law fitted to a table."""
    equation = ee.ols(FORMULA, table)
    fit = ee.estimate(equation)
    residual = equation.working(fit.theta).residual
    parts = variance_components(residual, table["firm"])
    return Truth(table, equation.response - residual, fit.theta, *parts)


def _replicate(truth: Truth, seeds: list[np.random.SeedSequence]) -> Matrix:
    """Return (replications, rules, p, 2): covered or not, and width; NaN if failed."""
    chosen = rules()
    results = np.full((len(seeds), len(chosen), len(truth.theta), 2), np.nan)
    for r, seed in enumerate(seeds):
        table = truth.draw(np.random.default_rng(seed))
        fit = ee.estimate(ee.ols(FORMULA, table))
        for j, rule in enumerate(chosen.values()):
            try:
                bounds = fit.with_covariance(rule).interval(LEVEL)
            except EestimError:
                continue  # counted below as a failure
            lower, upper = bounds["lower"].to_numpy(), bounds["upper"].to_numpy()
            results[r, j, :, 0] = (lower <= truth.theta) & (truth.theta <= upper)
            results[r, j, :, 1] = upper - lower
    return results


def study(
    truth: Truth,
    replications: int,
    seed: int,
    jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Return coverage with its Monte Carlo standard error, by rule and parameter.

    Each replication has its own seed, so that results do not depend on the number of
    processes. A replication without an interval counts as not covered, and as a
    failure.

    Returns
    -------
    DataFrame
        Columns parameter, rule, coverage, mc_se, width, replications, failures.
    """
    seeds = np.random.SeedSequence(seed).spawn(replications)
    chunks = [seeds[i : i + _CHUNK] for i in range(0, replications, _CHUNK)]
    parts: list[Matrix] = []
    for part in _computed(truth, chunks, jobs):
        parts.append(part)
        if progress is not None:
            progress(sum(map(len, parts)), replications)
    results = np.concatenate(parts)
    names = ee.ols(FORMULA, truth.table).names
    rows = []
    for i, name in enumerate(names):
        for j, rule in enumerate(rules()):
            failed = int(np.isnan(results[:, j, i, 0]).sum())
            share = float(np.nansum(results[:, j, i, 0]) / replications)
            rows.append(
                {
                    "parameter": name,
                    "rule": rule,
                    "coverage": share,
                    "mc_se": float(np.sqrt(share * (1.0 - share) / replications)),
                    "width": float(np.nanmean(results[:, j, i, 1])),
                    "replications": replications,
                    "failures": failed,
                }
            )
    return pd.DataFrame(rows)


def _computed(truth: Truth, chunks: list[Any], jobs: int) -> Iterator[Matrix]:
    if jobs == 1:
        yield from (_replicate(truth, chunk) for chunk in chunks)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=1):
        work = Parallel(return_as="generator")
        yield from work(delayed(_replicate)(truth, chunk) for chunk in chunks)


def verdict(share: float, replications: int, nominal: float) -> str:
    """Say how an observed coverage compares with the level aimed at.

    Two standard errors of a share whose expectation is the nominal level decide.

    >>> verdict(0.60, 200, 0.95), verdict(0.93, 200, 0.95)
    ('below', 'not distinguishable from')
    """
    distance = (share - nominal) / np.sqrt(nominal * (1.0 - nominal) / replications)
    if abs(distance) <= 2.0:
        return "not distinguishable from"
    return "below" if distance < 0 else "above"


def section(
    replications: int,
    seed: int,
    jobs: int,
    progress: Callable[[int, int], None] | None = None,
) -> Section:
    """Return the section: how data were drawn, the table, the picture, the verdict."""
    truth = truth_from(investment())
    results = study(truth, replications, seed, jobs, progress)
    slopes = results[results["parameter"].isin(SLOPES)]
    picture = Picture(
        "coverage",
        png(coverage_figure(slopes, LEVEL)),
        f"Share of {replications} intervals that hold the true value, with its 95% "
        f"Monte Carlo interval. The dashed line is the level aimed at, {LEVEL:.0%}.",
        "Observed coverage of four rules for two parameters against the nominal line.",
    )
    table = Table(
        "coverage",
        results,
        f"Observed coverage of nominal {LEVEL:.0%} intervals",
        {"coverage": ".3f", "mc_se": ".3f", "width": ".3f"},
        once(results, "parameter"),
    )
    blocks = (Text(_design(truth, replications)), table, picture, Text(_said(slopes)))
    return Section("Do these intervals cover?", blocks, _headline(slopes))


def _design(truth: Truth, replications: int) -> str:
    return (
        f"{replications} data sets are drawn from the model fitted above: covariates "
        "and firms stay, the fitted means are the truth, and errors are normal with a "
        f"firm effect of variance {truth.between:.3f} and independent noise of "
        f"variance {truth.within:.3f} (moments of the residuals). Each data set is "
        "fitted anew under every rule. Errors that also fade within a firm over the "
        "years would be harder for all of them."
    )


def _said(slopes: pd.DataFrame) -> str:
    parts = []
    for rule, rows in slopes.groupby("rule", sort=False):
        found = [
            f"{row['coverage']:.1%} for `{row['parameter']}` "
            f"({verdict(row['coverage'], row['replications'], LEVEL)} {LEVEL:.0%})"
            for row in rows.to_dict("records")
        ]
        parts.append(f"{rule}: {' and '.join(found)}")
    failures = int(slopes["failures"].sum())
    told = (
        "No replication failed." if failures == 0 else f"{failures} intervals failed."
    )
    return (
        "; ".join(parts) + f". {told} A distance from {LEVEL:.0%} of less than two "
        "standard errors is called not distinguishable."
    )


def _headline(slopes: pd.DataFrame) -> str:
    means = slopes.groupby("rule", sort=False)["coverage"].mean()
    shown = ", ".join(f"{share:.0%} {rule}" for rule, share in means.items())
    return f"nominal {LEVEL:.0%} intervals of the two slopes cover on average {shown}."
