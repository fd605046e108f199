"""Pictures of a study, readable in grey: markers and lines differ, not only colours.

Each function takes `Results` and returns a matplotlib figure.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eestim._arrays import Vector
from eestim.report.plots import canvas, mark, style

if TYPE_CHECKING:
    from eestim.simulate.results import Results

__all__ = [
    "bias_and_empirical_se",
    "coverage_plot",
    "lollipop",
    "nested_loop",
    "se_ratio",
    "wilson",
    "zipper",
]

_MISSED, _COVERED = "#16324f", "#c3cbd3"
_GUIDE: dict[str, Any] = {"color": "0.35", "linewidth": 0.9, "linestyle": "--"}
_BAND: dict[str, Any] = {"color": "0.35", "linewidth": 0.8, "linestyle": ":"}
_WORDS = {
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


# ------------------------------------------------------------------- what is shown


def _rows(results: "Results", point: Any, estimand: str | None) -> pd.DataFrame:
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


def _measured(
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


def _point_labels(results: "Results") -> dict[int, str]:
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


def _chosen(results: "Results", methods: Sequence[str] | None) -> list[str]:
    wanted = list(results.methods if methods is None else methods)
    unknown = [name for name in wanted if name not in results.methods]
    if unknown or not wanted:
        raise ValueError(
            f"`methods` names {unknown}; the methods are {list(results.methods)}."
        )
    return wanted


def _look(results: "Results", method: str) -> dict[str, Any]:
    return mark(results.methods.index(method))


def _legend_below(figure: Any, ax: Any, count: int) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(count, 4))


# --------------------------------------------------------------------------- zipper


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
    rows, shown = _rows(results, point, estimand), _chosen(results, methods)
    with style():
        figure, axes = canvas(
            2.6 * len(shown) + 0.8, 4.6, 1, len(shown), sharex=True, sharey=True
        )
        for ax, method in zip(axes[0], shown, strict=True):
            _zip(ax, rows[rows["method"] == method], results.levels[0])
            ax.set_xlabel("interval")
        axes[0][0].set_xlim(*_span(rows))
        axes[0][0].set_ylabel("centile of |estimate - truth| / se")
    return figure


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
        ax.axhline(100.0 * share, **_BAND)
    ax.axhline(100.0 * level, **_GUIDE)
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


# ---------------------------------------------------------------------- nested loop


def nested_loop(
    results: "Results",
    measure: str = "bias",
    *,
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
    reference: str | None = None,
) -> Any:
    """Return the nested loop plot: a measure over all design points in turn.

    Steps at the foot show the level of each factor, the first one slowest.

    References
    ----------
    Rücker and Schwarzer (2014), BMC Med. Res. Methodol. 14, 129.
    """
    shown = _chosen(results, methods)
    found = _measured(results, [measure], estimand, reference=reference)
    points = results.points[list(results.factors)].reset_index()
    varying = [name for name in results.factors if points[name].nunique() > 1]
    keys = [pd.factorize(points[name])[0] for name in reversed(varying)]
    places = np.lexsort(keys) if keys else np.arange(len(points))
    order = points["point"].to_numpy()[places]
    with style():
        figure, axes = canvas(max(6.5, 0.3 * len(order) + 3.0), 4.4)
        ax = axes[0][0]
        _steps(ax, results, found, shown, order)
        _factor_steps(ax, points.set_index("point").loc[order], varying)
        ax.set_ylabel(_WORDS.get(measure, measure))
        ax.set_xlabel("design point")
        ax.set_xticks([])
        _legend_below(figure, ax, len(shown))
    return figure


def _steps(
    ax: Any, results: "Results", found: pd.DataFrame, shown: list[str], order: Any
) -> None:
    edges = np.arange(len(order) + 1)
    for method in shown:
        own = found[found["method"] == method].set_index("point")["value"]
        values = own.reindex(order).to_numpy(dtype=np.float64)
        look = _look(results, method)
        ax.step(
            edges,
            np.append(values, values[-1:]),
            where="post",
            color=look["color"],
            linestyle=look["linestyle"],
            linewidth=1.6,
        )
        ax.plot(
            edges[:-1] + 0.5,
            values,
            linestyle="none",
            marker=look["marker"],
            color=look["color"],
            fillstyle=look["fillstyle"],
            markersize=4,
        )
        ax.plot([], [], label=method, markersize=4, **look)
    target = _target(str(found["measure"].iloc[0]), results.levels[0])
    if target is not None:
        ax.axhline(target, **_GUIDE)


def _factor_steps(ax: Any, points: pd.DataFrame, varying: list[str]) -> None:
    """Draw the levels of the factors below the data."""
    low, high = ax.get_ylim()
    unit = (high - low) * 0.11
    for k, name in enumerate(varying):
        codes, levels = pd.factorize(points[name])
        base = low - unit * (k + 1)
        heights = base + 0.55 * unit * codes / max(len(levels) - 1, 1)
        edges = np.arange(len(codes) + 1)
        closed = np.append(heights, heights[-1])
        ax.step(edges, closed, where="post", color="0.25", linewidth=1)
        words = ", ".join(str(level) for level in levels)
        ax.annotate(
            f"{name}: {words}",
            (0, base + 0.6 * unit),
            fontsize=8,
            color="0.2",
            verticalalignment="bottom",
        )
    ax.set_ylim(low - unit * (len(varying) + 0.3), high)


def _target(measure: str, level: float) -> float | None:
    if measure in ("coverage", "be_coverage", "coverage_of_all"):
        return level
    zeros = ("bias", "relative_bias", "relative_error", "relative_precision", "failed")
    return 0.0 if measure in zeros else None


# ------------------------------------------------------------------------ lollipops


def lollipop(
    results: "Results",
    *,
    measures: Sequence[str] = ("bias", "empirical_se", "model_se", "coverage"),
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
    reference: str | None = None,
) -> Any:
    """Return the lollipop plot: methods by measures, brackets of 95% Monte Carlo.

    One column a measure and one row a design point; sticks start at the target of the
    measure where it has one.

    References
    ----------
    Gasparini (2018), J. Open Source Softw. 3(26), 739, for the name.
    """
    shown = _chosen(results, methods)
    found = _measured(results, measures, estimand, reference=reference)
    wanted = [name for name in measures if name in set(found["measure"])]
    labels = _point_labels(results)
    numbers = list(dict.fromkeys(found["point"]))
    height = 0.9 + len(numbers) * (0.35 + 0.22 * len(shown))
    with style():
        figure, axes = canvas(
            2.4 * len(wanted) + 1.6,
            height,
            len(numbers),
            len(wanted),
            sharex="col",
            sharey=True,
        )
        for line, number in zip(axes, numbers, strict=True):
            for ax, measure in zip(line, wanted, strict=True):
                rows = found[(found["point"] == number) & (found["measure"] == measure)]
                _sticks(ax, results, rows, shown, _target(measure, results.levels[0]))
            line[0].set_title(labels[number], fontsize=9)
            line[0].set_yticks(np.arange(len(shown))[::-1], shown)
        for ax, measure in zip(axes[-1], wanted, strict=True):
            ax.set_xlabel(_WORDS.get(measure, measure))
    return figure


def _sticks(
    ax: Any,
    results: "Results",
    rows: pd.DataFrame,
    shown: list[str],
    target: float | None,
) -> None:
    for k, method in enumerate(shown):
        own = rows.loc[rows["method"] == method, ["value", "mcse"]].to_numpy()
        if not len(own):
            continue
        value, error = own[0]
        y, look = len(shown) - 1 - k, _look(results, method)
        look["linestyle"] = "none"
        if target is not None:
            ax.plot([target, value], [y, y], color=look["color"], linewidth=1.2)
        ax.errorbar(
            value, y, xerr=1.96 * error, capsize=3, elinewidth=0.9, markersize=5, **look
        )
    if target is not None:
        ax.axvline(target, **_GUIDE)
    ax.set_ylim(-0.6, len(shown) - 0.4)
    ax.tick_params(labelsize=8)


# ------------------------------------------------------------------- pairs and ratios


def bias_and_empirical_se(
    results: "Results",
    *,
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
) -> Any:
    """Return bias against empirical standard error, arcs of equal mean squared error.

    Bars are 95% Monte Carlo intervals; a design point is named beside its first method.
    """
    shown = _chosen(results, methods)
    found = _measured(results, ["bias", "empirical_se"], estimand)
    wide: Any = found.pivot(
        index=["point", "method"], columns="measure", values=["value", "mcse"]
    )
    labels = _point_labels(results)
    with style():
        figure, axes = canvas(6.4, 4.8)
        ax = axes[0][0]
        for method in shown:
            own = wide.xs(method, level="method")
            look = _look(results, method) | {"linestyle": "none"}
            ax.errorbar(
                own["value", "bias"],
                own["value", "empirical_se"],
                xerr=1.96 * own["mcse", "bias"],
                yerr=1.96 * own["mcse", "empirical_se"],
                elinewidth=0.8,
                markersize=6,
                label=method,
                **look,
            )
        first = wide.xs(shown[0], level="method")["value"]
        for number, row in first.iterrows():
            ax.annotate(
                labels[int(number)],
                (row["bias"], row["empirical_se"]),
                textcoords="offset points",
                xytext=(7, 5),
                fontsize=8,
                color="0.25",
            )
        _arcs(ax, wide["value"])
        ax.axvline(0.0, **_GUIDE)
        ax.set_xlabel("bias")
        ax.set_ylabel("empirical standard error")
        _legend_below(figure, ax, len(shown))
    return figure


def _arcs(ax: Any, values: pd.DataFrame) -> None:
    """Draw curves of equal root mean squared error behind the points."""
    width, height = ax.get_xlim(), ax.get_ylim()
    sizes = np.hypot(values["bias"], values["empirical_se"])
    angles = np.linspace(0.0, np.pi, 200)
    for radius in np.unique(np.round(np.quantile(sizes, [0.0, 0.5, 1.0]), 10)):
        ax.plot(radius * np.cos(angles), radius * np.sin(angles), zorder=0, **_BAND)
    ax.set_xlim(width)
    ax.set_ylim(height)


def se_ratio(
    results: "Results",
    *,
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
) -> Any:
    """Return model over empirical standard error at each design point.

    One is right; bars are 95% Monte Carlo intervals.
    """
    shown = _chosen(results, methods)
    found = _measured(results, ["relative_error"], estimand)
    labels = _point_labels(results)
    numbers = list(dict.fromkeys(found["point"]))
    gap = 0.6 / len(shown)
    with style():
        figure, axes = canvas(max(5.5, 0.8 * len(numbers) + 2.5), 4.2)
        ax = axes[0][0]
        for k, method in enumerate(shown):
            own = found[found["method"] == method].set_index("point").reindex(numbers)
            ax.errorbar(
                np.arange(len(numbers)) + gap * (k - (len(shown) - 1) / 2),
                1.0 + own["value"] / 100.0,
                yerr=1.96 * own["mcse"] / 100.0,
                label=method,
                capsize=3,
                elinewidth=1.0,
                markersize=5,
                **_look(results, method) | {"linestyle": "none"},
            )
        ax.axhline(1.0, **_GUIDE)
        turned = max((len(labels[number]) for number in numbers), default=0) > 12
        ax.set_xticks(
            np.arange(len(numbers)),
            [labels[number] for number in numbers],
            rotation=30 if turned else 0,
            horizontalalignment="right" if turned else "center",
        )
        ax.set_ylabel("model se / empirical se")
        _legend_below(figure, ax, len(shown))
    return figure


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
    shown = _chosen(results, methods)
    rows = _rows(results, point, estimand)
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
                    **_look(results, method),
                )
        grid = np.linspace(curve["level"].min(), curve["level"].max(), 200)
        half = 1.96 * np.sqrt(grid * (1.0 - grid) / curve["n_used"].max())
        for sign in (-1.0, 1.0):
            ax.plot(grid, sign * half, **_BAND)
        ax.axhline(0.0, **_GUIDE)
        ax.set_xlabel("nominal level")
        ax.set_ylabel("coverage minus nominal")
        _legend_below(figure, ax, len(shown))
    return figure
