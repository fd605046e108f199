"""Existence of logistic estimates: the frontier, and separation of data."""

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats
from tolerances import DERIVATIVE, REFERENCE

from eestim.asymptotics import (
    check_separation,
    existence_frontier,
    frontier_aspect,
    separation,
)
from eestim.asymptotics.existence import _by_programs, _certificate, _signed_rows
from eestim.errors import DataError, SeparationError


def test_published_frontier():
    """SLOE's own test: gamma(0.2) = 4.550."""
    assert existence_frontier(0.2) == pytest.approx(4.5500, abs=6e-5)


def test_no_signal_frontier_is_cover():
    assert frontier_aspect(0.0) == pytest.approx(0.5, rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(gamma=st.floats(0.05, 20.0))
def test_frontier_inverts_and_falls_with_the_signal(gamma):
    kappa = frontier_aspect(gamma)
    assert existence_frontier(kappa) == pytest.approx(gamma, rel=1e-6)
    assert frontier_aspect(1.1 * gamma) < kappa


@pytest.mark.parametrize("gamma", [0.5, 2.0, 4.55])
def test_frontier_matches_adaptive_quadrature(gamma):
    def objective(t):
        def integrand(v):
            a = t * v
            part = (1 + a * a) * stats.norm.cdf(-a) - a * stats.norm.pdf(a)
            return 2 * stats.norm.pdf(v) * special.expit(gamma * v) * part

        return integrate.quad(integrand, -12, 12, epsabs=1e-13)[0]

    expected = optimize.minimize_scalar(objective, bounds=(0, 50), method="bounded").fun
    assert frontier_aspect(gamma) == pytest.approx(expected, rel=REFERENCE)


def test_frontier_with_intercept_matches_simulated_separation():
    """At 0.8 of the frontier no data set separates, at 1.25 of it all do."""
    kappa = frontier_aspect(2.0, 1.0)
    assert kappa < frontier_aspect(2.0)
    rng = np.random.default_rng(0)
    n = 400
    for share, expected in ((0.8, "overlap"), (1.25, "complete")):
        X = rng.standard_normal((n, int(share * kappa * n)))
        y = (rng.random(n) < special.expit(1 + 2 * X[:, 0])).astype(float)
        design = np.column_stack([np.ones(n), X])
        assert separation(design, y).status == expected


@pytest.mark.parametrize("kappa", [0.5, 0.7])
def test_beyond_cover_no_signal_admits_an_estimate(kappa):
    with pytest.raises(SeparationError, match=r"0\.5000"):
        existence_frontier(kappa)


@pytest.mark.parametrize("kappa", [0.0, 1.0, -1.0])
def test_aspect_outside_its_domain_is_refused(kappa):
    with pytest.raises(ValueError, match="`kappa`"):
        existence_frontier(kappa)


def test_negative_signal_is_refused():
    with pytest.raises(ValueError, match="`gamma`"):
        frontier_aspect(-1.0)


@pytest.mark.parametrize(("n", "p"), [(7, 2), (8, 3)])
def test_number_of_separable_labellings_is_covers_count(n, p):
    """n points in general position in R^p: 2 sum_{k<p} C(n-1, k) of 2^n."""
    X = np.random.default_rng(1).standard_normal((n, p))
    count = sum(
        separation(X, np.array(y, float)).status == "complete"
        for y in product((0, 1), repeat=n)
    )
    assert count == 2 * sum(comb(n - 1, k) for k in range(p))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    powers=st.lists(st.integers(-6, 6), min_size=3, max_size=3),
)
def test_verdict_does_not_depend_on_units_and_direction_separates(seed, powers):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((9, 3))
    y = rng.integers(0, 2, 9).astype(float)
    scale = 10.0 ** np.array(powers)
    found, scaled = separation(X, y), separation(X * scale, y)
    assert found.status == scaled.status
    if found.status == "complete":
        assert ((2 * y - 1) * (X * scale @ scaled.direction) > 0).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 6))
def test_newton_certificate_agrees_with_the_linear_program(seed, p):
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(14), rng.integers(-2, 3, (14, p))])
    y = rng.integers(0, 2, 14).astype(float)
    certified = _certificate(_signed_rows(X, y)[0])
    if certified is not None:
        assert certified[0] == _by_programs(*_signed_rows(X, y)).status


@pytest.mark.parametrize(("strength", "status"), [(1.0, "overlap"), (30.0, "complete")])
def test_large_problems_are_decided_without_a_linear_program(strength, status):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1000, 200))
    y = (rng.random(1000) < special.expit(strength * X[:, 0])).astype(float)
    certified = _certificate(_signed_rows(X, y)[0])
    assert certified is not None
    assert certified[0] == separation(X, y).status == status


def test_quasi_complete_separation_is_told_apart():
    x = np.array([0.0, 0.0, 1.0, 1.0])
    X = np.column_stack([np.ones(4), x])
    y = np.array([0.0, 1.0, 1.0, 1.0])
    found = separation(X, y)
    assert (found.status, found.n_separated) == ("quasi-complete", 2)
    with pytest.raises(SeparationError, match="2 of 4 rows"):
        check_separation(X, y)
    check_separation(X, np.array([0.0, 1.0, 0.0, 1.0]))


def test_dependent_columns_are_not_separation():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    X = np.column_stack([np.ones(4), x, 2 * x])
    assert separation(X, [0, 1, 0, 1]).status == "overlap"


def test_overlap_agrees_with_a_converged_likelihood():
    rng = np.random.default_rng(3)
    X = rng.standard_normal((40, 3))
    y = (rng.random(40) < special.expit(X[:, 0])).astype(float)
    assert separation(X, y).status == "overlap"
    fit = optimize.minimize(
        lambda b: np.sum(np.logaddexp(0, X @ b) - y * (X @ b)),
        np.zeros(3),
        tol=DERIVATIVE,
    )
    assert np.abs(fit.x).max() < 10


@pytest.mark.parametrize(
    ("y", "message"), [([0, 1, 2], "zeros and ones"), ([0, 1], "one a row")]
)
def test_bad_outcomes_are_named(y, message):
    with pytest.raises(DataError, match=message):
        separation(np.ones((3, 1)), y)
