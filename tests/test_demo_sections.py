"""What the demo says is written from its numbers, whichever method wins."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from test_report import assert_no_labels_overlap

from eestim.cli import comparison
from eestim.cli.demo_coverage import verdict
from eestim.cli.demo_synthetic import section_from
from eestim.report import differences, frontier, laws, png, recovery
from eestim.report.page import Table, Text

MEASURES = (comparison.RAW, comparison.FITTED, comparison.ORACLE, comparison.TOP)
METHODS = ("no latent", "noise-averaged", "Brier")


def synthetic(outside=(19.0, 15.0, 0.01), lower=0.55, upper=0.65):
    table = pd.DataFrame(
        {
            "method": METHODS,
            "scale": [0.0, 0.06, 0.6],
            "lower": [np.nan, np.nan, lower],
            "upper": [np.nan, np.nan, upper],
            "residual": [np.nan, np.nan, 0.2],
            "kl_inside": [4.0, 3.5, 0.002],
            "kl_outside": outside,
            "seconds": [1.0, 1.0, 4.0],
        }
    )
    rows = [
        {"method": m, "x": x, "region": r, "token": v, "probability": 0.2}
        for m in ("truth", *METHODS)
        for x, r in ((0.5, "inside"), (2.5, "outside"))
        for v in range(5)
    ]
    return table, pd.DataFrame(rows)


def text_of(section) -> str:
    return " ".join(b.body for b in section.blocks if isinstance(b, Text))


def test_synthetic_section_names_the_method_nearest_to_the_truth():
    table, shown = synthetic()
    said = text_of(section_from(table, shown, 0.6, 3000))
    assert "Brier is nearest to the truth with 0.0100 nats" in said
    assert "no latent farthest" in said
    assert "which holds the truth" in said
    table, shown = synthetic(outside=(0.001, 15.0, 2.0), lower=0.7, upper=0.8)
    section = section_from(table, shown, 0.6, 3000)
    said = text_of(section)
    assert "no latent is nearest to the truth with 0.0010 nats" in said
    assert "which misses the truth" in said
    assert section.headline.endswith("no latent 0.001, Brier 2, noise-averaged 15.")


def test_law_summaries_are_the_mean_and_spread_of_each_law():
    table, shown = synthetic()
    section = section_from(table, shown, 0.6, 3000)
    made = next(
        b for b in section.blocks if isinstance(b, Table) and b.name == "synthetic-laws"
    )
    assert made.shown["x = 0.5"].tolist() == ["2.0 ± 1.4"] * 4  # uniform on 0 .. 4


def evaluation(shift: float):
    """Two methods on two corpora; the second is better by ``shift`` outside."""
    centres = {"a": 0.0, "b": -shift}
    rows = []
    for corpus, documents in (("in domain", 40), ("code", 12)):
        for model, centre in centres.items():
            for measure in (
                "bits per byte",
                comparison.FITTED,
                comparison.ORACLE,
                "top-1",
            ):
                middle = centre if corpus == "code" else 0.01
                rows.append(
                    {
                        "corpus": corpus,
                        "model": model,
                        "baseline": "base",
                        "measure": measure,
                        "difference": middle,
                        "se": 0.01,
                        "lower": middle - 0.02,
                        "upper": middle + 0.02,
                        "dof": documents - 1.0,
                        "documents": documents,
                    }
                )
    levels = pd.DataFrame(
        {
            "corpus": ["in domain", "code"],
            "model": "base",
            "bits_per_byte": 3.0,
            "oracle_t": 1.1,
            "bits_per_byte_oracle_t": 2.9,
            "top1": 0.4,
        }
    )
    return SimpleNamespace(
        differences=pd.DataFrame(rows),
        levels=levels,
        baseline="base",
        in_domain="in domain",
        level=0.95,
    )


@pytest.mark.parametrize(
    ("shift", "best", "sign"),
    [
        (0.05, "b", "better than the base"),
        (0.01, "b", "not distinguishable from the base"),
        (-0.05, "a", "not distinguishable from the base"),
    ],
)
def test_headline_follows_the_numbers(shift, best, sign):
    said = comparison.headline(evaluation(shift))
    assert said.startswith(f"on code the lowest loss is that of `{best}`")
    assert sign in said


@pytest.mark.parametrize("shift", [0.05, -0.05])
def test_a_tempered_base_is_not_the_best_after_the_best_temperature(shift):
    """It is the base itself then; raw it may well be the best."""
    given = evaluation(shift)
    rows = given.differences
    of_base = rows["model"] == "a"
    rows.loc[of_base & (rows["measure"] == comparison.RAW), "difference"] = -0.5
    ends = ["difference", "lower", "upper"]
    rows.loc[of_base & (rows["measure"] == comparison.ORACLE), ends] = 0.0
    said = comparison.headline(given)
    assert said.startswith("on code the lowest loss is that of `a`")
    after = said.split("after the best temperature ")[1]
    lead = "" if shift > 0 else "that of the base, the nearest to it "
    assert after.startswith(f"it is {lead}that of `b`")


def test_reading_names_what_is_worse():
    blocks = comparison.blocks(evaluation(-0.05))
    said = " ".join(b.body for b in blocks if isinstance(b, Text))
    assert (
        "code: `a` not distinguishable from the base; `b` worse than the base" in said
    )


def test_compared_table_shows_documents_and_degrees_of_freedom():
    table = comparison.compared(evaluation(0.05), "code")
    assert table.shown["documents"].tolist() == [12, 12]
    assert table.shown["dof"].tolist() == [11.0, 11.0]
    assert len(table.frame) == 8
    assert table.shown.iloc[1, 1] == "-0.050\n[-0.070, -0.030]"


def test_verdict_uses_the_error_of_the_nominal_level():
    error = np.sqrt(0.95 * 0.05 / 200)
    assert verdict(0.95 + 1.9 * error, 200, 0.95) == "not distinguishable from"
    assert verdict(0.95 + 2.1 * error, 200, 0.95) == "above"
    assert verdict(0.95 - 2.1 * error, 200, 0.95) == "below"


def test_pictures_of_the_demo_have_no_overlapping_labels():
    table, shown = synthetic()
    many = evaluation(0.05).differences
    measures = ["bits per byte", comparison.ORACLE]
    for figure in (
        laws(shown),
        recovery(table, 0.6),
        differences(many, measures, "bits per byte, minus the base"),
        frontier(many, "in domain", measures, "minus the base"),
    ):
        assert png(figure).startswith(b"\x89PNG")
        assert_no_labels_overlap(figure)
