"""Pictures of one design point: every interval, and coverage at many levels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eestim._arrays import Vector
from eestim.report.plots import canvas, style
from eestim.simulate._drawing import (
    BAND,
    GUIDE,
    chosen_methods,
    legend_below,
    look_of,
    point_labels,
    rows_of,
    wilson,
)

if TYPE_CHECKING:
    from eestim.simulate.results import Results

__all__ = ["coverage_plot", "zipper"]

_MISSED, _COVERED = "#16324f", "#c3cbd3"


def zipper(
    results: "Results",
    *,
    point: Any = None,
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
) -> Any:
    r"""Return the zipper plot: all intervals, ranked by :math:`|z|`, misses dark.

    The dotted lines are the Wilson interval of the coverage: the zip should open
    between them. Replications without an interval are counted in the title; the few
    longest intervals run out of the picture.

    References
    ----------
    Morris, White and Crowther (2019), Stat. Med. 38, figure 6.
    """
    rows, shown = rows_of(results, point, estimand), chosen_methods(results, methods)
    with style():
        figure, axes = canvas(
            2.6 * len(shown) + 0.8, 4.6, 1, len(shown), sharex=True, sharey=True
        )
        for ax, method in zip(axes[0], shown, strict=True):
            _zip(ax, rows[rows["method"] == method], results.levels[0])
            ax.set_xlabel(f"{rows['estimand'].iloc[0]}, {results.levels[0]:.0%}")
        axes[0][0].set_xlim(*_span(rows))
        axes[0][0].set_ylabel("centile of |estimate - truth| / se")
        _name_point(figure, results, rows)
    return figure


def _name_point(figure: Any, results: "Results", rows: pd.DataFrame) -> None:
    """Say above a picture which design point it shows, where there are several."""
    label = point_labels(results)[int(rows["point"].iloc[0])]
    if label:
        figure.suptitle(label, fontsize=10, color="0.25", x=0.01, ha="left")


def _span(rows: pd.DataFrame) -> tuple[float, float]:
    """Return limits that hold 99% of the bounds."""
    truth = float(rows["truth"].iloc[0])
    reach = (rows[["lower", "upper"]] - truth).abs().to_numpy(dtype=np.float64)
    finite = reach[np.isfinite(reach)]
    half = 1.1 * float(np.quantile(finite, 0.99)) if len(finite) else 1.0
    return truth - half, truth + half


def _zip(ax: Any, rows: pd.DataFrame, level: float) -> None:
    bounds = rows[(rows["status"] == "ok") & rows["lower"].notna()]
    method = str(rows["method"].iloc[0])
    lost = len(rows) - len(bounds)
    ax.set_title(method + (f"\n{lost} of {len(rows)} without" if lost else ""))
    if not len(bounds):
        return
    truth = float(bounds["truth"].iloc[0])
    lower, upper = bounds["lower"].to_numpy(), bounds["upper"].to_numpy()
    order = np.argsort(_distance(bounds), kind="stable")
    height = 100.0 * (np.arange(len(order)) + 0.5) / len(order)
    covers = ((lower <= truth) & (truth <= upper))[order]
    for which, color in ((covers, _COVERED), (~covers, _MISSED)):
        ends = lower[order][which], upper[order][which]
        ax.hlines(height[which], *ends, color, linewidth=0.7)
    for share in wilson(float(covers.mean()), len(covers)):
        ax.axhline(100.0 * share, **BAND)
    ax.axhline(100.0 * level, **GUIDE)
    ax.axvline(truth, color="0.1", linewidth=0.9)
    ax.set_yticks([0, 50, 100 * level, 100])
    ax.set_ylim(0, 100)


def _distance(bounds: pd.DataFrame) -> Vector:
    """Return distance from the truth in standard errors, or in half widths."""
    scale = bounds["se"].to_numpy(dtype=np.float64)
    if np.isnan(scale).any():
        scale = (bounds["upper"] - bounds["lower"]).to_numpy(dtype=np.float64) / 2.0
    gap = (bounds["estimate"] - bounds["truth"]).abs().to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance: Vector = np.nan_to_num(gap / scale, nan=0.0)
    return distance


def coverage_plot(
    results: "Results",
    *,
    point: Any = None,
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
    levels: Sequence[float] | None = None,
) -> Any:
    """Return coverage minus nominal level against the level, at one design point.

    The dotted curves are where an exact method lies in 95% of studies of this size,
    level by level.
    """
    shown = chosen_methods(results, methods)
    rows = rows_of(results, point, estimand)
    number, chosen = int(rows["point"].iloc[0]), str(rows["estimand"].iloc[0])
    curve = results.coverage_curve(levels)
    curve = curve[(curve["point"] == number) & (curve["estimand"] == chosen)]
    if not len(curve):
        raise ValueError("no method has intervals at this design point.")
    with style():
        figure, axes = canvas(6.4, 4.4)
        ax = axes[0][0]
        for method in shown:
            own = curve[curve["method"] == method]
            if len(own):
                ax.plot(
                    own["level"],
                    own["coverage"] - own["level"],
                    label=method,
                    markersize=5,
                    linewidth=1.3,
                    **look_of(results, method),
                )
        grid = np.linspace(curve["level"].min(), curve["level"].max(), 200)
        half = 1.96 * np.sqrt(grid * (1.0 - grid) / curve["n_used"].max())
        for sign in (-1.0, 1.0):
            ax.plot(grid, sign * half, **BAND)
        ax.axhline(0.0, **GUIDE)
        ax.set_xlabel("nominal level")
        ax.set_ylabel("coverage minus nominal")
        _name_point(figure, results, rows)
        legend_below(figure, ax, len(shown))
    return figure
