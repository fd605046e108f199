r"""Draw the two pictures of docs/diagnostics.md again.

    python docs/from_diagnostics.py [FOLDER]

Pictures go to docs/images, or to the folder given. The first is of the fit in the first
block of code of the page, which is run; the second is of a design with a redundant
column and of an estimate whose spread falls with the fourth root of the sample size.
Nothing depends on the machine's speed: `ee.diagnose` takes as many subsamples as its
budget allows, these pictures take a fixed number.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import eestim as ee
from eestim.report.plots import png

DOCS = Path(__file__).resolve().parent
DRAWS = 240  # subsamples of each size: a standard error of the slope of about 0.05


def fit_of_the_page() -> Any:
    """Return the fit that the first block of code of the page makes."""
    page = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    if code is None:
        raise SystemExit("docs/diagnostics.md has no block of Python")
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code[1], names)
    return names["fit"]


def redundant_design(rng: np.random.Generator) -> Any:
    """Return the rank report of four columns of which one is the sum of two."""
    x = rng.normal(size=(400, 2))
    design = np.column_stack([np.ones(400), x, x.sum(axis=1)])
    return ee.asymptotics.rank_report(design.T @ design / len(design))


def fourth_root(rng: np.random.Generator) -> Any:
    r"""Return an equation whose estimate is at a singular point.

    .. math:: \psi = y - \theta |\theta|, \quad A = 2 |\theta| = 0 \text{ at the truth}
    """
    y = rng.normal(size=2000)
    return ee.equation(
        lambda t, d: (d["y"] - t[0] * np.abs(t[0]))[:, None],
        {"y": y - y.mean()},
        [0.5],
        jacobian=lambda t, _: np.array([[-2.0 * abs(t[0])]]),
    )


def four(draws: int = DRAWS) -> Figure:
    """Return the four pictures of the fit of the page."""
    fit = fit_of_the_page()
    curve = ee.diagnostics.subsample_rate(fit, np.random.default_rng(10), draws=draws)
    figure: Figure = ee.diagnostics.plot_diagnostics(fit, curve)
    return figure


def singular(draws: int = DRAWS) -> Figure:
    """Return a spectrum with a dropped value beside a slope of a quarter."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ee.diagnostics.plot_spectrum(redundant_design(np.random.default_rng(11)), left)
    rng = np.random.default_rng(12)
    equation = fourth_root(rng)
    curve = ee.diagnostics.subsample_rate(
        equation, rng, start=[0.5], sizes=(50, 100, 200, 400), draws=draws
    )
    ee.diagnostics.plot_rate(curve, right)
    return figure


def main() -> None:
    """Write both pictures."""
    if len(sys.argv) > 2:
        sys.exit("usage: python docs/from_diagnostics.py [FOLDER]")
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else DOCS / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in {"four": four, "singular": singular}.items():
        (folder / f"diagnostics-{name}.png").write_bytes(png(draw(), dpi=110))


if __name__ == "__main__":
    main()
