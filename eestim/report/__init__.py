"""Tables, plots and self-contained HTML.

A report is made of plain values and written in one go::

    page = Page("Trial", "Two arms.", (Section("Effect", (Text("..."), table)),))
    write(page, folder)  # index.html, results.json, tables/*.csv, figures/*.png

matplotlib and jinja2 are loaded when something is drawn or rendered.
"""

from eestim.report.html import render, write
from eestim.report.page import Page, Picture, Section, Table, Text
from eestim.report.plots import canvas, forest, png
from eestim.report.studies import coverage, differences, frontier, laws, recovery
from eestim.report.tables import formatted, pipe_table

__all__ = [
    "Page",
    "Picture",
    "Section",
    "Table",
    "Text",
    "canvas",
    "coverage",
    "differences",
    "forest",
    "formatted",
    "frontier",
    "laws",
    "pipe_table",
    "png",
    "recovery",
    "render",
    "write",
]
