"""`parametrize_properties`: one test for each equation and property."""

import numpy as np
import pytest
from faults import Logit, WrongSign

import eestim as ee
from eestim.testing import PROPERTIES, parametrize_properties

VALUES = np.random.default_rng(0).normal(size=40)


@parametrize_properties({"mean": ee.mean(VALUES), "logit": Logit}, examples=1)
def test_properties(equation, check):
    check(equation)


def test_ids_name_the_equation_and_the_property():
    mark = test_properties.pytestmark[0]
    ids = mark.kwargs["ids"]
    assert "mean-contract" in ids and "logit-7 order of rows" in ids
    assert "mean-17 least squares" in ids and "logit-17 least squares" not in ids
    assert len(ids) == len(set(ids)) == len(mark.args[1])
    held = {int(i.split("-")[1].split()[0]) for i in ids if "contract" not in i}
    assert held <= {one.number for one in PROPERTIES}


def test_other_argument_names_and_pairs():
    @parametrize_properties([("spoiled", WrongSign)])
    def other(model, run):
        run(model)

    mark = other.pytestmark[0]
    assert mark.args[0] == ["model", "run"]
    case, check = mark.args[1][0]
    with pytest.raises(AssertionError, match="wrong sign"):
        check(case)


def test_a_test_with_one_argument_is_refused():
    with pytest.raises(TypeError, match="two arguments"):
        parametrize_properties([ee.mean(VALUES)])(lambda equation: None)
