"""Inputs on which other packages are silently wrong: here right, or refused.

Each test names the package and what it does with the same input (versions and figures
are those measured when the tests were written: Delicatessen 4.3, geex 1.1.1,
statsmodels 0.15, linearmodels 7.1).
"""

import numpy as np
import pytest
from tolerances import REFERENCE

import eestim as ee
from eestim.errors import (
    ConvergenceError,
    EestimError,
    IdentificationError,
    InferenceError,
    SeparationError,
)


def logistic(t, data):  # the argument need not be called theta (Delicatessen, geex)
    mu = 1 / (1 + np.exp(-(data["X"] @ t)))
    return (data["y"] - mu)[:, None] * data["X"]


def simulated(n=3000, seed=1):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    y = (rng.random(n) < 1 / (1 + np.exp(-(0.2 + z @ [0.5, -0.4])))).astype(float)
    return y, z


def test_income_in_dollars_from_a_start_of_zero():
    """Delicatessen `lm`: 5000 evaluations and an error; `newton`: 1e-5 off the root."""
    y, z = simulated()
    X = np.column_stack([np.ones(len(y)), 45 + 12 * z[:, 0], 6e4 + 2e4 * z[:, 1]])
    fit = ee.estimate(ee.equation(logistic, {"y": y, "X": X}, [0, 0, 0]))
    oracle = ee.estimate(ee.glm(y, X, family="binomial"))
    np.testing.assert_allclose(fit.theta, oracle.theta, rtol=1e-7)
    np.testing.assert_allclose(fit.se, oracle.se, rtol=1e-7)


@pytest.mark.parametrize(
    ("mean", "sd"), [(0.0, 1.0), (50.0, 1.0), (0.0, 1e4), (2e3, 3)]
)
def test_numerical_derivative_at_any_scale(mean, sd):
    """Delicatessen: standard errors 6.7e-4 off at mean 50, 2.2e-3 at sd 1e4."""
    y, z = simulated()
    X = np.column_stack([np.ones(len(y)), mean + sd * z[:, 0]])
    fit = ee.estimate(ee.equation(logistic, {"y": y, "X": X}, [0, 0]))
    oracle = ee.estimate(ee.glm(y, X, family="binomial"))
    np.testing.assert_allclose(fit.se, oracle.se, rtol=REFERENCE)


def test_true_theta_of_badly_scaled_covariates_handed_over():
    """Delicatessen with allow_pinv: standard errors 98 to 100% too small."""
    y, z = simulated()
    X = np.column_stack([np.ones(len(y)), z[:, 0], 5e7 + 1e6 * z[:, 1]])
    oracle = ee.estimate(ee.glm(y, X, family="binomial"))
    given = ee.estimate(
        ee.equation(logistic, {"y": y, "X": X}, [0, 0, 0]), root=oracle.theta
    )
    np.testing.assert_allclose(given.se, oracle.se, rtol=1e-7)


def test_collinear_and_more_parameters_than_units():
    """Delicatessen: an arbitrary solution with se 0.0087; at p > n a se of 9e-17."""
    y, z = simulated(200)
    X = np.column_stack([np.ones(200), z[:, 0], 2 * z[:, 0]])
    with pytest.raises(IdentificationError):
        ee.estimate(ee.equation(logistic, {"y": y, "X": X}, [0, 0, 0]))
    rng = np.random.default_rng(0)
    wide = {"y": rng.normal(size=40), "X": rng.normal(size=(40, 60))}
    residual = ee.equation(
        lambda t, d: (d["y"] - d["X"] @ t)[:, None] * d["X"], wide, np.zeros(60)
    )
    with pytest.raises(EestimError):
        ee.estimate(residual)


def test_separation_by_any_route():
    """Delicatessen `newton`: slope 34786, standard error 0."""
    _, z = simulated(300)
    X = np.column_stack([np.ones(300), z[:, 0]])
    split = (z[:, 0] > 0.1).astype(float)
    with pytest.raises(SeparationError):
        ee.estimate(ee.glm(split, X, family="binomial"))
    with pytest.raises(EestimError):
        ee.estimate(ee.equation(logistic, {"y": split, "X": X}, [0, 0]))


