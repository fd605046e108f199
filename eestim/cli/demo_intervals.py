"""Part (a) of the demo: intervals on real panel data under several rules."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

import eestim as ee
from eestim.estimation import Estimate
from eestim.report.page import Block, Picture, Section, Table, Text
from eestim.report.plots import canvas, forest, png, style

__all__ = ["FORMULA", "fits", "investment", "section", "variance_components"]

FORMULA = "log_invest ~ log_value + log_capital"
SLOPES = ("log_value", "log_capital")
LEVEL = 0.95


def investment() -> pd.DataFrame:
    """Return Grunfeld's panel in logarithms, as statsmodels ships it.

    Raises
    ------
    ImportError
        Naming the extra that installs statsmodels.
    """
    try:
        from statsmodels.datasets import grunfeld
    except ImportError as error:
        raise ImportError(
            "the demo's data come with statsmodels: pip install 'eestim[all]'"
        ) from error
    table = grunfeld.load_pandas().data
    logs = {
        f"log_{name}": np.log(table[name]) for name in ("invest", "value", "capital")
    }
    made: pd.DataFrame = table[["firm", "year"]].assign(**logs)
    return made


def rules() -> dict[str, Any]:
    """Return the covariance rules compared, by the name shown."""
    return {
        "model-based": ee.ModelBased(),
        "HC1": ee.HC(1),
        "clustered, CR1": ee.Clustered("firm", kind="CR1"),
        "clustered, CR2": ee.Clustered("firm", kind="CR2"),
    }


def fits(table: pd.DataFrame) -> dict[str, Estimate]:
    """Return one estimate with its covariance under each rule."""
    chosen = rules()
    first = ee.estimate(ee.ols(FORMULA, table), covariance=chosen["model-based"])
    return {name: first.with_covariance(rule) for name, rule in chosen.items()}


def variance_components(residual: Any, labels: Any) -> tuple[float, float]:
    """Return the variances between and within clusters of equal size.

    Parameters
    ----------
    residual : (n,) array
    labels : (n,) array
        Clusters of T rows each.

    Returns
    -------
    tuple of float
        Moments of the one-way analysis of variance: ``(MSB - MSW) / T``, at least
        zero, and MSW.

    Examples
    --------
    >>> variance_components([1.0, 3.0, -1.0, -3.0], ["a", "a", "b", "b"])
    (7.0, 2.0)
    """
    groups = pd.Series(np.asarray(residual)).groupby(np.asarray(labels))
    size, mean = groups.size().to_numpy(), groups.mean().to_numpy()
    G, T, n = len(size), int(size[0]), int(size.sum())
    if not (size == T).all():
        raise ValueError("`labels` must have equally many rows in each cluster.")
    total = float(np.mean(np.asarray(residual)))
    between = T * float(np.sum((mean - total) ** 2)) / (G - 1)
    within = float((groups.var() * (size - 1)).sum()) / (n - G)
    return max((between - within) / T, 0.0), within


def interval_table(estimates: Mapping[str, Estimate]) -> pd.DataFrame:
    """Return one row for each parameter and rule."""
    parts = [
        made.table(LEVEL)
        .assign(dof=made.dof, rule=rule)
        .rename_axis("parameter")
        .reset_index()
        for rule, made in estimates.items()
    ]
    columns = ["parameter", "rule", "estimate", "se", "dof", "lower", "upper"]
    long = pd.concat(parts)[columns]
    order = {name: j for j, name in enumerate(parts[0]["parameter"])}
    return long.sort_values(
        "parameter", key=lambda names: names.map(order), kind="stable"
    ).reset_index(drop=True)


def once(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the frame with repeats of a column blank, for reading."""
    return frame.assign(**{column: frame[column].mask(frame[column].duplicated(), "")})


