"""Reports: values that survive JSON, one self-contained page, pictures that draw."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import eestim as ee
from eestim.report.html import render, write
from eestim.report.page import (
    Page,
    Picture,
    Section,
    Table,
    Text,
    as_json,
    from_json,
    plain,
)
from eestim.report.plots import canvas, forest, mark, png
from eestim.report.studies import coverage
from eestim.report.tables import formatted

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def fit(rng):
    x = rng.normal(size=60)
    table = pd.DataFrame({"x": x, "y": 1 + 2 * x + rng.normal(size=60)})
    return ee.estimate(ee.ols("y ~ x", table), covariance=ee.HC(1))


@pytest.fixture
def page():
    numbers = pd.DataFrame({"rule": ["a", "b"], "se": [0.1, np.nan], "n": [3, 12345]})
    figure, axes = canvas(2, 1)
    axes[0, 0].plot([0, 1], [0, 1])
    blocks = (
        Text("Words with `code < 1` & more."),
        Text("Mind this.", is_warning=True),
        Table("errors", numbers, "Errors"),
        Picture("line", png(figure), "A line.", 'alt "text"'),
    )
    return Page("Title <1>", "Lead.", (Section("One part", blocks, "It came out."),))


class Outline(HTMLParser):
    """Collect what a page contains and refers to."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.ids, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.references += [named[k] for k in ("src", "href") if k in named]
        self.ids += [named["id"]] if "id" in named else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_page_is_well_formed_and_refers_to_nothing_outside(page):
    text = render(page)
    outline = Outline(text)
    assert outline.open == []
    outside = [
        r for r in outline.references if not r.startswith(("#", "data:image/png"))
    ]
    assert outside == []
    assert "http" not in text
    assert "@import" not in text


def test_page_escapes_what_is_not_markup(page):
    text = render(page)
    assert "<code>code &lt; 1</code> &amp; more." in text
    assert "Title &lt;1&gt;" in text
    assert 'alt="alt &#34;text&#34;"' in text


def test_page_shows_every_cell_of_a_table(page):
    cells = Outline(render(page)).cells
    assert cells == ["rule", "se", "n", "a", "0.1000", "3", "b", "12345"]


def test_every_headline_links_to_its_section(page):
    outline = Outline(render(page))
    links = [r[1:] for r in outline.references if r.startswith("#")]
    assert links == ["one-part"]
    assert set(links) <= set(outline.ids)


def test_written_tables_hold_full_precision(tmp_path):
    frame = pd.DataFrame({"value": [1 / 3, 1e-17]})
    page = Page("t", "", (Section("s", (Table("thirds", frame, "c"),)),))
    files = {p.relative_to(tmp_path).as_posix() for p in write(page, tmp_path)}
    assert files == {"tables/thirds.csv", "results.json", "index.html"}
    back = pd.read_csv(tmp_path / "tables" / "thirds.csv", float_precision="round_trip")
    assert (back["value"] == frame["value"]).all()
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["tables"]["thirds"] == frame.to_dict("records")


def test_section_survives_json(page):
    section = page.sections[0]
    back = from_json(json.loads(json.dumps(as_json(section))))
    again = render(Page(page.title, page.lead, (back,)))
    assert again == render(page)
    table = next(b for b in back.blocks if isinstance(b, Table))
    given = next(b for b in section.blocks if isinstance(b, Table))
    pd.testing.assert_frame_equal(table.frame, given.frame, check_exact=True)


def test_plain_has_no_number_that_json_lacks():
    record = {"dof": np.array([np.inf, 3.0]), "deep": [(np.nan, np.bool_(True))]}
    assert plain(record) == {"dof": [None, 3.0], "deep": [[None, True]]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (0.05, "0.05000"), (123456.0, "123456"), (2e-5, "2.000e-05")],
)
def test_numbers_have_four_significant_digits(value, text):
    assert formatted(pd.DataFrame({"v": [value]})).iloc[0, 0] == text


