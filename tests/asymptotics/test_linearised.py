"""The linearised (lazy) regime through the n by n kernel (section 2.5)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tolerances import EXACT, REFERENCE

from eestim.asymptotics import Ridge, linearised_prediction, spectral_root
from eestim.errors import (
    DataError,
    IdentificationError,
    InferenceError,
    InterpolationError,
)


def problem(seed, n=15, p=40):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((n, p)),
        rng.standard_normal(n),
        rng.standard_normal((3, p)),
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), penalty=st.floats(0.01, 5.0), p=st.sampled_from([5, 40])
)
def test_kernel_form_matches_ridge_in_parameter_space(seed, penalty, p):
    features, y, new = problem(seed, p=p)
    root = spectral_root(features, y, Ridge(penalty))
    found = linearised_prediction(features, y, new, penalty)
    np.testing.assert_allclose(found.value, new @ root.theta, rtol=0, atol=1e-9)
    assert found.df == pytest.approx(root.df, rel=REFERENCE)
    shrunk = np.eye(p) - np.linalg.solve(
        features.T @ features + 15 * penalty * np.eye(p), features.T @ features
    )
    np.testing.assert_allclose(
        found.bias_factor, np.linalg.norm(new @ shrunk, axis=1), rtol=1e-7
    )
    np.testing.assert_allclose(
        found.bias_estimate, -new @ shrunk @ root.theta, rtol=1e-6, atol=1e-9
    )


def test_left_out_residuals_match_refitting():
    features, y, new = problem(0)
    n, penalty = 15, 0.5
    left_out = []
    for i in range(n):
        keep = np.arange(n) != i
        inner = features[keep].T @ features[keep] + n * penalty * np.eye(40)
        left_out.append(
            y[i] - features[i] @ np.linalg.solve(inner, features[keep].T @ y[keep])
        )
    kernel = np.linalg.inv(features @ features.T + n * penalty * np.eye(n))
    weights = new @ features.T @ kernel
    expected = np.sqrt(weights**2 @ np.array(left_out) ** 2)
    found = linearised_prediction(features, y, new, penalty)
    np.testing.assert_allclose(found.noise, expected, rtol=REFERENCE)


def test_unpenalised_regression_gives_the_jackknife_sandwich():
    """P < n, no penalty: se is HC3 of the fitted value, and there is no bias."""
    features, y, new = problem(1, n=30, p=4)
    inverse = np.linalg.inv(features.T @ features)
    e = y - features @ inverse @ features.T @ y
    h = np.einsum("ij,jk,ik->i", features, inverse, features)
    rows = (features * (e / (1 - h))[:, None]) @ inverse @ new.T
    found = linearised_prediction(features, y, new, 0.0)
    np.testing.assert_allclose(found.se, np.sqrt(np.sum(rows**2, 0)), rtol=REFERENCE)
    assert np.abs(found.bias_factor).max() < 1e-10


def test_standard_error_covers_the_noise_but_not_the_bias_by_simulation():
    rng = np.random.default_rng(2)
    features = rng.standard_normal((60, 20))
    delta, new = rng.standard_normal(20), rng.standard_normal((1, 20))
    penalty, reps, draws = 0.3, 300, []
    for _ in range(reps):
        y = features @ delta + rng.standard_normal(60)
        draws.append(linearised_prediction(features, y, new, penalty))
    values = np.array([draw.value[0] for draw in draws])
    mean_variance = np.mean([draw.se[0] ** 2 for draw in draws])
    # left-out residuals contain bias and leverage: conservative, never short
    assert mean_variance / values.var() > 1.0
    bias = abs(values.mean() - (new @ delta)[0])
    assert bias > 8 * values.std() / np.sqrt(reps)  # negative control: there is bias
    assert bias <= draws[0].bias_factor[0] * np.linalg.norm(delta)


def test_interpolation_and_points_outside_the_span_are_refused():
    features, y, new = problem(3)
    with pytest.raises(InterpolationError, match="leverage"):
        linearised_prediction(features, y, features[:1], 0.0)
    with pytest.raises(IdentificationError, match="not estimable without a penalty"):
        linearised_prediction(features, y, new, 0.0)
    with pytest.raises(ValueError, match="do not fit"):
        linearised_prediction(features, y[:3], new, 0.1)


def diagonal():
    """Return three units, each informing on one coordinate of five."""
    s, y = np.array([2.0, 1.0, 0.5]), np.array([1.0, -2.0, 0.5])
    return np.column_stack([np.diag(s), np.zeros((3, 2))]), s, y


def test_share_outside_the_span_and_bias_have_their_closed_form():
    features, s, y = diagonal()
    new = np.array([[1.0, 2.0, 2.0, 0, 0], [3.0, 0, 0, 4.0, 0], [0, 0, 0, 0, 1.0]])
    penalty = 0.1
    gain = s / (s**2 + 3 * penalty)
    found = linearised_prediction(features, y, new, penalty)
    np.testing.assert_allclose(found.outside, [0.0, 0.8, 1.0], rtol=0, atol=EXACT)
    assert found.status == ("shrunk", "non_estimable", "non_estimable")
    assert found.directions == ("", "+1*theta[3]", "+1*theta[4]")
    np.testing.assert_allclose(found.value, new[:, :3] @ (gain * y), rtol=EXACT)
    # a unit alone in its coordinate: its left-out residual is its response
    noise = np.sqrt(new[:, :3] ** 2 @ (gain * y) ** 2)
    np.testing.assert_allclose(found.noise, noise, rtol=EXACT, atol=0)
    np.testing.assert_array_equal(np.isnan(found.se), [False, True, True])
    assert found.se[0] == found.noise[0]
    kept = np.append(1 - gain * s, [1.0, 1.0])  # what shrinkage takes, all outside
    np.testing.assert_allclose(
        found.bias_factor, np.linalg.norm(new * kept, axis=1), rtol=EXACT
    )


def test_an_interval_that_is_none_for_the_target_is_refused():
    features, _, y = diagonal()
    outside = linearised_prediction(features, y, [3.0, 0, 0, 4.0, 0], 0.1)
    with pytest.raises(
        IdentificationError, match=r"8.00e-01 .*\+1\*theta\[3\].*`norm`"
    ):
        outside.interval()
    shrunk = linearised_prediction(features, y, [3.0, 0, 0, 0, 0], 0.1)
    with pytest.raises(InferenceError, match="biased by the penalty"):
        shrunk.interval()
    features, y, new = problem(1, n=30, p=4)
    plain = linearised_prediction(features, y, new, 0.0)
    assert plain.status == ("estimable",) * 3
    half = stats.norm.ppf(0.95) * plain.se
    expected = np.column_stack([plain.value - half, plain.value + half])
    np.testing.assert_allclose(plain.interval(0.9), expected, rtol=1e-9)
    for wrong in ({"level": 1.0}, {"norm": -1.0}, {"norm": np.inf}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            plain.interval(**wrong)


@pytest.mark.parametrize("norm", [0.0, 0.02, 0.5, 3.0, 1e3])
def test_half_width_solves_the_folded_normal_equation(norm):
    """Oracle: the two tails of N(b / s, 1), and both limits in closed form."""
    features, _, y = diagonal()
    found = linearised_prediction(features, y, [3.0, 0, 0, 4.0, 0], 0.1)
    lower, upper = found.interval(0.9, norm=norm)[0]
    assert (lower + upper) / 2 == pytest.approx(found.value[0], abs=1e-9 * upper)
    t, cv = found.bias_factor[0] * norm / found.noise[0], (upper - lower) / 2
    cv = cv / found.noise[0]
    inside = stats.norm.cdf(cv - t) - stats.norm.cdf(-cv - t)
    assert inside == pytest.approx(0.9, abs=1e-9)
    if norm == 0:
        assert cv == pytest.approx(stats.norm.ppf(0.95), rel=1e-9)
    if norm == 1e3:
        assert cv == pytest.approx(t + stats.norm.ppf(0.9), rel=1e-9)


def test_interval_with_a_bound_covers_outside_the_span_by_simulation():
    rng = np.random.default_rng(6)
    n, p, reps = 25, 60, 300
    features = rng.standard_normal((n, p)) / p**0.5
    new = rng.standard_normal(p) / p**0.5
    plain = linearised_prediction(features, np.zeros(n), new, 0.02)
    # the worst change of its norm: along what the smoother misses of the gradient
    kernel = np.linalg.inv(features @ features.T + n * 0.02 * np.eye(n))
    worst = new - features.T @ (kernel @ (features @ new))
    delta = 3.0 * worst / np.linalg.norm(worst)
    assert plain.status == ("non_estimable",)
    hits = naive = 0
    for _ in range(reps):
        y = features @ delta + 0.5 * rng.standard_normal(n)
        found = linearised_prediction(features, y, new, 0.02)
        lower, upper = found.interval(norm=3.0)[0]
        hits += lower <= new @ delta <= upper
        naive += abs(found.value[0] - new @ delta) <= 1.96 * found.noise[0]
    assert hits / reps >= 0.95 - 4 * (0.95 * 0.05 / reps) ** 0.5
    assert naive / reps < 0.5  # the control: a finite standard error is no interval


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_verdict_does_not_depend_on_units_of_theta(seed):
    features, y, new = problem(seed)
    new = np.vstack([new, features[:2].sum(axis=0)])
    units = 10.0 ** np.random.default_rng(seed).integers(-6, 7, 40)
    plain = linearised_prediction(features, y, new, 0.1)
    penalty = 0.1 * units.max() ** 2  # of the size of the largest features
    other = linearised_prediction(features * units, y, new * units, penalty)
    assert [s == "non_estimable" for s in plain.status] == [True] * 3 + [False]
    assert [s == "non_estimable" for s in other.status] == [True] * 3 + [False]


def test_many_parameters_need_no_square_of_them():
    features, y, new = problem(4, n=6, p=200_000)
    found = linearised_prediction(features, y, new, 0.1)
    basis = np.linalg.qr(features.T)[0]
    outside = np.linalg.norm(new - new @ basis @ basis.T, axis=1)
    np.testing.assert_allclose(
        found.outside, outside / np.linalg.norm(new, axis=1), rtol=1e-9
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"new_features": [[np.nan] * 40]}, DataError, "`new_features` has missing"),
        ({"features": np.full((15, 40), np.inf)}, DataError, "`features`"),
        ({"response": np.full(15, np.nan)}, DataError, "`response`"),
        ({"penalty": np.nan}, ValueError, "finite penalty"),
        ({"penalty": np.inf}, ValueError, "finite penalty"),
        ({"penalty": -0.1}, ValueError, "finite penalty"),
        ({"new_features": np.ones((1, 1, 40))}, ValueError, "do not fit"),
        ({"features": np.ones((0, 40)), "response": np.ones(0)}, ValueError, "n >= 1"),
    ],
)
def test_bad_input_is_named(change, error, message):
    features, y, new = problem(0)
    given = {"features": features, "response": y, "new_features": new, "penalty": 0.1}
    with pytest.raises(error, match=message):
        linearised_prediction(**(given | change))


def test_features_that_vanish_inform_on_nothing():
    found = linearised_prediction(np.zeros((3, 2)), np.ones(3), [1.0, 0.0], 0.1)
    assert (found.status, found.value[0], found.outside[0]) == (
        ("non_estimable",), 0.0, 1.0,
    )  # fmt: skip
    assert np.isnan(found.se[0])
