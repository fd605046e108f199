"""Pictures of checks, readable in grey: influence, rate, search, spectrum."""

from typing import Any

import numpy as np

from eestim._arrays import Vector
from eestim.asymptotics.rank import RankReport
from eestim.diagnostics._verdicts import solved
from eestim.diagnostics.identification import rank_of
from eestim.diagnostics.rate import RateCurve
from eestim.diagnostics.solution import residual_path

__all__ = [
    "plot_diagnostics",
    "plot_influence",
    "plot_rate",
    "plot_residual_path",
    "plot_spectrum",
]

_DARK, _ACCENT, _PALE = "#16324f", "#d0701c", "#7d8a97"
_LABELLED = 3  # units named in the plot of influence
_FLOOR = 1e-17  # drawn in place of an exact zero


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'eestim[report]'"
        ) from error
    return Figure(figsize=(6, 4), layout="constrained").subplots()


def _finish(ax: Any, title: str, x: str, y: str) -> Any:
    ax.set_title(title, loc="left")
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _threshold(ax: Any, bound: float, text: str, va: str = "center") -> None:
    """Draw a bound, named beside the axes: data cannot come under its name."""
    ax.axhline(bound, color=_ACCENT, ls="--", lw=1)
    ax.annotate(
        text,
        (1.0, bound),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        ha="left",
        va=va,
        fontsize=9,
        color=_ACCENT,
        annotation_clip=False,
    )


def _free_side(heights: Vector, unit: int) -> int:
    """Return on which side of a bar its neighbours are lower: 1 right, -1 left."""
    reach = max(1, len(heights) // 12)
    right = heights[unit + 1 : unit + 1 + reach].max(initial=0.0)
    left = heights[max(0, unit - reach) : unit].max(initial=0.0)
    return 1 if right <= left else -1


def plot_influence(fit: Any, name: str | None = None, ax: Any = None) -> Any:
    """Return axes with each unit's share of the variance of one parameter.

    Parameters
    ----------
    fit : Estimate
    name : str, optional
        A parameter; by default that with the largest single share.
    """
    influence = fit.influence()
    squares = influence.to_numpy() ** 2
    shares = squares / squares.sum(axis=0)
    j = (
        int(np.argmax(shares.max(axis=0)))
        if name is None
        else list(influence.columns).index(name)
    )
    signed = np.sign(influence.iloc[:, j].to_numpy()) * shares[:, j]
    ax = _axes(ax)
    ax.vlines(np.arange(len(signed)), 0, 100 * signed, color=_DARK, lw=1)
    for bound in (10, -10):
        ax.axhline(bound, color=_ACCENT, ls="--", lw=1)
    ax.axhline(0, color=_PALE, lw=0.8)
    for unit in np.argsort(-np.abs(signed))[:_LABELLED]:
        side = _free_side(signed * np.sign(signed[unit]), int(unit))
        ax.annotate(
            str(unit),
            (unit, 100 * signed[unit]),
            xytext=(3 * side, 3 if signed[unit] > 0 else -3),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom" if signed[unit] > 0 else "top",
            fontsize=9,
        )
    top = max(11.5, 115 * float(np.abs(signed).max()))
    ax.set_ylim(-top, top)
    return _finish(
        ax,
        f"Influence on {influence.columns[j]}",
        "unit",
        "signed share of the variance (%)",
    )


def plot_rate(curve: RateCurve, ax: Any = None) -> Any:
    """Return axes with spread against subsample size, and slopes -1/2 and -1/4."""
    ax = _axes(ax)
    sizes, spreads = curve.sizes.astype(float), curve.spreads
    centre = np.exp(np.log(sizes).mean()), np.exp(np.log(spreads).mean())
    grid = np.array([sizes[0] / 1.2, sizes[-1] * 1.2])
    for slope, line, colour in (
        (curve.slope, "-", _DARK),
        (-0.5, "--", _ACCENT),
        (-0.25, ":", _PALE),
    ):
        name = f"fitted {slope:.2f} (se {curve.error:.2f})" if line == "-" else slope
        ax.plot(
            grid,
            centre[1] * (grid / centre[0]) ** slope,
            line,
            color=colour,
            label=name,
        )
    ax.plot(sizes, spreads, "o", color=_DARK)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(sizes, [f"{m:.0f}" for m in sizes])
    marks = np.geomspace(spreads.min(), spreads.max(), 3)
    ax.set_yticks(marks, [f"{value:.2g}" for value in marks])
    ax.minorticks_off()
    ax.legend(frameon=False, title="slope")
    return _finish(
        ax, "Rate of convergence", "subsample size m", "interquartile range, adjusted"
    )


def plot_residual_path(path: Any, ax: Any = None) -> Any:
    """Return axes with the residual in units of noise after each Newton step."""
    values = np.maximum(np.asarray(path, dtype=np.float64), _FLOOR)
    ax = _axes(ax)
    ax.plot(np.arange(len(values)), values, "o-", color=_DARK)
    ax.set_yscale("log")
    _threshold(ax, 0.1, "fails\nabove 0.1", va="bottom")
    _threshold(ax, 0.01, "passes\nbelow 0.01", va="top")
    ax.set_xticks(np.arange(len(values)))
    return _finish(
        ax, "Path of the solver", "Newton steps", "mean of psi in units of its noise"
    )


def plot_spectrum(report: RankReport, ax: Any = None) -> Any:
    """Return axes with the scaled singular values of A and the cut."""
    values = np.maximum(report.singular_values, _FLOOR)
    order, kept = np.arange(1, len(values) + 1), np.arange(len(values)) < report.rank
    ax = _axes(ax)
    ax.plot(order[kept], values[kept], "o", color=_DARK)
    ax.plot(order[~kept], values[~kept], "s", color=_DARK, mfc="none")
    ax.set_yscale("log")
    _threshold(ax, report.tolerance, f"cut\n{report.tolerance:.0e}")
    ax.set_xticks(order if len(order) <= 20 else order[:: len(order) // 10])
    ax.set_xlim(0.5, len(order) + 0.5)
    dropped = "" if kept.all() else " (hollow: dropped)"
    return _finish(
        ax,
        f"Rank {report.rank} of {report.n_parameters}",
        f"singular value of the scaled A{dropped}",
        "relative to the largest",
    )


def plot_diagnostics(fit: Any, curve: RateCurve | None = None) -> Any:
    """Return a figure: influence, rate (where known), path of the solver, spectrum."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(11, 7.5), layout="constrained")
    axes = made.subplots(2, 2)
    plot_influence(fit, ax=axes[0, 0])
    if curve is not None:
        plot_rate(curve, ax=axes[0, 1])
    else:
        axes[0, 1].text(0.5, 0.5, "rate not estimated", ha="center", va="center")
        axes[0, 1].set_axis_off()
    if getattr(fit.equation, "start", None) is not None:
        plot_residual_path(residual_path(fit.equation), ax=axes[1, 0])
    else:
        axes[1, 0].text(0.5, 0.5, "root found elsewhere", ha="center", va="center")
        axes[1, 0].set_axis_off()
    plot_spectrum(rank_of(*solved(fit)[:2]), ax=axes[1, 1])
    return made
