"""Pictures of a measure over the design: nested loop, lollipops, ratios, pairs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eestim.report.plots import canvas, style
from eestim.simulate._drawing import (
    BAND,
    GUIDE,
    WORDS,
    chosen_methods,
    legend_below,
    look_of,
    measured,
    point_labels,
    target_of,
    wilson,
)
from eestim.simulate.performance import ACCOUNTS, PROPORTIONS

if TYPE_CHECKING:
    from eestim.simulate.results import Results

__all__ = ["bias_and_empirical_se", "lollipop", "nested_loop", "se_ratio"]


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
    shown = chosen_methods(results, methods)
    found = measured(results, [measure], estimand, reference=reference)
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
        ax.set_ylabel(WORDS.get(measure, measure))
        ax.set_xlabel("design point")
        ax.set_xticks([])
        legend_below(figure, ax, len(shown))
    return figure


def _steps(
    ax: Any, results: "Results", found: pd.DataFrame, shown: list[str], order: Any
) -> None:
    edges = np.arange(len(order) + 1)
    for method in shown:
        own = found[found["method"] == method].set_index("point")["value"]
        values = own.reindex(order).to_numpy(dtype=np.float64)
        look = look_of(results, method)
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
    target = target_of(str(found["measure"].iloc[0]), results.levels[0])
    if target is not None:
        ax.axhline(target, **GUIDE)


def _factor_steps(ax: Any, points: pd.DataFrame, varying: list[str]) -> None:
    """Draw the levels of the factors below the data, where the axis has no numbers."""
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in ax.get_yticks() if low <= tick <= high])
    unit = (high - low) * 0.13
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


def lollipop(
    results: "Results",
    *,
    measures: Sequence[str] = ("bias", "empirical_se", "model_se", "coverage"),
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
    reference: str | None = None,
) -> Any:
    """Return the lollipop plot: methods by measures, in brackets of 95% Monte Carlo.

    One column a measure and one row a design point; sticks start at the target of the
    measure where it has one. Brackets of proportions are Wilson intervals.

    References
    ----------
    Gasparini (2018), J. Open Source Softw. 3(26), 739, for the name.
    """
    shown = chosen_methods(results, methods)
    found = measured(results, measures, estimand, reference=reference)
    wanted = [name for name in measures if name in set(found["measure"])]
    labels = point_labels(results)
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
                _sticks(ax, results, rows, shown, measure)
            line[0].set_title(labels[number], fontsize=9)
            line[0].set_yticks(np.arange(len(shown))[::-1], shown)
        for ax, measure in zip(axes[-1], wanted, strict=True):
            ax.set_xlabel(WORDS.get(measure, measure))
    return figure


def _sticks(
    ax: Any,
    results: "Results",
    rows: pd.DataFrame,
    shown: list[str],
    measure: str,
) -> None:
    target = target_of(measure, results.levels[0])
    for k, method in enumerate(shown):
        own = rows.loc[rows["method"] == method, ["value", "mcse", "n_used"]].to_numpy()
        if not len(own):
            continue
        value, error, n_used = own[0]
        y, look = len(shown) - 1 - k, look_of(results, method)
        look["linestyle"] = "none"
        if target is not None:
            ax.plot([target, value], [y, y], color=look["color"], linewidth=1.4)
        ax.plot(value, y, markersize=6, **look)
        for end, bracket in zip(
            _ends(measure, value, error, n_used), "()", strict=True
        ):
            ax.plot(end, y, marker=f"${bracket}$", color="0.1", markersize=8)
    if target is not None:
        ax.axvline(target, **GUIDE)
    ax.set_ylim(-0.6, len(shown) - 0.4)
    ax.tick_params(labelsize=8)


def _ends(
    measure: str, value: float, error: float, n_used: float
) -> tuple[float, float]:
    """Return the 95% Monte Carlo interval, Wilson's for a proportion."""
    if measure in (*PROPORTIONS, *ACCOUNTS):
        return wilson(value, int(n_used))
    return value - 1.96 * error, value + 1.96 * error


def se_ratio(
    results: "Results",
    *,
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
) -> Any:
    """Return model over empirical standard error at each design point.

    One is right; bars are 95% Monte Carlo intervals.
    """
    shown = chosen_methods(results, methods)
    found = measured(results, ["relative_error"], estimand)
    labels = point_labels(results)
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
                **look_of(results, method) | {"linestyle": "none"},
            )
        ax.axhline(1.0, **GUIDE)
        words = [labels[number].replace(", ", "\n") for number in numbers]
        ax.set_xticks(np.arange(len(numbers)), words, fontsize=9)
        ax.set_ylabel("model se / empirical se")
        legend_below(figure, ax, len(shown))
    return figure


