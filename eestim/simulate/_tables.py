"""Tables of performance: by design point, method and estimand, and by pairs."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pandas as pd

from eestim.simulate.performance import (
    MEASURES,
    PROPORTIONS,
    Measured,
    Sample,
    measures_of,
    proportion,
    relative_precision,
    standard_error,
)

__all__ = ["MonteCarlo", "compared", "performance_table", "stopping_error"]

MonteCarlo = Literal["published", "robust"]
Row = dict[str, Any]


def _sample(rows: pd.DataFrame) -> Sample:
    def column(name: str) -> Any:
        return rows[name].to_numpy(dtype=np.float64)

    return Sample(
        column("estimate"),
        column("se"),
        column("lower"),
        column("upper"),
        float(rows["truth"].iloc[0]),
    )


def _good(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["status"] == "ok"]


def _accounts(rows: pd.DataFrame) -> dict[str, Measured]:
    """Return how often replications failed or warned, over all of them."""
    status, good = rows["status"], _good(rows)
    found = {
        "failed": proportion(status != "ok"),
        "not_converged": proportion(status == "not converged"),
        "warned": proportion(rows["warnings"] > 0),
    }
    if len(good) and good["lower"].notna().all() and good["upper"].notna().all():
        covers = (rows["lower"] <= rows["truth"]) & (rows["truth"] <= rows["upper"])
        found["coverage_of_all"] = proportion(covers)
    return found


def _groups(
    table: pd.DataFrame, factors: list[str]
) -> Iterator[tuple[Row, dict[str, pd.DataFrame]]]:
    """Return design point and estimand with the rows of each method, in order."""
    for (_, estimand), rows in table.groupby(["point", "estimand"], observed=True):
        head: Row = {"point": int(rows["point"].iloc[0])}
        head |= {name: rows[name].iloc[0] for name in factors}
        by_method = {
            str(method): own for method, own in rows.groupby("method", observed=True)
        }
        yield head | {"estimand": str(estimand)}, by_method


def performance_table(
    table: pd.DataFrame,
    factors: Iterable[str],
    reference: str,
    null: float,
    mcse: MonteCarlo,
) -> pd.DataFrame:
    """Return every measure of every method, one a row; see `Results.performance`."""
    factors, out = list(factors), []

    def add(head: Row, found: dict[str, Measured], used: int, failed: int) -> None:
        for name, measured in found.items():
            error = measured.mcse if mcse == "published" else measured.robust_mcse
            row = {"measure": name, "value": measured.value, "mcse": error}
            out.append(head | row | {"n_used": used, "n_failed": failed})

    for place, by_method in _groups(table, factors):
        for method, own in by_method.items():
            head, good = place | {"method": method}, _good(own)
            failed = len(own) - len(good)
            if len(good) > 1:
                add(head, measures_of(_sample(good), null), len(good), failed)
            if method != reference:
                first, second = _pairs(own, by_method[reference])
                gained = _gained(first, second)
                add(head, gained, len(first), len(own) - len(first))
            add(head, _accounts(own), len(own), failed)
    last = ["method", "measure", "value", "mcse", "n_used", "n_failed"]
    return _framed(out, factors, last)


def _gained(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, Measured]:
    if len(first) < 3:
        return {}
    estimates = [
        rows["estimate"].to_numpy(dtype=np.float64) for rows in (first, second)
    ]
    if min(np.ptp(values) for values in estimates) == 0.0:
        return {}
    return {"relative_precision": relative_precision(*estimates)}


def _framed(rows: list[Row], factors: list[str], last: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["point", *factors, "estimand", *last])


def _pairs(own: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the replications in which both methods gave numbers."""
    first = _good(own).set_index("replication")
    second = _good(other).set_index("replication")
    common = first.index.intersection(second.index)
    return first.loc[common], second.loc[common]


def compared(
    table: pd.DataFrame, factors: Iterable[str], reference: str, null: float
) -> pd.DataFrame:
    """Return paired differences of every measure; see `Results.compare`."""
    factors, out = list(factors), []
    for place, by_method in _groups(table, factors):
        for method, own in by_method.items():
            first, second = _pairs(own, by_method[reference])
            if method == reference or len(first) < 3:
                continue
            head = place | {"method": method, "reference": reference}
            ours = measures_of(_sample(first), null)
            theirs = measures_of(_sample(second), null)
            for name in [measure for measure in ours if measure in theirs]:
                gap = ours[name].influence - theirs[name].influence
                row = {
                    "measure": name,
                    "difference": ours[name].value - theirs[name].value,
                    "mcse": standard_error(gap),
                    "n_used": len(first),
                }
                out.append(head | row)
    last = ["method", "reference", "measure", "difference", "mcse", "n_used"]
    return _framed(out, factors, last)


def stopping_error(table: pd.DataFrame, measure: str) -> float:
    """Return the largest Monte Carlo error of a measure over methods and estimands.

    Proportions are smoothed by two successes and two failures: an observed 0 or 1 has
    no Monte Carlo error of its own.

    Raises
    ------
    ValueError
        If no method has the measure.
    """
    largest = -math.inf
    for _, rows in table.groupby(["method", "estimand"], observed=True):
        good = _good(rows)
        found = measures_of(_sample(good)) if len(good) > 1 else {}
        if measure not in found:
            if len(good) > 1 and measure not in MEASURES:
                raise ValueError(
                    f"`measure` {measure!r} cannot be aimed at; choose of {MEASURES}."
                )
            return math.inf
        error = found[measure].mcse
        if measure in PROPORTIONS:
            n = len(good)
            share = (found[measure].value * n + 2.0) / (n + 4.0)
            error = math.sqrt(share * (1.0 - share) / (n + 4.0))
        largest = max(largest, error)
    return largest
