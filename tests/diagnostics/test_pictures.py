"""Pictures: names of bounds stay clear of the data; the script of the page draws."""

import importlib.util
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from eestim import diagnostics as checks
from eestim.asymptotics import rank_report
from eestim.diagnostics.plots import _free_side

figure_module = pytest.importorskip("matplotlib.figure")
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def script():
    place = DOCS / "from_diagnostics.py"
    if not place.is_file():
        pytest.skip("the documentation is not beside the tests")
    made = importlib.util.spec_from_file_location("from_diagnostics", place)
    script = importlib.util.module_from_spec(made)
    made.loader.exec_module(script)
    return script


def boxes_of_names(ax):
    """Return the axes and the texts of its annotations, as boxes in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text.get_window_extent(renderer) for text in ax.texts]
    return ax.get_window_extent(renderer), texts, ax.figure.bbox


def beside(ax):
    """Return whether names lie in the figure, outside the axes, clear of each other."""
    inside, texts, page = boxes_of_names(ax)
    assert texts
    return (
        not any(inside.overlaps(box) for box in texts)
        and not any(one.overlaps(two) for one, two in combinations(texts, 2))
        and all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in texts)
    )


@pytest.mark.parametrize(
    "path",
    [
        [3.0, 0.5, 1e-9],
        [2.0, 0.3, 0.11, 0.1, 0.09, 0.05, 0.04],  # along both bounds, to the end
        [1e9, 1e3, 1.0, 1e-16],  # 25 decades: the bounds are close together
        [0.02],
    ],
)
def test_bounds_of_the_solver_are_named_beside_its_path(path):
    assert beside(checks.plot_residual_path(path))


@pytest.mark.parametrize("A", [np.eye(3), [[1.0, 1.0], [1.0, 1.0]]])
def test_the_cut_of_a_spectrum_is_named_beside_it(A):
    assert beside(checks.plot_spectrum(rank_report(A)))


def test_a_name_over_the_path_would_be_seen():
    ax = checks.plot_residual_path([2.0, 0.3, 0.11])
    ax.annotate("within", (1.0, 0.1), ha="right")
    assert not beside(ax)


def test_units_are_named_on_the_lower_side_of_their_bar():
    bars = np.zeros(100)
    bars[[40, 43, 46]] = 3.0, 5.0, 4.0
    assert [_free_side(bars, unit) for unit in (40, 43, 46, 99)] == [-1, -1, 1, 1]


def test_the_script_of_the_page_draws_what_the_page_shows(
    script, tmp_path, monkeypatch
):
    titles = [ax.get_title(loc="left") for ax in script.four(draws=20).axes]
    assert titles[1:] == ["Rate of convergence", "Path of the solver", "Rank 2 of 2"]
    drawn = {"four": script.four, "singular": script.singular}
    for name, draw in drawn.items():
        monkeypatch.setattr(script, name, lambda draw=draw: draw(draws=20))
    monkeypatch.setattr(script.sys, "argv", ["from_diagnostics.py", str(tmp_path)])
    script.main()
    page = (DOCS / "diagnostics.md").read_text(encoding="utf-8")
    names = sorted(picture.name for picture in tmp_path.glob("*.png"))
    assert names == ["diagnostics-four.png", "diagnostics-singular.png"]
    assert all(f"(images/{name})" in page for name in names)


def test_the_singular_picture_shows_what_its_caption_says(script):
    spectrum, rate = script.singular(draws=60).axes
    assert spectrum.get_title(loc="left") == "Rank 3 of 4"
    name = rate.get_legend().get_texts()[0].get_text()
    slope, error = (float(word.strip("(),se")) for word in name.split()[1::2])
    assert abs(slope + 0.25) < 4 * error
    assert slope - -0.5 > 2 * error
