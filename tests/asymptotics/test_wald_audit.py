"""Wald tests on a rank and root invariance: oracles, units, and what is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from eestim.asymptotics import estimable_wald, point_wald, root_invariance
from eestim.errors import DataError, IdentificationError, InferenceError


def singular(seed, p, rank):
    rng = np.random.default_rng(seed)
    B = rng.standard_normal((p, rank))
    return B @ B.T, B, rng


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), p=st.integers(1, 6), rank=st.integers(1, 6))
def test_point_wald_is_the_moore_penrose_form(seed, p, rank):
    V, B, rng = singular(seed, p, min(rank, p))
    d = B @ rng.standard_normal(min(rank, p))  # of the nearest root: in the range of V
    test = point_wald(d + 1.0, np.ones(p), V)
    assert test.df == min(rank, p)
    exact = d @ np.linalg.pinv(V, rcond=1e-11, hermitian=True) @ d
    assert test.statistic == pytest.approx(exact, rel=1e-5)
    assert test.p_value == pytest.approx(stats.chi2.sf(exact, test.df), rel=1e-3)
    kernel = np.linalg.svd(V)[0][:, min(rank, p) :]
    moved = d + 3.0 * kernel.sum(axis=1)
    other = point_wald(moved, np.zeros(p), V, flat=True)
    assert other.statistic == pytest.approx(exact, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    powers=st.lists(st.integers(-9, 9), min_size=4, max_size=4),
)
def test_point_wald_of_a_regular_covariance_does_not_depend_on_units(seed, powers):
    V, _, rng = singular(seed, 4, 4)
    V = V + np.eye(4)
    units, d = 10.0 ** np.array(powers), rng.standard_normal(4)
    test = point_wald(d * units, np.zeros(4), units[:, None] * V * units)
    assert test.df == 4
    assert test.statistic == pytest.approx(d @ np.linalg.solve(V, d), rel=1e-7)


def test_a_root_far_along_a_bent_orbit_is_refused_and_the_nearest_is_not():
    """y = abx, ab = 1 in truth and in the sample: W of (2, 1/2) would be 50."""

    def covariance(a, b):
        g = np.array([b, a])
        return 0.005 * np.outer(g, g) / (g @ g) ** 2

    far = np.array([2.0, 0.5])
    with pytest.raises(ValueError, match="not the root nearest"):
        point_wald(far, [1.0, 1.0], covariance(*far))
    wrong = point_wald(far, [1.0, 1.0], covariance(*far), flat=True)
    assert wrong.p_value < 1e-9  # the control: what refusing prevents
    for product in (1.0, 1.1):
        a = optimize.brentq(lambda a, h=product: (a - 1) - (h / a - 1) * h / a**2, 1, 2)
        near = np.array([a, product / a])
        test = point_wald(near, [1.0, 1.0], covariance(*near))
        # to first order that of the product, which is identified
        assert test.statistic == pytest.approx((product - 1) ** 2 / 0.005, rel=0.1)


@pytest.mark.parametrize(
    ("theta", "theta_0", "V", "error", "message"),
    [
        ([1.0, 1.0], [0.0], np.eye(2), ValueError, "P by P"),
        ([1.0, 1.0], [0.0, 0.0], np.eye(3), ValueError, "P by P"),
        ([np.nan, 1.0], [0.0, 0.0], np.eye(2), DataError, "`theta` has missing"),
        ([1.0, 1.0], [0.0, np.inf], np.eye(2), DataError, "`theta_0` has infinite"),
        ([1.0, 1.0], [0.0, 0.0], np.eye(2) * np.nan, DataError, "`covariance`"),
        ([1.0, 1.0], [0.0, 0.0], [[1.0, 2.0], [0.0, 5.0]], ValueError, "symmetric"),
        ([1.0, 1.0], [0.0, 0.0], np.diag([1.0, -1.0]), ValueError, "semidefinite"),
        ([1.0, 1.0], [0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], ValueError, "semidefinite"),
        ([1.0, 1.0], [0.0, 0.0], np.zeros((2, 2)), InferenceError, "is zero"),
        ([], [], np.zeros((0, 0)), ValueError, "P by P"),
    ],
)
def test_bad_input_of_a_point_test_is_named(theta, theta_0, V, error, message):
    with pytest.raises(error, match=message):
        point_wald(theta, theta_0, V)


def test_a_covariance_whose_rank_is_not_clear_is_refused_unless_chosen():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    V = (turn * [1.0, 0.5, 2e-14]) @ turn.T
    V = (V + V.T) / 2
    with pytest.raises(IdentificationError, match="ambiguous rank"):
        point_wald(turn[:, 0], np.zeros(3), V)
    test = point_wald(turn[:, 0], np.zeros(3), V, rank=2)
    assert (test.df, test.statistic) == (2, pytest.approx(1.0, rel=1e-6))


def test_a_difference_that_is_not_finite_has_no_wald_test():
    with pytest.raises(DataError, match="`difference` has missing"):
        estimable_wald(np.eye(1), np.eye(1), [[1.0]], [np.nan], 5)


def test_root_invariance_of_the_closed_form_of_theory():
    """psi = (y - mu)(1 + kappa x): sd 1, 1.1180, 2.2361 at kappa 0, .5, 2."""
    sd = np.sqrt(1 + np.array([0.0, 0.5, 2.0]) ** 2)
    np.testing.assert_allclose(sd, [1.0, 1.1180, 2.2361], atol=5e-5)
    found = root_invariance([3.0, 3.0, 3.0], sd)
    assert found.status == "se varies (root-dependent)"
    assert found.se_spread == pytest.approx((sd[2] - sd[0]) / sd[1], rel=1e-12)
    moved = root_invariance([3.0, 3.0, 3.0 + 1e-3], np.ones(3))
    assert moved.status == "h varies (not estimable)"
    assert moved.value_spread == pytest.approx(1e-3, rel=1e-9)
    assert root_invariance([3.0, 3.0, 3.0 + 1e-7], np.ones(3)).status == "invariant"


@pytest.mark.parametrize(
    ("h", "se", "rtol", "error", "message"),
    [
        ([1, np.nan, 1], [1, 1, 1], 1e-6, DataError, "`values` has missing"),
        ([1, np.inf, 1], [1, 1, 1], 1e-6, DataError, "`values` has infinite"),
        ([1, 1, 1], [1, np.nan, 1], 1e-6, DataError, "`standard_errors` has missing"),
        ([1, 1, 1], [1, np.inf, 1], 1e-6, DataError, "`standard_errors` has infinite"),
        ([1, 2, 1], [1, 1, 1], np.nan, ValueError, "`rtol`"),
        ([1, 2, 1], [1, 1, 1], np.inf, ValueError, "`rtol`"),
        ([1, 1, 1], [1, 1, 1], -1.0, ValueError, "`rtol`"),
        ([1, 1], [1, 1], 1e-6, ValueError, "three roots"),
        ([1, 1, 1], [1, 1], 1e-6, ValueError, "three roots"),
        ([1, 1, 1], [1, 1, -1], 1e-6, ValueError, "positive"),
    ],
)
def test_values_that_are_none_are_never_called_invariant(h, se, rtol, error, message):
    with pytest.raises(error, match=message):
        root_invariance(h, se, rtol=rtol)
