"""Roots that algorithms pick (H2): properties 41-43."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import (
    GradientDescent,
    GradientFlow,
    MinimumNorm,
    Ridge,
    filter_weights,
    spectral_root,
)

seeds = st.integers(0, 10**6)


def problem(seed, n=8, p=20):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, p)), rng.standard_normal(n), rng.standard_normal(p)


def descend(X, y, start, step, n_steps):
    theta = start.copy()
    for _ in range(n_steps):
        theta = theta + step * X.T @ (y - X @ theta)
    return theta


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_property_41_descent_converges_to_the_nearest_interpolator(seed):
    X, y, start = problem(seed)
    step = 1.0 / np.linalg.norm(X, 2) ** 2
    limit = spectral_root(X, y, MinimumNorm(), start)
    expected = start + np.linalg.pinv(X) @ (y - X @ start)
    np.testing.assert_allclose(limit.theta, expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(
        descend(X, y, start, step, 3000), limit.theta, rtol=0, atol=1e-8
    )
    np.testing.assert_allclose(limit.fitted, y, rtol=0, atol=1e-11)
    assert limit.df == pytest.approx(8, rel=EXACT)


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    n_steps=st.integers(0, 60),
    fraction=st.floats(0.05, 1.9),
    n=st.sampled_from([8, 30]),
)
def test_property_42_early_stopping_is_a_spectral_filter(seed, n_steps, fraction, n):
    X, y, start = problem(seed, n=n, p=12)
    step = fraction / np.linalg.norm(X, 2) ** 2
    found = spectral_root(X, y, GradientDescent(step, n_steps), start)
    expected = descend(X, y, start, step, n_steps)
    np.testing.assert_allclose(found.theta, expected, rtol=0, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, time=st.floats(0.0, 2.0))
def test_gradient_flow_matches_the_matrix_exponential(seed, time):
    X, y, start = problem(seed, n=6, p=9)
    decay = linalg.expm(-time * X.T @ X)
    limit = start + np.linalg.pinv(X) @ (y - X @ start)
    expected = limit + decay @ (start - limit)
    found = spectral_root(X, y, GradientFlow(time), start)
    np.testing.assert_allclose(found.theta, expected, rtol=0, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_property_43_ridge_tends_to_minimum_norm_linearly(seed):
    X, y, start = problem(seed)
    limit = spectral_root(X, y, MinimumNorm(), start).theta
    errors = [
        np.linalg.norm(spectral_root(X, y, Ridge(penalty), start).theta - limit)
        for penalty in (1e-5, 1e-6)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=1e-2)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, penalty=st.floats(1e-3, 10.0))
def test_ridge_matches_its_normal_equations(seed, penalty):
    X, y, _ = problem(seed, n=15, p=10)
    expected = np.linalg.solve(X.T @ X + 15 * penalty * np.eye(10), X.T @ y)
    found = spectral_root(X, y, Ridge(penalty))
    np.testing.assert_allclose(found.theta, expected, rtol=0, atol=1e-10)
    smoother = X @ np.linalg.solve(X.T @ X + 15 * penalty * np.eye(10), X.T)
    assert found.df == pytest.approx(np.trace(smoother), rel=REFERENCE)


def test_degrees_of_freedom_match_the_derivative_of_the_fit():
    X, y, start = problem(0, n=10, p=6)
    rule = GradientDescent(0.02, 15)
    base = spectral_root(X, y, rule, start)
    trace = sum(
        spectral_root(X, y + np.eye(10)[i], rule, start).fitted[i] - base.fitted[i]
        for i in range(10)
    )
    assert base.df == pytest.approx(trace, rel=REFERENCE)


def test_filters_join_flow_in_small_steps_and_keep_small_values_accurate():
    s = np.array([3.0, 1.0, 1e-9, 0.0])
    flow = filter_weights(GradientFlow(0.3), s, 5)
    steps = filter_weights(GradientDescent(0.3e-6, 10**6), s, 5)
    np.testing.assert_allclose(steps, flow, rtol=1e-5)
    assert flow[2] == pytest.approx(0.3e-9, rel=EXACT)  # 1 - exp(-t s^2), uncancelled
    assert flow[3] == 0.0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Ridge(0.0), "`penalty`"),
        (GradientFlow(-1.0), "`time`"),
        (GradientDescent(0.0, 3), "`step` is 0"),
        (GradientDescent(3.0, 3), "diverges unless it is below 2"),
    ],
)
def test_bad_rules_are_named(rule, message):
    with pytest.raises(ValueError, match=message):
        filter_weights(rule, [1.0], 5)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit"):
        spectral_root(np.ones((3, 2)), np.ones(2), MinimumNorm())
