"""Coverage at many nominal levels."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from eestim._arrays import Vector
from eestim.simulate._outcomes import quantile
from eestim.simulate._replications import bound_columns
from eestim.simulate.performance import proportion

__all__ = ["coverage_curve"]

_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99)


def level_reached(rows: pd.DataFrame) -> Vector:
    """Return the level at which each normal or t interval just covers the truth."""
    distance = (rows["estimate"] - rows["truth"]).abs().to_numpy(dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = distance / rows["se"].to_numpy(dtype=np.float64)
    size = np.where(distance == 0.0, 0.0, size)
    dof = rows["dof"].to_numpy(dtype=np.float64)
    finite = np.where(np.isfinite(dof), dof, 1.0)
    tail = np.where(np.isfinite(dof), special.stdtr(finite, -size), special.ndtr(-size))
    reached: Vector = 1.0 - 2.0 * tail
    return reached


def coverage_curve(
    table: pd.DataFrame,
    factors: Iterable[str],
    kept: Sequence[float],
    levels: Sequence[float] | None,
) -> pd.DataFrame:
    """Return coverage by nominal level; see `Results.coverage_curve`."""
    factors, out = list(factors), []
    wanted = sorted({*(_LEVELS if levels is None else levels)})
    good = table[table["status"] == "ok"]
    for (_, estimand, method), rows in good.groupby(
        ["point", "estimand", "method"], observed=True
    ):
        head = {name: rows[name].iloc[0] for name in factors}
        head = {"point": int(rows["point"].iloc[0])} | head
        head |= {"estimand": estimand, "method": method}
        for level, covers in _covers(rows, kept, wanted):
            found = proportion(covers)
            row = {"level": level, "coverage": found.value, "mcse": found.mcse}
            out.append(head | row | {"n_used": len(covers)})
    last = ["estimand", "method", "level", "coverage", "mcse", "n_used"]
    return pd.DataFrame(out, columns=["point", *factors, *last])


def _covers(
    rows: pd.DataFrame, kept: Sequence[float], wanted: Sequence[float]
) -> Iterable[tuple[float, Any]]:
    """Return levels with an indicator of coverage."""
    if _follows_law(rows, kept[0]):
        reached = level_reached(rows)
        for level in wanted:
            yield level, reached <= level
        return
    for level, (low, high) in sorted(zip(kept, bound_columns(kept), strict=True)):
        if rows[low].notna().all() and rows[high].notna().all():
            yield level, (rows[low] <= rows["truth"]) & (rows["truth"] <= rows[high])


def _follows_law(rows: pd.DataFrame, level: float) -> bool:
    """Return whether the intervals are those of the normal or t law."""
    dof, se = (rows[name].to_numpy(dtype=np.float64) for name in ("dof", "se"))
    if np.isnan(dof).any() or np.isnan(se).any():
        return False
    half = quantile(level, dof) * se
    gap = (rows["upper"] - rows["estimate"]).to_numpy(dtype=np.float64) - half
    return bool((np.abs(gap) <= 1e-8 * half).all())
