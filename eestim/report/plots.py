"""Pictures of estimates, readable in grey."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np

__all__ = ["PALETTE", "Mark", "canvas", "forest", "mark", "png", "pyplot", "style"]

# Neighbours differ in lightness, and markers and lines tell them apart in grey too.
PALETTE = ("#16324f", "#d0701c", "#7a2f6b", "#3f8f73", "#7d8a97", "#a08600")
_SHAPES = ("o", "s", "D", "^", "v", "P")
_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
_FACES = ("full", "none")  # filled and hollow markers alternate after one round

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.dpi": 100,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with the fonts and spines of reports, and restore the user's after."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


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


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Return a figure and its (rows, columns) array of axes, without a window.

    Parameters
    ----------
    width, height : float
        In inches.
    rows, columns : int
    **options
        Those of ``matplotlib.figure.Figure.subplots``.
    """
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False, **options)


def png(figure: Any, dpi: int = 160) -> bytes:
    """Return a figure as PNG; equal figures give equal bytes."""
    stream = BytesIO()
    figure.savefig(
        stream, format="png", dpi=dpi, facecolor="white", metadata={"Software": None}
    )
    return stream.getvalue()


Mark = dict[str, Any]


def mark(k: int) -> Mark:
    """Return marker, colour and line of the k-th series: told apart in grey.

    >>> mark(0)["marker"], mark(1)["marker"]
    ('o', 's')
    """
    return {
        "marker": _SHAPES[k % len(_SHAPES)],
        "color": PALETTE[k % len(PALETTE)],
        "fillstyle": _FACES[(k // len(_SHAPES)) % 2],
        "linestyle": _LINES[k % len(_LINES)],
    }


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
        rows = np.arange(len(shown))[::-1] + gap * ((len(estimates) - 1) / 2 - k)
        look = mark(k) | {"linestyle": "none"}
        ax.errorbar(
            centre,
            rows,
            xerr=sides,
            label=label,
            markersize=5,
            capsize=3,
            elinewidth=1.5,
            **look,
        )
    ax.axvline(0.0, color="0.6", linewidth=0.8, linestyle="--")
    ax.set_yticks(np.arange(len(shown))[::-1], shown)
    ax.set_ylim(-0.7, len(shown) - 0.3)
    unit = " in standard errors" if standardise else ""
    ax.set_xlabel(f"estimate{unit}, {level:.0%} interval")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if len(estimates) > 1:
        beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
        ax.legend(frameon=False, borderaxespad=0.0, **beside)  # never over the data
    return ax
