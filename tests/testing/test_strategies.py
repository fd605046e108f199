"""Strategies draw what their names say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eestim as ee
from eestim.testing import check_equation, examples_of, strategies
from eestim.testing.subjects import source_of

SETTINGS = settings(deadline=None, max_examples=15)


def scaled_condition(X):
    return np.linalg.cond(X / np.sqrt(np.mean(X**2, axis=0)))


@given(design=strategies.designs())
@SETTINGS
def test_designs_are_regular_once_scaled(design):
    n, p = design.X.shape
    assert n >= 5 * p and scaled_condition(design.X) < 1e4
    assert set(np.unique(design.outcomes["binomial"])) <= {0.0, 1.0}
    assert (design.outcomes["poisson"] >= 0).all()
    assert len(design.clusters) == len(design.weights) == n


def drawn(kind, seed=5, n=120, p=4):
    return strategies.made_design(kind, n, p, seed)


def test_kinds_differ_in_what_they_are_named_for():
    assert scaled_condition(drawn("well conditioned").X) < 3
    assert np.ptp(np.log10(np.abs(drawn("badly scaled").X).max(axis=0))) > 2
    assert scaled_condition(drawn("nearly collinear").X) > 300
    assert len(np.unique(drawn("few clusters").clusters)) <= 6
    assert len(np.unique(drawn("well conditioned").clusters)) > 15
    heavy, light = drawn("heavy-tailed").X, drawn("well conditioned").X
    assert np.abs(heavy).max() > 1.5 * np.abs(light).max()
    assert set(np.unique(drawn("weighted").weights)) == {1.0, 2.0, 3.0, 4.0}
    assert set(np.unique(drawn("few clusters").weights)) == {1.0}


@given(equation=strategies.equations(strategies.designs(max_n=60)))
@settings(deadline=None, max_examples=10)
def test_drawn_equations_hold_every_property(equation):
    assert check_equation(equation, examples=0)


@given(data=st.data())
@SETTINGS
def test_gradients_of_functionals_against_differences(data):
    h = data.draw(strategies.functionals(3))
    theta = np.array([0.3, -0.7, 1.1])
    steps = 1e-5 * np.eye(3)
    seen = [(h.value(theta + s) - h.value(theta - s)) / 2e-5 for s in steps]
    np.testing.assert_allclose(h.gradient(theta), seen, rtol=1e-6, atol=1e-8)


@given(data=st.data())
@SETTINGS
def test_functionals_of_a_fit_follow_the_delta_method(data):
    values = np.random.default_rng(1).normal(size=(60, 2)) + 2.0
    fit = ee.estimate(
        ee.ols(values[:, 0], np.column_stack([np.ones(60), values[:, 1]]))
    )
    h = data.draw(strategies.functionals(2))
    J = h.gradient(fit.theta)
    if np.abs(J).max() < 1e-3:
        return
    made = fit.functional(lambda theta: h.value(np.asarray(theta)))
    np.testing.assert_allclose(
        made.spread.matrix[0, 0], J @ fit.spread.matrix @ J, rtol=1e-6
    )


def test_examples_choose_rows_only_where_the_equation_can():
    from hypothesis import find
    from hypothesis.errors import NoSuchExample

    whole = source_of(ee.mean(np.arange(50.0)))
    few = settings(max_examples=20, database=None)
    smallest = find(examples_of(whole), lambda e: True, settings=few)
    assert smallest.n_rows == whole.fewest == 30
    with pytest.raises(NoSuchExample):
        find(examples_of(whole), lambda e: e.n_rows is None, settings=few)
