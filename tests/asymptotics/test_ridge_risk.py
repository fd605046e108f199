"""Ridgeless and ridge risk (H3, H4)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize
from tolerances import DERIVATIVE, EXACT, REFERENCE

from eestim.asymptotics import optimal_ridge_penalty, ridge_risk, ridgeless_risk
from eestim.asymptotics.ridge import stieltjes


@pytest.mark.parametrize(
    ("aspect", "risk"), [(0.5, 1.0), (1.5, 3.6667), (2.0, 3.5), (4.0, 4.0833)]
)
def test_ridgeless_risk_matches_table_h3(aspect, risk):
    assert ridgeless_risk(aspect, 5.0, 1.0) == pytest.approx(risk, abs=5e-5)


@pytest.mark.parametrize(
    ("aspect", "penalty", "risk"),
    [(0.5, 0.2, 0.8160), (2.0, 0.2, 3.1554), (2.0, 0.4, 3.1085)],
)
def test_ridge_risk_matches_table_h4(aspect, penalty, risk):
    assert ridge_risk(aspect, 5.0, 1.0, penalty) == pytest.approx(risk, abs=5e-5)


def marchenko_pastur_mean(f, aspect):
    """Return the mean of f over the eigenvalues of X'X/n, atom at zero included."""
    low, high = (1 - aspect**0.5) ** 2, (1 + aspect**0.5) ** 2

    def density(angle):  # s = centre + radius sin(angle) removes the endpoint roots
        s = (low + high) / 2 + (high - low) / 2 * np.sin(angle)
        root = (high - low) / 2 * np.cos(angle)
        return f(s) * root**2 / (2 * np.pi * aspect * s)

    value = integrate.quad(density, -np.pi / 2, np.pi / 2, epsabs=1e-12)[0]
    return value + max(0.0, 1 - 1 / aspect) * f(0.0)


@pytest.mark.parametrize("aspect", [0.5, 2.0])
@pytest.mark.parametrize("penalty", [0.05, 0.4])
def test_ridge_risk_matches_the_spectral_integral(aspect, penalty):
    expected = marchenko_pastur_mean(
        lambda s: (aspect * 1.3 * s + 2.0 * penalty**2) / (s + penalty) ** 2, aspect
    )
    assert ridge_risk(aspect, 2.0, 1.3, penalty) == pytest.approx(
        expected, rel=REFERENCE
    )
    transform = marchenko_pastur_mean(lambda s: 1 / (s + penalty), aspect)
    assert stieltjes(aspect, penalty)[0] == pytest.approx(transform, rel=REFERENCE)


@settings(max_examples=40, deadline=None)
@given(aspect=st.floats(0.1, 8.0), penalty=st.floats(1e-3, 10.0))
def test_derivative_of_the_transform_matches_differences(aspect, penalty):
    h = 1e-5 * penalty
    numeric = (
        stieltjes(aspect, penalty - h)[0] - stieltjes(aspect, penalty + h)[0]
    ) / (2 * h)
    assert stieltjes(aspect, penalty)[1] == pytest.approx(numeric, rel=10 * DERIVATIVE)


@settings(max_examples=30, deadline=None)
@given(
    aspect=st.floats(0.2, 6.0), signal=st.floats(0.5, 5.0), noise=st.floats(0.2, 3.0)
)
def test_optimal_penalty_minimises_the_risk(aspect, signal, noise):
    best = optimal_ridge_penalty(aspect, signal, noise)
    numeric = optimize.minimize_scalar(
        lambda t: ridge_risk(aspect, signal, noise, np.exp(t)),
        bounds=(np.log(best) - 3, np.log(best) + 3),
        method="bounded",
    )
    least = ridge_risk(aspect, signal, noise, best)
    assert least <= numeric.fun * (1 + EXACT)
    assert best == pytest.approx(np.exp(numeric.x), rel=1e-2)


@pytest.mark.parametrize("aspect", [0.5, 3.0])
def test_ridge_tends_to_ridgeless(aspect):
    limit = ridgeless_risk(aspect, 5.0, 1.0)
    assert ridge_risk(aspect, 5.0, 1.0, 0.0) == limit
    assert ridge_risk(aspect, 5.0, 1.0, 1e-8) == pytest.approx(limit, rel=1e-6)


def test_simulated_minimum_norm_risk_agrees():
    """Aspect 2, n = 100: 60 draws, 4 standard errors (and their bias in 1/n)."""
    rng = np.random.default_rng(4)
    errors = []
    for _ in range(60):
        X = rng.standard_normal((100, 200))
        beta = np.zeros(200)
        beta[0] = 5**0.5
        theta = np.linalg.lstsq(X, X @ beta + rng.standard_normal(100), rcond=None)[0]
        errors.append(np.sum((theta - beta) ** 2))
    error = np.std(errors) / np.sqrt(60)
    assert abs(np.mean(errors) - 3.5) <= 4 * error
    assert abs(np.mean(errors) - 3.0) > 4 * error  # negative control


def test_interpolation_threshold_is_infinite():
    assert ridgeless_risk(1.0, 5.0, 1.0) == np.inf
    assert ridgeless_risk(1.0, 5.0, 0.0) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ridgeless_risk(0.0, 1.0, 1.0), "`aspect`"),
        (lambda: ridge_risk(1.0, 1.0, 1.0, -0.1), "`penalty`"),
        (lambda: ridge_risk(1.0, -1.0, 1.0, 0.1), "`signal`"),
        (lambda: optimal_ridge_penalty(1.0, 0.0, 1.0), "`signal` is 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
