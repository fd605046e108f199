"""Part (b) of the demo, first half: a latent whose truth is known."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from eestim.cli.backend import backend
from eestim.report.page import Picture, Section, Table, Text
from eestim.report.plots import png
from eestim.report.studies import laws, recovery

__all__ = ["section", "section_from"]


def section(quick: bool, seed: int, tick: Callable[[float, str], None]) -> Section:
    """Run the synthetic case and return its section."""
    backend()
    from eestim.llm.experiment import synthetic_experiment

    def report(label: str, done: int, total: int) -> None:
        tick(done / total, label)

    found = synthetic_experiment(quick, seed, report)
    return section_from(found.table, found.laws, found.true_scale, found.n_units)


def section_from(
    table: pd.DataFrame, shown_laws: pd.DataFrame, true_scale: float, n_units: int
) -> Section:
    """Return the section of results that are there already.

    Parameters
    ----------
    table, shown_laws : DataFrame
        As in ``eestim.llm.experiment.SyntheticResult``.
    true_scale : float
    n_units : int
    """
    formats = {"scale": ".3f", "lower": ".3f", "upper": ".3f", "seconds": ".0f"}
    blocks = (
        Text(_design(true_scale, n_units)),
        Picture(
            "laws",
            png(laws(shown_laws)),
            "Grey: the true law of the outcome at four covariates, two of them outside "
            "the range of the training data. Line: the fitted law; where it leaves the "
            "panel it is more concentrated than there is room for.",
            "Histograms of the true law with fitted laws drawn over them.",
        ),
        Picture(
            "recovery",
            png(recovery(table, true_scale)),
            "Left: recovered scale of the latent, with a 95% sandwich interval where "
            "the equation is unbiased (a biased one has no valid interval). Right: "
            "mean Kullback-Leibler divergence from the true law.",
            "Dot plots of the recovered scale and of the divergence by method.",
        ),
        Table("synthetic", table, "Recovered scale and divergence (nats)", formats),
        Table(
            "synthetic-laws",
            shown_laws,
            "Mean ± standard deviation of the outcome under each law",
            {},
            _summaries(shown_laws),
        ),
        Text(_reading(table, true_scale)),
    )
    return Section("Extrapolation where the truth is known", blocks, _headline(table))


def _summaries(shown_laws: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation of the outcome under each law, as text."""
    rows = []
    for method, laws_of in shown_laws.groupby("method", sort=False):
        row: dict[str, Any] = {"method": method}
        for x, law in laws_of.groupby("x"):
            weight, token = law["probability"], law["token"]
            mean = float((weight * token).sum())
            spread = float((weight * (token - mean) ** 2).sum()) ** 0.5
            row[f"x = {x}"] = f"{mean:.1f} ± {spread:.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _design(true_scale: float, n_units: int) -> str:
    return (
        f"An outcome in 21 classes follows a curved index of `u = x + s Z`, with `Z` "
        f"standard normal and never observed, true `s` = {true_scale:g}. {n_units} "
        "pairs are seen with `x` in [0, 2]; predictions are asked for in [2, 4] too. "
        "Every method has the right index and starts at the same place; they differ in "
        "the equation alone. `Brier` and `centred IWAE` have mean zero at the truth "
        "for any number of draws, noise-averaging and `IWAE` do not."
    )


def _interval(row: dict[str, Any], true_scale: float) -> str:
    told = f"{row['method']} {row['scale']:.3f}"
    if pd.isna(row["lower"]):
        return told
    holds = "holds" if row["lower"] <= true_scale <= row["upper"] else "misses"
    return f"{told} [{row['lower']:.3f}, {row['upper']:.3f}], which {holds} the truth"


def _reading(table: pd.DataFrame, true_scale: float) -> str:
    rows: list[Any] = table.to_dict("records")
    scales = "; ".join(_interval(row, true_scale) for row in rows if row["scale"] > 0)
    best = min(rows, key=lambda row: row["kl_outside"])
    worst = max(rows, key=lambda row: row["kl_outside"])
    solved = [row for row in rows if not pd.isna(row["residual"])]
    told = (
        f"Recovered scale (truth {true_scale:g}): {scales}. Outside the training range "
        f"{best['method']} is nearest to the truth with {best['kl_outside']:.4f} nats, "
        f"{worst['method']} farthest with {worst['kl_outside']:.2f}."
    )
    if solved:
        far = max(solved, key=lambda row: row["residual"])
        told += (
            " The intervals describe the root of the equation; stochastic descent "
            f"stopped at most {far['residual']:.2f} standard errors from it "
            f"({far['method']})."
        )
    return told


def _headline(table: pd.DataFrame) -> str:
    order = table.sort_values("kl_outside")
    parts = [
        f"{row['method']} {row['kl_outside']:.3g}" for row in order.to_dict("records")
    ]
    return (
        "divergence from the truth outside the data, in nats: " + ", ".join(parts) + "."
    )