def test_no_convergence_is_not_passed_on():
    """geex: multiroot stops short without a word, then solve() fails."""
    y = np.random.default_rng(3).normal(5, 2, 100)

    def psi(theta, data):
        mean, variance, sd, log = theta
        centred = data["y"] - mean
        one = np.ones(len(centred))
        columns = [centred, centred**2 - variance, (np.sqrt(variance) - sd) * one]
        return np.column_stack([*columns, (np.log(variance) - log) * one])

    fit = ee.estimate(ee.equation(psi, {"y": y}, [1.0, 2.0, 1.0, 1.0]))
    np.testing.assert_allclose(
        fit.theta, [y.mean(), y.var(), y.std(), np.log(y.var())], rtol=1e-9
    )


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_hc_kinds_of_a_glm_differ_from_hc0(kind):
    """statsmodels GLM: HC1, HC2 and HC3 return HC0 to all digits."""
    y, z = simulated(80)
    fit = ee.estimate(ee.glm(y, np.column_stack([np.ones(80), z]), family="binomial"))
    assert np.all(fit.with_covariance(ee.HC(kind)).se / fit.se > 1.005)


def test_every_kernel_has_a_name():
    """statsmodels: kernel 'parzen' is a KeyError."""
    y, z = simulated(100)
    equation = ee.ols(y + z[:, 0], np.column_stack([np.ones(100), z]))
    for kernel in ("bartlett", "parzen", "quadratic-spectral"):
        fit = ee.estimate(equation, ee.HAC(kernel, 3.0))
        assert np.isfinite(fit.se).all()


def test_an_indefinite_two_way_covariance_is_not_passed_on():
    """statsmodels: eigenvalue -0.0012 and a square root of it, silently."""
    rng = np.random.default_rng(12)
    refused = 0
    for _ in range(60):
        x, y = rng.normal(size=(2, 24))
        a, b = rng.integers(0, 3, 24), rng.integers(0, 4, 24)
        if len(set(a)) < 2 or len(set(b)) < 2:
            continue
        equation = ee.ols(y, np.column_stack([np.ones(24), x]))
        try:
            fit = ee.estimate(equation, ee.Clustered(a, b))
        except InferenceError:
            refused += 1
            repaired = ee.estimate(equation, ee.Clustered(a, b, repair_psd=True))
            assert np.linalg.eigvalsh(repaired.spread.matrix)[0] >= -1e-15
            continue
        assert (np.diag(fit.spread.matrix) > 0).all()
    assert refused > 0  # else this test checks nothing


def test_clusters_state_their_factor():
    """linearmodels: clustered errors have no G/(G-1) by default, and do not say so."""
    y, z = simulated(200)
    g = np.arange(200) % 10
    fit = ee.estimate(
        ee.ols(y, np.column_stack([np.ones(200), z])), ee.Clustered(g, kind="CR1S")
    )
    assert "G/(G-1)*(n-1)/(n-k)" in fit.rule
    assert "10 clusters" in fit.rule


def test_one_cluster_is_refused():
    """Summing psi over one cluster gives zero, hence a standard error of zero."""
    y, z = simulated(100)
    with pytest.raises(InferenceError, match="one cluster"):
        ee.estimate(
            ee.ols(y, np.column_stack([np.ones(100), z])), ee.Clustered(np.zeros(100))
        )


def test_a_start_outside_the_domain_is_an_error_not_a_number():
    y = np.array([1.0, 2.0, 3.0])
    equation = ee.equation(
        lambda t, d: (np.sqrt(t[0]) - d["y"])[:, None], {"y": y}, [1.0]
    )
    np.testing.assert_allclose(ee.estimate(equation).theta, 4.0, rtol=1e-9)
    with pytest.raises((EestimError, ConvergenceError)):
        ee.estimate(equation, start=[-1.0])