def bias_and_empirical_se(
    results: "Results",
    *,
    estimand: str | None = None,
    methods: Sequence[str] | None = None,
) -> Any:
    """Return bias against empirical standard error, arcs of equal mean squared error.

    Bars are 95% Monte Carlo intervals; a design point is named beside its first method.
    """
    shown = chosen_methods(results, methods)
    found = measured(results, ["bias", "empirical_se"], estimand)
    wide: Any = found.pivot(
        index=["point", "method"], columns="measure", values=["value", "mcse"]
    )
    labels = point_labels(results)
    with style():
        figure, axes = canvas(*_PAIR_INCHES)
        ax = axes[0][0]
        groups = _alike(wide, shown)
        for methods_alike in groups:
            own = wide.xs(methods_alike[0], level="method")
            look = look_of(results, methods_alike[0]) | {"linestyle": "none"}
            ax.errorbar(
                own["value", "bias"],
                own["value", "empirical_se"],
                xerr=1.96 * own["mcse", "bias"],
                yerr=1.96 * own["mcse", "empirical_se"],
                elinewidth=0.8,
                markersize=6,
                label=_joined(methods_alike, len(shown)),
                **look,
            )
        _arcs(ax, wide["value"])
        ax.axvline(0.0, **GUIDE)
        ax.set_xlabel("bias")
        ax.set_ylabel("empirical standard error")
        legend_below(figure, ax, len(groups), least=1 if len(shown) > 1 else 2)
        _name_points(ax, wide.xs(shown[0], level="method")["value"], labels)
    return figure


def _alike(wide: Any, shown: Sequence[str]) -> list[list[str]]:
    """Return the methods in groups that share every estimate, drawn as one.

    So it is with several standard errors of one estimator.
    """
    groups: list[list[str]] = []
    for method in shown:
        own = wide.xs(method, level="method")
        for group in groups:
            if own.equals(wide.xs(group[0], level="method")):
                group.append(method)
                break
        else:
            groups.append([method])
    return groups


def _joined(group: Sequence[str], count: int) -> str:
    if 1 < len(group) == count:
        return f"the same estimates in all {count} methods"
    return " = ".join(group)


_PAIR_INCHES = (6.4, 4.8)
_CORNERS = ((7, 5), (7, -13), (-7, 5), (-7, -13), (7, 16), (7, -24))  # in points
_LETTER, _LINE = 4.6, 10.0  # width and height of the names in points, nearly


def _name_points(ax: Any, places: pd.DataFrame, labels: dict[int, str]) -> None:
    """Write the name of each design point beside it, where no other name is."""
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    inches = np.array(_PAIR_INCHES) - (0.8, 1.0)  # without axis labels and legend
    scale = 72.0 * inches / (limits[:, 1] - limits[:, 0])
    taken: list[tuple[float, float, float]] = []
    for number, row in places[["bias", "empirical_se"]].iterrows():
        label = labels[int(str(number))]
        at = scale * (row.to_numpy(dtype=np.float64) - limits[:, 0])
        width = _LETTER * len(label)
        boxes = [(at[0] + x - (width if x < 0 else 0), at[1] + y) for x, y in _CORNERS]
        free = [_is_free(*box, width, taken) for box in boxes]
        chosen = free.index(True) if any(free) else 0
        taken.append((*boxes[chosen], width))
        ax.annotate(
            label,
            tuple(row),
            textcoords="offset points",
            xytext=_CORNERS[chosen],
            ha="left" if _CORNERS[chosen][0] > 0 else "right",
            fontsize=8,
            color="0.25",
        )


def _is_free(
    x: float, y: float, width: float, taken: Sequence[tuple[float, float, float]]
) -> bool:
    """Return whether a name at this place in points overlaps no other."""
    return not any(
        x < left + span and left < x + width and abs(y - line) < _LINE
        for left, line, span in taken
    )


def _arcs(ax: Any, values: pd.DataFrame) -> None:
    """Draw curves of equal root mean squared error behind the points."""
    width, height = ax.get_xlim(), ax.get_ylim()
    sizes = np.hypot(values["bias"], values["empirical_se"])
    angles = np.linspace(0.0, np.pi, 200)
    for radius in np.unique(np.round(np.quantile(sizes, [0.0, 0.5, 1.0]), 10)):
        ax.plot(radius * np.cos(angles), radius * np.sin(angles), zorder=0, **BAND)
    ax.set_xlim(width)
    ax.set_ylim(height)
