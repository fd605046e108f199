"""What all pictures of a study share: what is shown, its labels, guides and legends."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eestim.report.plots import mark

if TYPE_CHECKING:
    from eestim.simulate.results import Results

__all__ = [
    "BAND",
    "GUIDE",
    "WORDS",
    "chosen_methods",
    "legend_below",
    "look_of",
    "measured",
    "point_labels",
    "rows_of",
    "target_of",
    "wilson",
]

GUIDE: dict[str, Any] = {"color": "0.35", "linewidth": 0.9, "linestyle": "--"}
BAND: dict[str, Any] = {"color": "0.35", "linewidth": 0.8, "linestyle": ":"}
WORDS = {
    "bias": "bias",
    "relative_bias": "relative bias",
    "empirical_se": "empirical standard error",
    "mse": "mean squared error",
    "rmse": "root mean squared error",
    "model_se": "model standard error",
    "relative_error": "error of the model se, %",
    "relative_precision": "relative precision, %",
    "coverage": "coverage",
    "be_coverage": "bias-eliminated coverage",
    "power": "power",
    "width": "mean width",
    "failed": "failed",
    "not_converged": "not converged",
    "warned": "warned",
    "coverage_of_all": "coverage, failures as misses",
}


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of a proportion, not degenerate at 0 and 1.

    References
    ----------
    Wilson (1927), J. Am. Stat. Assoc. 22, 209-212.

    Examples
    --------
    >>> low, high = wilson(1.0, 100)
    >>> round(low, 3), round(high, 3)
    (0.963, 1.0)
    """
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def rows_of(results: "Results", point: Any, estimand: str | None) -> pd.DataFrame:
    """Return the rows of one design point and one estimand."""
    table = results.table
    chosen = estimand if estimand is not None else results.estimands[0]
    if chosen not in results.estimands:
        raise ValueError(
            f"`estimand` is {chosen!r}; the study has {list(results.estimands)}."
        )
    rows = table[table["estimand"] == chosen]
    if isinstance(point, dict):
        for name, value in point.items():
            rows = rows[rows[name] == value]
    else:
        rows = rows[rows["point"] == (0 if point is None else point)]
    if not len(rows) or rows["point"].nunique() != 1:
        raise ValueError(
            f"`point` {point!r} is not one design point; give its number or all of "
            f"its factors, {list(results.factors)}."
        )
    return rows


def measured(
    results: "Results", measures: Iterable[str], estimand: str | None, **options: Any
) -> pd.DataFrame:
    found = results.performance(**options)
    chosen = estimand if estimand is not None else results.estimands[0]
    found = found[(found["estimand"] == chosen) & found["measure"].isin(list(measures))]
    if not len(found):
        raise ValueError(
            f"no method has {list(measures)} for `estimand` {chosen!r}; measures are "
            f"{sorted(results.performance()['measure'].unique())}."
        )
    return found


def point_labels(results: "Results") -> dict[int, str]:
    """Return what varies at each design point, in words."""
    points = results.points[list(results.factors)].astype(object)
    varying = [name for name in points if points[name].nunique() > 1]
    rows = zip(points.index.to_list(), points[varying].to_numpy().tolist(), strict=True)
    return {
        int(number): ", ".join(
            f"{name} {level}" for name, level in zip(varying, row, strict=True)
        )
        for number, row in rows
    }


def chosen_methods(results: "Results", methods: Sequence[str] | None) -> list[str]:
    wanted = list(results.methods if methods is None else methods)
    unknown = [name for name in wanted if name not in results.methods]
    if unknown or not wanted:
        raise ValueError(
            f"`methods` names {unknown}; the methods are {list(results.methods)}."
        )
    return wanted


def look_of(results: "Results", method: str) -> dict[str, Any]:
    return mark(results.methods.index(method))


def legend_below(figure: Any, ax: Any, count: int, least: int = 2) -> None:
    """Put a legend below the picture if it has at least so many entries."""
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) >= least:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(count, 4))


def target_of(measure: str, level: float) -> float | None:
    if measure in ("coverage", "be_coverage", "coverage_of_all"):
        return level
    zeros = ("bias", "relative_bias", "relative_error", "relative_precision", "failed")
    return 0.0 if measure in zeros else None
