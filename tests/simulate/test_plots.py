"""What the pictures show, read back from their axes, and the report around them."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from eestim.errors import SeparationError
from eestim.report.html import write
from eestim.simulate import Study, plots
from eestim.simulate.plots import wilson
from eestim.simulate.report import study_page


def generate(rng, n, sd):
    return rng.normal(0.5, sd, n)


def mean(y):
    return y.mean(), y.std(ddof=1) / np.sqrt(len(y)), len(y) - 1


def narrow(y):
    if y[0] > 2.5:
        raise SeparationError("none")
    return y.mean(), 0.6 * y.std(ddof=1) / np.sqrt(len(y))


@pytest.fixture(scope="module")
def results():
    return Study(
        generate,
        {"mean": mean, "narrow": narrow},
        0.5,
        {"sd": [1.0, 2.0], "n": [10, 40]},
    ).run(80, seed=1)


def curves(ax):
    return {
        line.get_label(): line
        for line in ax.lines
        if not line.get_label().startswith("_")
    }


def test_zipper_shows_every_interval_and_which_miss(results):
    figure = plots.zipper(results, point={"sd": 2.0, "n": 10})
    rows = results.table.query("sd == 2.0 and n == 10")
    for ax, method in zip(figure.axes, results.methods, strict=True):
        own = rows[(rows["method"] == method) & (rows["status"] == "ok")]
        covered, missed = (part.get_segments() for part in ax.collections)
        hits = (own["lower"] <= 0.5) & (own["upper"] >= 0.5)
        assert (len(covered), len(missed)) == (hits.sum(), (~hits).sum())
        heights = np.sort([segment[0][1] for segment in covered + missed])
        steps = 100 * (np.arange(len(own)) + 0.5) / len(own)
        np.testing.assert_allclose(heights, steps)
        band = {round(y, 6) for line in ax.lines for y in line.get_ydata()}
        share = hits.mean()
        assert {round(100 * edge, 6) for edge in wilson(share, len(own))} <= band
    lost = (rows["status"] != "ok").sum()
    assert lost > 0
    assert f"{lost} of 80 without" in figure.axes[1].get_title(loc="left")


def test_nested_loop_follows_the_design(results):
    figure = plots.nested_loop(results, "coverage")
    ax = figure.axes[0]
    found = results.performance().query("measure == 'coverage' and method == 'mean'")
    order = found.sort_values(["sd", "n"])["value"].tolist()
    steps = next(line for line in ax.lines if line.get_drawstyle() == "steps-post")
    assert steps.get_ydata()[:-1].tolist() == order
    words = [text.get_text() for text in ax.texts]
    assert words == ["sd: 1.0, 2.0", "n: 10, 40"]


def test_lollipop_has_a_panel_for_each_measure_and_point(results):
    figure = plots.lollipop(results, measures=("bias", "coverage"))
    assert len(figure.axes) == 4 * 2
    assert figure.axes[-1].get_xlabel() == "coverage"
    with pytest.raises(ValueError, match="no method has"):
        plots.lollipop(results, measures=("beauty",))


def test_ratio_and_bias_pictures_show_the_measures(results):
    ax = plots.se_ratio(results).axes[0]
    found = results.performance().query("measure == 'relative_error'")
    for container, method in zip(ax.containers, results.methods, strict=True):
        shown = np.asarray(container.lines[0].get_ydata(), dtype=float)
        own = found[found["method"] == method]["value"]
        np.testing.assert_allclose(shown, 1 + own / 100)
    ax = plots.bias_and_empirical_se(results).axes[0]
    assert len(ax.containers) == 2
    assert next(text.get_text() for text in ax.texts) == "sd 1.0, n 10"


def test_coverage_plot_is_coverage_minus_level(results):
    ax = plots.coverage_plot(results, point=1, levels=(0.5, 0.8, 0.95)).axes[0]
    line = curves(ax)["mean"]
    curve = results.coverage_curve((0.5, 0.8, 0.95))
    own = curve.query("point == 1 and method == 'mean'")
    np.testing.assert_allclose(line.get_ydata(), own["coverage"] - own["level"])
    at_95 = results.performance().query(
        "point == 1 and method == 'mean' and measure == 'coverage'"
    )
    assert own["coverage"].iloc[-1] == at_95["value"].item()


def test_methods_differ_in_grey(results):
    """Markers and lines differ, and so does the lightness of neighbours."""
    lines = curves(plots.coverage_plot(results).axes[0])
    looks = {(line.get_marker(), str(line.get_linestyle())) for line in lines.values()}
    assert len(looks) == len(lines) == 2
    grey = [
        np.dot(to_rgb(line.get_color()), (0.299, 0.587, 0.114))
        for line in lines.values()
    ]
    assert abs(grey[0] - grey[1]) > 0.1


def test_methods_of_results_return_the_same_pictures(results):
    for made in (
        results.zipper(),
        results.nested_loop("bias"),
        results.lollipop(),
        results.bias_and_empirical_se(),
        results.se_ratio(),
        results.coverage_plot(),
    ):
        assert made.axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"point": 9}, "not one design point"),
        ({"point": {"n": 10}}, "not one design point"),
        ({"estimand": "slope"}, "`estimand`"),
        ({"methods": ["median"]}, "`methods`"),
    ],
)
def test_what_is_not_there_cannot_be_shown(results, options, message):
    with pytest.raises(ValueError, match=message):
        plots.zipper(results, **options)


def test_a_study_of_one_point_and_one_estimator_of_nothing_but_a_number():
    results = Study(lambda rng: rng.normal(size=9), {"m": np.mean}, 0.0).run(20, seed=1)
    assert plots.nested_loop(results, "bias").axes
    assert plots.lollipop(results, measures=("bias", "coverage")).axes
    with pytest.raises(ValueError, match="no method has intervals"):
        plots.coverage_plot(results)
    assert [s.title for s in study_page(results, "One").sections][-1] == "Pictures"


def test_report_is_one_file_with_failures_first(results, tmp_path):
    page = study_page(results, "Means", "Two methods.")
    titles = [section.title for section in page.sections]
    assert titles[:3] == ["Design", "Failures and warnings", "Performance"]
    lost = (results.table["status"] != "ok").sum()
    assert page.sections[1].headline == f"{lost} of 640 results are failures."
    files = write(page, tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "SeparationError: none" in text
    assert len([file for file in files if file.suffix == ".png"]) == 6
