"""The properties 1-35, 47 and 49 over every equation for which they make sense.

The checks are those of `eestim.testing`, which also draws the examples; numbers are
those of the property list in the theory notes. That each check can fail is in
tests/testing/test_each_can_fail.py.
"""

import cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eestim as ee
from eestim.testing import check_equation, strategies

NUMBERS = (*range(1, 36), 47, 49)
GENERAL = {1, 3, 4, 9, 10, 11, 12, 13, 15, 16, 25, 28, 31, 32, 49}
ROWS = {5, 6, 7, 14, 27, 30}  # of models whose rows are units
SMOOTH = {2, 34}
LEAST_SQUARES = {17, 18, 19, 20, 21, 22, 23, 29, 33, 35}

NO_ROWS = {"user logistic, units", "stack"}  # rows are not units, or not taken alone
JUMPS = {"quantile", "lad"}


def expected(name):
    """What at least must have been checked, so that nothing is skipped unseen."""
    wanted = set(GENERAL)
    if name not in JUMPS:
        wanted |= SMOOTH
    if name not in NO_ROWS | JUMPS | {"ols, frequencies"}:
        wanted |= ROWS
    if name in ("mean", "ols"):
        wanted |= LEAST_SQUARES
    if name == "ols":
        wanted |= {24}
    if name in ("logit", "poisson", "poisson, exposure"):
        wanted |= {33, 35}
    return wanted


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_every_property_that_makes_sense_holds(case):
    examples = 0 if case.name == "stack" else 2  # a second an example
    held = check_equation(
        case.build, data=cases.table(), examples=examples, properties=NUMBERS
    )
    assert expected(case.name) <= {one.number for one in held}


def test_each_property_was_expected_of_some_equation():
    seen = set().union(*(expected(case.name) for case in cases.CASES))
    assert set(NUMBERS) - seen <= {8, 26, 47}  # checked in tests/testing


@given(
    design=strategies.designs(max_p=3, max_n=60),
    family=st.sampled_from(["gaussian", "binomial", "poisson"]),
)
@settings(deadline=None, max_examples=8)
def test_a_psi_written_by_hand_agrees_with_the_model(design, family):
    """Independent of `eestim.testing`: two programs for one equation."""
    y, X = design.outcomes[family], design.X / np.abs(design.X).max(axis=0)
    inverse = {
        "gaussian": lambda eta: eta,
        "binomial": lambda eta: 1 / (1 + np.exp(-eta)),
        "poisson": np.exp,
    }[family]

    def psi(theta, data):
        mu = inverse(data["X"] @ np.asarray(theta))
        return (data["y"] - mu)[:, None] * data["X"]

    fit = ee.estimate(ee.glm(y, X, family=family))
    other = ee.estimate(ee.equation(psi, {"y": y, "X": X}, fit.theta + 0.01))
    errors = fit.se.to_numpy()
    assert np.max(np.abs(other.theta - fit.theta) / errors) < 1e-6
    gap = np.abs(other.spread.matrix - fit.spread.matrix) / np.outer(errors, errors)
    assert gap.max() < 1e-6
