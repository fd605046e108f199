"""Tables and pictures of the extrapolation study, from one row for each seed."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

REFERENCE = "Brier"


def outside(rows: pd.DataFrame) -> list[str]:
    """Return the columns of divergences out of the support."""
    return [c for c in rows if c.startswith("KL ") and c != "KL inside"]


def interval(values: pd.Series) -> tuple[float, float]:
    """Return mean and half width of a 95% t interval over seeds."""
    kept = values.dropna()
    if len(kept) < 2:
        return float(kept.mean()), np.nan
    half = stats.t.ppf(0.975, len(kept) - 1) * kept.std(ddof=1) / len(kept) ** 0.5
    return float(kept.mean()), float(half)


def shown(values: pd.Series, signed: bool = False) -> str:
    """Return mean and half width to the digits that the half width carries."""
    mean, half = interval(values)
    if not np.isfinite(mean):
        return ""
    size = half if np.isfinite(half) and half > 0 else abs(mean)
    digits = int(np.clip(1 - np.floor(np.log10(max(size, 1e-12))), 0, 4))
    text = f"{mean:+.{digits}f}" if signed else f"{mean:.{digits}f}"
    return text + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")


def covered(rows: pd.DataFrame) -> str:
    """Return how many intervals for s hold the truth, of those that were given."""
    given = rows.dropna(subset=["lower", "upper"])
    if given.empty:
        refused = rows["refused"].dropna()
        return "refused" if len(refused) else ""
    inside = (given["lower"] <= given["truth"]) & (given["truth"] <= given["upper"])
    return f"{inside.sum()} of {len(given)}"


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line for each method and K of one world and base.

    Divergences are means over seeds with half widths of 95% t intervals; "against
    Brier" pairs the seeds, out of the support (mean of its regions), at the same K.
    """
    away = [c for c in outside(rows) if rows[c].notna().any()]
    rows = rows.assign(away=rows[away].mean(axis=1))
    lines = []
    for (method, draws), part in rows.groupby(["method", "K"], sort=False):
        rival = rows[(rows["method"] == REFERENCE)]
        if (rival["K"] == draws).any():
            rival = rival[rival["K"] == draws]
        joined = part.merge(rival[["seed", "away"]], on="seed", suffixes=("", " rival"))
        gap = joined["away"] - joined["away rival"]
        lines.append(
            {
                "method": method,
                "K": draws,
                "s": shown(part["scale"]),
                "s covered": covered(part),
                **{c: shown(part[c]) for c in ("KL inside", *away)},
                "outside, against Brier": ""
                if method == REFERENCE
                else shown(gap, signed=True),
                "seeds": len(part),
            }
        )
    return pd.DataFrame(lines)


def pictures(rows: pd.DataFrame, folder: Path) -> None:
    """Draw divergences by region, and the scales found, as PNG files."""
    import matplotlib.pyplot as plt

    worlds = list(dict.fromkeys(zip(rows["world"], rows["base"], strict=True)))
    chosen = [w for w in worlds if w[0] in ("index", "sequence")]
    main = [_main(rows, w) for w in chosen]
    figure, axes = plt.subplots(
        1, len(main), figsize=(3.1 * len(main) + 1.4, 4.8), layout="constrained"
    )
    for axis, part, (_, base) in zip(np.atleast_1d(axes), main, chosen, strict=True):
        _divergences(axis, part, base)
    figure.savefig(folder / "synthetic-divergence.png", dpi=130)
    plt.close(figure)
    figure, axes = plt.subplots(
        1, len(main), figsize=(3.1 * len(main) + 1.4, 3.6), layout="constrained"
    )
    for axis, part, (_, base) in zip(np.atleast_1d(axes), main, chosen, strict=True):
        _scales(axis, part, base)
    figure.savefig(folder / "synthetic-scale.png", dpi=130)
    plt.close(figure)


def _main(rows: pd.DataFrame, world: tuple[str, str]) -> pd.DataFrame:
    """Return the rows of one world and base at their usual number of draws."""
    part = rows[(rows["world"] == world[0]) & (rows["base"] == world[1])]
    usual = part["K"].mode().iloc[0]
    return part[part["K"].isin([1, usual])]


def _divergences(axis, part, title) -> None:
    names = list(dict.fromkeys(part["method"]))[::-1]
    columns = [c for c in ("KL inside", *outside(part)) if part[c].notna().any()]
    for shift, (column, marker) in enumerate(zip(columns, "o^sD", strict=False)):
        found = part.groupby("method")[column]
        middle, low, high = (found.quantile(q)[names] for q in (0.5, 0.1, 0.9))
        place = np.arange(len(names)) + 0.16 * (1 - shift)
        colour = f"C{shift}"
        axis.hlines(place, low.clip(1e-4), high.clip(1e-4), color=colour, lw=1)
        axis.plot(
            middle.clip(1e-4), place, marker, ms=4, color=colour, label=column[3:]
        )
    axis.set(xscale="log", title=title, xlabel="divergence, nats", xlim=(8e-5, 100))
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=6, loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.13))


def _scales(axis, part, title) -> None:
    learned = part[part["scale"].notna() & ~part["method"].str.startswith("fixed")]
    learned = learned[learned["scale"] > 0]  # others have no latent
    names = list(dict.fromkeys(learned["method"]))[::-1]
    for place, name in enumerate(names):
        rows = learned[learned["method"] == name]
        spread = np.linspace(-0.25, 0.25, len(rows))
        axis.plot(rows["scale"], place + spread, ".", ms=3, color="C0")
        axis.hlines(place + spread, rows["lower"], rows["upper"], color="C0", lw=0.7)
    axis.axvline(part["truth"].iloc[0], color="k", lw=0.8)
    axis.set(xscale="log", title=title, xlabel="scale s: 20 seeds, true value")
    axis.set_yticks(range(len(names)), names, fontsize=7)
