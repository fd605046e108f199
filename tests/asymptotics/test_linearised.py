"""The linearised (lazy) regime through the n by n kernel (section 2.5)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import REFERENCE

from eestim.asymptotics import Ridge, linearised_prediction, spectral_root
from eestim.errors import IdentificationError, InterpolationError


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
    np.testing.assert_allclose(found.se, expected, rtol=REFERENCE)


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
