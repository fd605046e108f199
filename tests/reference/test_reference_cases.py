"""Agreement with other packages' digits, case by case."""

import json

import numpy as np
import pytest
from conftest import reference_folder
from reference.registry import ROWS
from tolerances import REFERENCE

import eestim as ee


def deviations(result, case):
    """Return the deviation of each compared number, and its tolerance.

    Covariances in units of the standard errors, estimates in standard errors, other
    numbers relative to the largest.
    """
    parts = result if isinstance(result, dict) else {"estimate": (result, None)}
    found = {}
    for name, (ours, theirs) in parts.items():
        if isinstance(ours, ee.Estimate):
            errors = np.sqrt(np.diag(np.asarray(case["vcov"])))
            gap = np.abs(ours.spread.matrix - np.asarray(case["vcov"]))
            bound = name.removeprefix("estimate")
            found["covariance" + bound] = float((gap / np.outer(errors, errors)).max())
            gap = np.abs(ours.theta - np.asarray(case["estimate"]))
            found["estimate" + bound] = float((gap / errors).max())
        else:
            ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
            gap = np.abs(ours.reshape(theirs.shape) - theirs)
            found[name] = float(gap.max() / np.abs(theirs).max())
    return found


def tolerance(name):
    """A bound named after a comma, else that of another package's digits."""
    head, _, last = name.rpartition(", ")
    return float(last) if head and "e-" in last else REFERENCE


def known_cases():
    file = reference_folder() / "cases.json"
    if not file.is_file():
        return []
    return [case["id"] for case in json.loads(file.read_text()) if case["id"] in ROWS]


def test_reference_cases_are_present(refcases):
    assert len(known_cases()) > 50


@pytest.mark.parametrize("name", known_cases())
def test_case_against_the_other_package(refcases, name):
    found = deviations(ROWS[name](refcases), refcases.case(name))
    assert found
    for part, deviation in found.items():
        assert deviation <= tolerance(part), f"{part}: {deviation:.1e}"