def _picture(estimates: Mapping[str, Estimate]) -> Picture:
    with style():
        figure, axes = canvas(8.2, 3.4)
        forest(estimates, ax=axes[0, 0], level=LEVEL, names=list(SLOPES))
        axes[0, 0].set_xlabel(f"elasticity of investment, {LEVEL:.0%} interval")
    return Picture(
        "intervals",
        png(figure),
        "The same estimates under four rules. The dashed line is zero.",
        "Forest plot: two elasticities, each with four intervals of different width.",
    )


def section() -> Section:
    """Return the section: data, table, picture and what they say."""
    table = investment()
    estimates = fits(table)
    widths = {name: made.se for name, made in estimates.items()}
    residual = ee.ols(FORMULA, table).working(estimates["HC1"].theta).residual
    between, within = variance_components(residual, table["firm"])
    blocks: list[Block] = [Text(_about(table, between / (between + within)))]
    shown = interval_table(estimates)
    blocks.append(
        Table(
            "intervals",
            shown,
            f"Elasticities of investment, {LEVEL:.0%} intervals",
            dict.fromkeys(("estimate", "se", "lower", "upper"), ".3f") | {"dof": ".1f"},
            once(shown, "parameter"),
        )
    )
    blocks.append(_picture(estimates))
    blocks.append(Text(_reading(widths)))
    blocks += [Text(text, is_warning=True) for text in _warnings(estimates)]
    return Section("Intervals on a panel of firms", tuple(blocks), _headline(estimates))


def _about(table: pd.DataFrame, share: float) -> str:
    firms, years = table["firm"].nunique(), table["year"].nunique()
    first, last = int(table["year"].min()), int(table["year"].max())
    worth = len(table) / (1.0 + (years - 1) * share)
    return (
        f"Investment of {firms} US firms in the {years} years {first} to {last} "
        "(Grunfeld's data, as statsmodels ships them), chosen because the rows come in "
        "natural clusters: what a firm invests beyond what its value and capital "
        f"explain may persist for years. Here {share:.0%} of the residual variance "
        f"lies between firms; for a covariate that differs only between firms, "
        f"{len(table)} rows are then worth {worth:.0f} independent ones. Least "
        f"squares, `{FORMULA}`: the estimates are the same under every rule, only the "
        "covariance differs."
    )


def _reading(widths: Mapping[str, Any]) -> str:
    def ratio(name: str, rule: str) -> str:
        return f"{widths[rule][name] / widths['model-based'][name]:.1f}"

    parts = [
        f"for `{name}` they are {ratio(name, 'HC1')} (HC1), "
        f"{ratio(name, 'clustered, CR1')} (CR1) and {ratio(name, 'clustered, CR2')} "
        "(CR2) times the model-based one"
        for name in SLOPES
    ]
    return (
        "Standard errors: " + "; ".join(parts) + ". HC1 allows unequal variances but "
        "takes rows as independent; CR1 and CR2 take firms as independent, CR2 with "
        "residuals adjusted for leverage and Satterthwaite degrees of freedom. Which "
        "intervals cover is a question for simulation: see the coverage study below."
    )


def _warnings(estimates: Mapping[str, Estimate]) -> list[str]:
    """Return each finding once, with the rules that it belongs to."""
    found: dict[str, list[str]] = {}
    for rule, made in estimates.items():
        for finding in made.findings:
            text = f"{finding.meaning} {finding.advice}".rstrip()
            found.setdefault(text, []).append(rule)
    return [f"{' and '.join(rules)}: {text}" for text, rules in found.items()]


def _headline(estimates: Mapping[str, Estimate]) -> str:
    name = SLOPES[0]
    texts = []
    for rule in ("model-based", "HC1", "clustered, CR2"):
        row = estimates[rule].interval(LEVEL).loc[name]
        texts.append(f"[{row['lower']:.2f}, {row['upper']:.2f}] {rule}")
    centre = estimates["HC1"].params[name]
    return (
        f"`{name}` is {centre:.2f}, with {LEVEL:.0%} interval " + ", ".join(texts) + "."
    )
