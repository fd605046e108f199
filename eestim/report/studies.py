"""Pictures of simulation studies and of comparisons between methods."""

from typing import Any

import numpy as np
import pandas as pd

from eestim.report.plots import canvas, mark, style

__all__ = ["coverage"]


def coverage(results: pd.DataFrame, nominal: float) -> Any:
    """Return a figure of observed coverage with its Monte Carlo interval.

    Parameters
    ----------
    results : DataFrame
        Columns ``rule``, ``parameter``, ``coverage``, ``mc_se``.
    nominal : float
        The level aimed at, drawn as a line.
    """
    parameters = list(dict.fromkeys(results["parameter"]))
    rules = list(dict.fromkeys(results["rule"]))
    height = 1.1 + 0.36 * len(rules)
    with style():
        figure, axes = canvas(
            3.1 * len(parameters) + 1.8, height, columns=len(parameters), sharey=True
        )
        for ax, parameter in zip(axes[0], parameters, strict=True):
            _coverage_panel(ax, results[results["parameter"] == parameter], rules)
            ax.axvline(nominal, color="0.35", linewidth=1.0, linestyle="--")
            ax.set_title(parameter)
            ax.set_xlabel("coverage")
            lowest = float((results["coverage"] - 2 * results["mc_se"]).min())
            ax.set_xlim(min(0.85, np.floor(lowest * 10) / 10), 1.01)
        axes[0][0].set_yticks(np.arange(len(rules))[::-1], rules)
        axes[0][0].set_ylim(-0.6, len(rules) - 0.4)
    return figure


def _coverage_panel(ax: Any, results: pd.DataFrame, rules: list[str]) -> None:
    by_rule = results.set_index("rule")
    for k, rule in enumerate(rules):
        row = by_rule.loc[rule]
        look = mark(k) | {"linestyle": "none"}
        ax.errorbar(
            row["coverage"],
            len(rules) - 1 - k,
            xerr=1.96 * row["mc_se"],
            markersize=6,
            capsize=3,
            elinewidth=1.5,
            **look,
        )
