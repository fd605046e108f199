"""docs/testing.md lists the properties and the faults as they are."""

from pathlib import Path

import pytest
from faults import FAULTS

from eestim.testing import CONTRACT, PROPERTIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "testing.md"


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("one", [*CONTRACT, *PROPERTIES], ids=str)
def test_property_is_listed_as_it_is(one, page):
    place = f"| {one.number} " if one.number else ""
    assert f"{place}| {one.name} | {one.statement} |" in page


def test_faults_are_listed(page):
    rows = [line for line in page.splitlines() if line.startswith(("| psi", "| sens"))]
    assert len(rows) == len(FAULTS)
    for fault, row in zip(FAULTS, rows, strict=True):
        assert row.startswith(f"| {fault.where} | {fault.name} |")
        assert fault.cause in row and row.endswith("| yes |")
