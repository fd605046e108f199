"""Pictures of estimates, readable in grey."""

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["forest", "pyplot"]

_MARKERS = ("o", "s", "D", "^", "v", "P")
_GREYS = ("#1f4e79", "#c55a11", "#548235", "#7f7f7f", "#7030a0", "#000000")


def pyplot() -> Any:
    """Return matplotlib.pyplot.

    Raises
    ------
    ImportError
        Naming the extra that installs it.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plots need matplotlib: pip install 'eestim[report]'"
        ) from error
    return plt


def forest(
    estimates: Mapping[str, Any],
    *,
    ax: Any = None,
    level: float = 0.95,
    method: Any = None,
    names: list[str] | None = None,
    standardise: bool = False,
) -> Any:
    """Return axes with one row a parameter and one interval an estimate.

    Parameters
    ----------
    estimates : mapping from label to Estimate
        Drawn side by side with different markers.
    ax : matplotlib axes, optional
    level : float
    method : as in `Estimate.interval`
    names : parameters to show, all by default
    standardise : bool
        Divide each parameter by its standard error in the first estimate, so that
        parameters in different units share an axis.
    """
    first = next(iter(estimates.values()))
    shown = list(names or first.names)
    if ax is None:
        height = 1.2 + 0.25 * len(shown) * max(len(estimates), 2)
        _, ax = pyplot().subplots(figsize=(7, height), layout="constrained")
    scale = first.se[shown] if standardise else first.se[shown] * 0 + 1
    gap = 0.6 / max(len(estimates), 1)
    for k, (label, fit) in enumerate(estimates.items()):
        bounds = fit.interval(level, method).loc[shown].div(scale, axis=0)
        centre = bounds["estimate"].to_numpy()
        sides = np.abs(bounds[["lower", "upper"]].to_numpy().T - centre)
        height = np.arange(len(shown))[::-1] + gap * ((len(estimates) - 1) / 2 - k)
        ax.errorbar(
            centre,
            height,
            xerr=sides,
            fmt=_MARKERS[k % len(_MARKERS)],
            color=_GREYS[k % len(_GREYS)],
            markersize=4.5,
            capsize=2.5,
            linewidth=1.3,
            label=label,
        )
    ax.axvline(0.0, color="0.6", linewidth=0.8, linestyle="--")
    ax.set_yticks(np.arange(len(shown))[::-1], shown)
    ax.set_ylim(-0.7, len(shown) - 0.3)
    unit = " in standard errors" if standardise else ""
    ax.set_xlabel(f"estimate{unit}, {level:.0%} interval")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if len(estimates) > 1:
        ax.legend(frameon=False, fontsize="small")
    return ax