def test_formatted_leaves_text_and_counts_alone():
    table = pd.DataFrame({"rule": ["HC1"], "n": [10], "shift": [0.25]})
    assert formatted(table, {"shift": "+.1f"}).iloc[0].tolist() == ["HC1", "10", "+0.2"]


def test_forest_draws_the_intervals_of_each_estimate(fit):
    _, axes = canvas(5, 3)
    both = {"HC1": fit, "model": fit.with_covariance(ee.ModelBased())}
    ax = forest(both, ax=axes[0, 0])
    drawn = [c.get_segments() for c in ax.collections]
    bounds = fit.interval()
    for segment, (_, row) in zip(drawn[0], bounds.iterrows(), strict=True):
        np.testing.assert_allclose(sorted(segment[:, 0]), row[["lower", "upper"]])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["HC1", "model"]


def drawn_labels(ax):
    """Yield the labels that are drawn: ticks outside the limits are not."""
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        places = axis.get_majorticklocs()
        for place, label in zip(places, axis.get_majorticklabels(), strict=False):
            if min(low, high) <= place <= max(low, high):
                yield label
    yield from (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts)
    if ax.get_legend() is not None:
        yield from ax.get_legend().get_texts()


def texts_of(figure):
    renderer = figure.canvas.get_renderer()
    found = [label for ax in figure.axes for label in drawn_labels(ax)]
    return [
        (label.get_text(), label.get_window_extent(renderer))
        for label in found
        if label.get_visible() and label.get_text()
    ]


def assert_no_labels_overlap(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    width, height = figure.canvas.get_width_height()
    boxes = texts_of(figure)
    for i, (name, box) in enumerate(boxes):
        inside = box.x0 > -2 and box.x1 < width + 2 and box.y0 > -2
        assert inside and box.y1 < height + 2, f"{name!r} leaves the picture"
        for other, second in boxes[i + 1 :]:
            overlap = min(box.x1, second.x1) - max(box.x0, second.x0)
            rise = min(box.y1, second.y1) - max(box.y0, second.y0)
            assert min(overlap, rise) <= 1.0, f"{name!r} overlaps {other!r}"


def test_forest_labels_do_not_overlap(fit):
    figure, axes = canvas(7, 3)
    forest({"HC1": fit, "HC3": fit.with_covariance(ee.HC(3))}, ax=axes[0, 0])
    assert_no_labels_overlap(figure)


def test_coverage_labels_do_not_overlap():
    rows = [
        {"rule": rule, "parameter": name, "coverage": share, "mc_se": 0.02}
        for rule, share in (("model-based", 0.45), ("clustered, CR2", 0.95))
        for name in ("log_value", "log_capital")
    ]
    figure = coverage(pd.DataFrame(rows), 0.95)
    assert png(figure).startswith(PNG)
    assert_no_labels_overlap(figure)


def test_the_overlap_check_sees_an_overlap():
    figure, axes = canvas(3, 2)
    axes[0, 0].text(0.5, 0.5, "one label")
    axes[0, 0].text(0.5, 0.52, "another")
    with pytest.raises(AssertionError, match="overlaps"):
        assert_no_labels_overlap(figure)


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_series_are_told_apart_without_colour():
    looks = [(mark(k)["marker"], mark(k)["fillstyle"]) for k in range(8)]
    assert len(set(looks)) == 8
    assert max(luminance(mark(k)["color"]) for k in range(6)) < 0.6  # dark on white


def test_equal_pictures_have_equal_bytes(fit):
    def draw():
        figure, axes = canvas(4, 2)
        forest({"one": fit}, ax=axes[0, 0])
        return png(figure)

    assert draw() == draw()


def test_markdown_latex_and_html_hold_the_same_numbers(fit):
    shown = formatted(fit.table())
    for text in (fit.to_markdown(), fit.to_latex(), fit.to_html(), str(fit)):
        for cell in shown.to_numpy().ravel():
            assert re.escape(cell) in re.escape(text.replace("&lt;", "<"))
        assert "HC1" in text
