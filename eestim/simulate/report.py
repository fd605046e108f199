"""A study as a page: what was run, what failed, how the methods did, and pictures."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from eestim.report.page import Block, Page, Picture, Section, Table, Text
from eestim.report.plots import png
from eestim.simulate import plots

if TYPE_CHECKING:
    from eestim.simulate.results import Results

__all__ = ["study_page"]

_SHOWN = (
    "bias",
    "empirical_se",
    "model_se",
    "relative_error",
    "coverage",
    "coverage_of_all",
    "be_coverage",
    "power",
    "width",
    "failed",
)
_MC = "In brackets Monte Carlo standard errors."


def study_page(
    results: "Results",
    title: str,
    lead: str = "",
    facts: Mapping[str, Any] | None = None,
) -> Page:
    """Return the report of a study, to be written by `eestim.report.html.write`.

    Parameters
    ----------
    results : Results
    title, lead : str
        Heading, and what the study is about.
    facts : mapping, optional
        Further rows of how it was made.
    """
    points = results.points.reset_index(drop=True)
    counts = points["replications"]
    made = {
        "seed": results.seed,
        "replications": _span(counts),
        "design points": len(points),
        "methods": ", ".join(results.methods),
        "level": results.levels[0],
    } | dict(facts or {})
    sections = (
        Section("Design", (Table("design", points, "Design points."),)),
        _failures(results),
        _performance(results),
        _pictures(results),
        *_comparison(results),
    )
    return Page(title, lead, sections, made)


def _span(counts: "pd.Series[int]") -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _failures(results: "Results") -> Section:
    found = results.failures().drop(columns="point")
    if not len(found):
        text = "Every method gave numbers in every replication, without a warning."
        return Section("Failures and warnings", (Text(text),), text)
    lost = results.table["status"] != "ok"
    headline = f"{lost.sum()} of {len(lost)} results are failures."
    blocks: tuple[Block, ...] = (
        Text(
            "Failures are counted here and left out of the other measures, which are "
            "conditional on success; `coverage_of_all` counts them as misses. "
            "`example` is a replication that `Study.replicate` runs alone.",
            is_warning=bool(lost.any()),
        ),
        Table("failures", found, "How often, with Monte Carlo standard errors."),
    )
    return Section("Failures and warnings", blocks, headline)


def _performance(results: "Results") -> Section:
    found = results.performance()
    coverage = found[found["measure"] == "coverage"]
    headline = ""
    if len(coverage):
        worst = coverage.sort_values("value").iloc[0]
        headline = (
            f"Coverage of {results.levels[0]:.0%} intervals lies between "
            f"{worst['value']:.3f} ({worst['method']}) and "
            f"{coverage['value'].max():.3f}."
        )
    tables = [
        Table(
            f"performance_{name}",
            found[found["estimand"] == name].drop(columns="point"),
            f"Measures of {name}. {_MC}",
            shown=_wide(results, name),
        )
        for name in results.estimands
    ]
    return Section("Performance", tuple(tables), headline)


def _wide(results: "Results", estimand: str) -> pd.DataFrame:
    wide = results.summary(_SHOWN)
    return (
        wide[wide["estimand"] == estimand]
        .drop(columns="estimand")
        .reset_index(drop=True)
    )


def _pictures(results: "Results") -> Section:
    blocks: list[Block] = []
    measures = set(results.performance()["measure"])

    def add(name: str, figure: Any, caption: str, alt: str) -> None:
        blocks.append(Picture(name, png(figure), caption, alt))

    if "coverage" in measures:
        add(
            "nested_loop",
            plots.nested_loop(results, "coverage"),
            "Coverage over all design points; the steps below are their factors.",
            "Steps of coverage, one line a method.",
        )
    shown = [m for m in ("bias", "relative_error", "coverage") if m in measures]
    add(
        "lollipop",
        plots.lollipop(results, measures=shown),
        "Methods by measures with 95% Monte Carlo intervals; dashed: the target.",
        "Lollipops, one row a method and one column a measure.",
    )
    if "relative_error" in measures:
        add(
            "se_ratio",
            plots.se_ratio(results),
            "Model over empirical standard error; one is right.",
            "Points with error bars by design point.",
        )
    add(
        "bias_and_empirical_se",
        plots.bias_and_empirical_se(results),
        "Bias against empirical standard error; dotted arcs have equal mean squared "
        "error.",
        "Points by method and design point.",
    )
    if "coverage" in measures:
        number = _worst_point(results)
        add(
            "zipper",
            plots.zipper(results, point=number),
            "All intervals at the design point with the lowest coverage, ranked by "
            "distance from the truth; dark ones miss it. Dotted: the Wilson interval "
            "of the coverage.",
            "Zipper plot, one panel a method.",
        )
        add(
            "coverage_by_level",
            plots.coverage_plot(results, point=number),
            "Coverage minus nominal level at the same design point; dotted: where an "
            "exact method lies in 95% of studies.",
            "Lines of coverage error by nominal level.",
        )
    return Section("Pictures", tuple(blocks))


def _worst_point(results: "Results") -> int:
    """Return the design point with the lowest coverage of the first estimand."""
    found = results.performance()
    chosen = found["estimand"] == results.estimands[0]
    rows = found[chosen & (found["measure"] == "coverage")]
    if not len(rows):  # of another estimand only
        return int(results.points.index[0])
    return int(rows.sort_values("value", kind="stable")["point"].iloc[0])


def _comparison(results: "Results") -> tuple[Section, ...]:
    found = results.compare()
    if not len(found):
        return ()
    reference = str(found["reference"].iloc[0])
    kept = ["bias", "empirical_se", "model_se", "coverage", "width"]
    shown = found[found["measure"].isin(kept)].drop(columns=["point", "reference"])
    table = Table(
        "differences",
        shown.reset_index(drop=True),
        f"Differences from {reference} on common data; their Monte Carlo errors are "
        "those of the paired difference.",
    )
    return (Section(f"Differences from {reference}", (table,)),)
