"""Pictures of simulation studies and of comparisons between methods."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from eestim.report.plots import canvas, mark, style

__all__ = ["coverage", "differences", "frontier", "laws", "recovery"]

_TRUTH = "0.78"  # a grey that dark lines stand out from
_REFERENCE: dict[str, Any] = {"color": "0.35", "linewidth": 1.0, "linestyle": "--"}


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _point(ax: Any, x: float, y: float, look: dict[str, Any], **error: Any) -> None:
    """Draw a marker with its interval, error bars of zero length left out."""
    ax.errorbar(
        x, y, markersize=6, capsize=3, elinewidth=1.5, **error, **look, zorder=3
    )


def _rows(ax: Any, names: Sequence[str]) -> None:
    """Give each name a row, the first at the top."""
    ax.set_yticks(np.arange(len(names))[::-1], names)
    ax.set_ylim(-0.6, len(names) - 0.4)


def coverage(results: pd.DataFrame, nominal: float) -> Any:
    """Return a figure of observed coverage with its Monte Carlo interval.

    Parameters
    ----------
    results : DataFrame
        Columns ``rule``, ``parameter``, ``coverage``, ``mc_se``.
    nominal : float
        The level aimed at, drawn as a line.
    """
    parameters, rules = _distinct(results["parameter"]), _distinct(results["rule"])
    lowest = float((results["coverage"] - 2 * results["mc_se"]).min())
    with style():
        figure, axes = canvas(
            3.1 * len(parameters) + 1.8,
            1.1 + 0.36 * len(rules),
            columns=len(parameters),
            sharey=True,
        )
        for ax, parameter in zip(axes[0], parameters, strict=True):
            by_rule = results[results["parameter"] == parameter].set_index("rule")
            for k, rule in enumerate(rules):
                row, look = by_rule.loc[rule], mark(k) | {"linestyle": "none"}
                bar = 1.96 * row["mc_se"]
                _point(ax, row["coverage"], len(rules) - 1 - k, look, xerr=bar)
            ax.axvline(nominal, **_REFERENCE)
            ax.set_title(parameter)
            ax.set_xlabel("coverage")
            ax.set_xlim(min(0.85, np.floor(lowest * 10) / 10), 1.01)
        _rows(axes[0][0], rules)
    return figure


def laws(table: pd.DataFrame, truth: str = "truth") -> Any:
    """Return a figure of fitted laws over the true one, at a few covariates.

    Parameters
    ----------
    table : DataFrame
        Columns ``method``, ``x``, ``region``, ``token``, ``probability``.
    truth : str
        The method drawn in grey behind each other one.
    """
    methods = [name for name in _distinct(table["method"]) if name != truth]
    places = table[["x", "region"]].drop_duplicates().to_numpy().tolist()
    with style():
        figure, axes = canvas(
            2.3 * len(places) + 1.2,
            1.15 * len(methods) + 1.1,
            len(methods),
            len(places),
            sharex=True,
            sharey="col",
        )
        for i, method in enumerate(methods):
            for j, (x, region) in enumerate(places):
                ax = axes[i][j]
                _law(ax, table[table["x"] == x], truth, method)
                if i == 0:
                    ax.set_title(f"x = {x:g}, {region}")
                if i == len(methods) - 1:
                    ax.set_xlabel("outcome")
            axes[i][0].set_ylabel(method.replace(" ", "\n", 1), rotation=0, ha="right")
            axes[i][0].yaxis.label.set_verticalalignment("center")
    return figure


def _law(ax: Any, table: pd.DataFrame, truth: str, method: str) -> None:
    true, fitted = (table[table["method"] == name] for name in (truth, method))
    ax.bar(true["token"], true["probability"], width=0.9, color=_TRUTH)
    ax.step(fitted["token"], fitted["probability"], where="mid", **_outline(), zorder=3)
    highest = float(true["probability"].max())
    ax.set_ylim(0, 1.35 * highest)  # a law that collapsed leaves the panel
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _outline() -> dict[str, Any]:
    return {"color": mark(0)["color"], "linewidth": 1.6}


def recovery(table: pd.DataFrame, true_scale: float) -> Any:
    """Return a figure of the recovered scale and of the divergence from the truth.

    Parameters
    ----------
    table : DataFrame
        Columns ``method``, ``scale``, ``lower``, ``upper`` (NaN for no interval),
        ``kl_inside``, ``kl_outside``.
    true_scale : float
    """
    methods = list(table["method"])
    with style():
        figure, (panels,) = canvas(9.4, 1.2 + 0.38 * len(methods), 1, 2, sharey=True)
        left, right = panels
        for k, row in enumerate(table.to_dict("records")):
            height = len(methods) - 1 - k
            sides = np.abs(
                [[row["lower"] - row["scale"]], [row["upper"] - row["scale"]]]
            )
            bar = {} if np.isnan(sides).any() else {"xerr": sides}
            _point(left, row["scale"], height, mark(0) | {"linestyle": "none"}, **bar)
            ends = [row["kl_inside"], row["kl_outside"]]
            right.plot(ends, [height] * 2, color="0.7", linewidth=1.2, zorder=1)
            for j, (value, name) in enumerate(zip(ends, _REGIONS, strict=True)):
                look = mark(j) | {"linestyle": "none"}
                right.plot(value, height, label=name if k == 0 else None, **look)
        left.axvline(true_scale, **_REFERENCE)
        left.set_xlabel(f"scale s, 95% interval; true {true_scale:g}")
        right.set_xscale("log")
        right.set_xlabel("divergence from the true law, nats")
        right.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
        _rows(left, methods)
    return figure


_REGIONS = ("inside", "outside")


def differences(table: pd.DataFrame, measures: Sequence[str], unit: str) -> Any:
    """Return a figure of differences from a baseline, one panel a corpus.

    Parameters
    ----------
    table : DataFrame
        Columns ``corpus``, ``model``, ``measure``, ``difference``, ``lower``,
        ``upper``, ``documents``.
    measures : sequence of str
        Drawn side by side with different markers.
    unit : str
        What the axis says.
    """
    corpora, models = _distinct(table["corpus"]), _distinct(table["model"])
    gap = 0.34
    with style():
        figure, axes = canvas(
            3.0 * len(corpora) + 2.4,
            1.5 + 0.52 * len(models),
            columns=len(corpora),
            sharey=True,
        )
        for ax, corpus in zip(axes[0], corpora, strict=True):
            own = table[table["corpus"] == corpus].set_index(["model", "measure"])
            ax.axvline(0.0, **_REFERENCE)
            for j, measure in enumerate(measures):
                for k, model in enumerate(models):
                    row = own.loc[(model, measure)]
                    height = len(models) - 1 - k + gap * ((len(measures) - 1) / 2 - j)
                    label = measure if k == 0 else None
                    look = mark(j) | {"linestyle": "none", "label": label}
                    _point(ax, row["difference"], height, look, xerr=_sides(row))
            ax.set_title(f"{corpus}, {int(own['documents'].iloc[0])} documents")
            ax.set_xlabel(unit)
            ax.locator_params(axis="x", nbins=5)
        _rows(axes[0][0], models)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(measures))
    return figure


def _sides(row: Any) -> Any:
    """Return the (2, 1) lengths of an interval below and above its estimate."""
    return np.array(
        [[row["difference"] - row["lower"]], [row["upper"] - row["difference"]]]
    )


def frontier(
    table: pd.DataFrame, in_domain: str, measures: Sequence[str], unit: str
) -> Any:
    """Return a figure of what each method gains outside against its price inside.

    Parameters
    ----------
    table : DataFrame
        As in `differences`.
    in_domain : str
        The corpus of the horizontal axis; every other one is a panel.
    measures : sequence of str
        One row of panels each.
    unit : str
    """
    others = [name for name in _distinct(table["corpus"]) if name != in_domain]
    models = _distinct(table["model"])
    with style():
        figure, axes = canvas(
            3.9 * len(others) + 2.6,
            3.3 * len(measures) + 0.3,
            len(measures),
            len(others),
        )
        for i, measure in enumerate(measures):
            rows = table[table["measure"] == measure].set_index(["corpus", "model"])
            for j, corpus in enumerate(others):
                ax = axes[i][j]
                ax.axhline(0.0, **_REFERENCE)
                ax.axvline(0.0, **_REFERENCE)
                for k, model in enumerate(models):
                    inner, outer = (
                        rows.loc[(in_domain, model)],
                        rows.loc[(corpus, model)],
                    )
                    look = mark(k) | {"linestyle": "none", "label": model}
                    bars = {"xerr": _sides(inner), "yerr": _sides(outer)}
                    _point(ax, inner["difference"], outer["difference"], look, **bars)
                ax.set_title(f"{corpus}: {measure}")
                ax.set_xlabel(f"{in_domain}, {unit}")
                ax.set_ylabel(f"{corpus}, {unit}")
                ax.locator_params(nbins=5)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
    return figure
