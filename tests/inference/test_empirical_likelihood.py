"""Empirical-likelihood intervals against statsmodels, formulas and simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

import eestim as ee
from eestim.errors import InferenceError
from eestim.inference._dual import empirical, euclidean
from eestim.inference.empirical_likelihood import EmpiricalLikelihood
from eestim.models.quantiles import quantile

SETTINGS = settings(deadline=None, max_examples=8)
Q95 = stats.chi2.ppf(0.95, 1)


def ends(frame, row=0):
    return frame.iloc[row][["lower", "upper"]].to_numpy(dtype=float)


def ratio_of_a_mean(y, c):
    """Minus twice the log ratio, its multiplier by a bracketed root."""
    d = y - c
    if not d.min() < 0 < d.max():
        return np.inf
    low, high = -1 / d.max() * (1 - 1e-9), -1 / d.min() * (1 - 1e-9)
    multiplier = optimize.brentq(lambda t: np.sum(d / (1 + t * d)), low, high)
    return 2 * np.sum(np.log1p(multiplier * d))


@given(seed=st.integers(0, 10**6), n=st.integers(3, 60), c=st.floats(-1.0, 2.0))
@SETTINGS
def test_the_dual_equals_a_bracketed_root(seed, n, c):
    y = np.random.default_rng(seed).exponential(size=n)
    ours, theirs = empirical((y - c)[:, None]).value, ratio_of_a_mean(y, c)
    assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-12)


def test_weights_of_the_dual_make_the_mean_of_psi_zero(rng):
    psi = rng.normal(size=(40, 3)) + 0.2
    found = empirical(psi)
    assert np.max(np.abs(psi.T @ found.weights)) < 1e-9
    assert found.weights.mean() == pytest.approx(1.0, rel=1e-10)
    assert (found.weights > 0).all()


@given(seed=st.integers(0, 10**6))
@SETTINGS
def test_duals_do_not_change_when_psi_is_multiplied(seed):
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=(50, 2)) + 0.2
    C = rng.normal(size=(2, 2)) + 3 * np.eye(2)
    for dual in (empirical, euclidean):
        assert dual(psi @ C).value == pytest.approx(dual(psi).value, rel=1e-9)


def test_chi2_interval_of_a_mean_equals_that_of_statsmodels():
    from statsmodels.emplike.api import DescStat

    y = np.random.default_rng(0).exponential(size=30)
    fit = ee.estimate(ee.mean(y))
    found = ends(fit.interval(method=EmpiricalLikelihood("chi2")))
    np.testing.assert_allclose(found, DescStat(y).ci_mean(), rtol=1e-6)


@pytest.mark.parametrize("calibration", ["F", "chi2"])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_bounds_of_a_mean_have_the_critical_ratio(calibration, level):
    y = np.random.default_rng(1).exponential(size=25)
    fit = ee.estimate(ee.mean(y))
    law = stats.f(1, 24) if calibration == "F" else stats.chi2(1)
    for bound in ends(fit.interval(level, EmpiricalLikelihood(calibration))):
        assert ratio_of_a_mean(y, bound) == pytest.approx(law.ppf(level), rel=1e-7)


def test_regression_bounds_have_the_profiled_ratio_of_statsmodels():
    import statsmodels.api as sm

    rng = np.random.default_rng(2)
    x = rng.normal(size=40)
    y = 1 + 0.5 * x + rng.standard_t(4, 40)
    fit = ee.estimate(ee.ols(y, np.column_stack([np.ones(40), x])))
    theirs = sm.OLS(y, sm.add_constant(x)).fit()
    for bound in ends(fit.interval(method=EmpiricalLikelihood("chi2")), 1):
        ratio = theirs.el_test([bound], [1])[0]
        assert float(np.ravel(ratio)[0]) == pytest.approx(Q95, rel=1e-4)


def test_bounds_of_a_glm_equal_a_brute_force_profile():
    rng = np.random.default_rng(3)
    X = np.column_stack([np.ones(50), rng.normal(size=50)])
    y = rng.poisson(np.exp(0.3 + 0.4 * X[:, 1])).astype(float)
    fit = ee.estimate(ee.glm(y, X, family="poisson"))
    for bound in ends(fit.interval(method=EmpiricalLikelihood("chi2")), 1):
        held = optimize.minimize_scalar(
            lambda b, c=bound: empirical(fit.equation.psi(np.array([b, c]))).value,
            bracket=(fit.theta[0] - 0.1, fit.theta[0] + 0.1),
            tol=1e-12,
        )
        assert held.fun == pytest.approx(Q95, rel=1e-6)


def test_intervals_are_invariant_to_a_smooth_change_of_parameter():
    y = np.random.default_rng(4).exponential(size=40)
    mean = ee.estimate(ee.mean(y))

    def psi(theta, data):
        return (data["y"] - np.exp(theta[0]))[:, None]

    log = ee.estimate(ee.equation(psi, {"y": y}, [0.0]))
    one = ends(mean.interval(method=EmpiricalLikelihood()))
    two = np.exp(ends(log.interval(method=EmpiricalLikelihood())))
    np.testing.assert_allclose(two, one, rtol=1e-7)


def test_intervals_stay_within_the_data_and_are_skewed_as_they_are():
    y = np.array([0.1, 0.2, 0.2, 0.3, 0.5, 0.9, 4.0])
    fit = ee.estimate(ee.mean(y))
    lower, upper = ends(fit.interval(0.99, EmpiricalLikelihood()))
    assert y.min() < lower < upper < y.max()
    assert upper - y.mean() > y.mean() - lower


def test_the_interval_of_a_median_is_that_of_binomial_likelihood():
    y = np.random.default_rng(5).normal(size=60)
    fit = ee.estimate(quantile(y))
    lower, upper = ends(fit.interval(method=EmpiricalLikelihood("chi2")))

    def ratio(share):
        return (
            2 * 60 * (share * np.log(2 * share) + (1 - share) * np.log(2 - 2 * share))
        )

    kept = [k for k in range(1, 60) if ratio(k / 60) <= Q95]
    ordered = np.sort(y)  # k of 60 lie at or below values from the k-th on
    assert lower == pytest.approx(ordered[min(kept) - 1], rel=1e-7)
    assert upper == pytest.approx(ordered[max(kept)], rel=1e-7)


def test_coverage_of_a_skewed_mean_is_nearest_to_nominal_with_f():
    """Exponential data, n = 30: .936, .926 and .915 over 36,000 other replications.

    The theory notes have .944, .931 and .915, each within .005.
    """
    rng = np.random.default_rng(60)
    n, reps = 30, 3000
    F, q = stats.f(1, n - 1).ppf(0.95), Q95
    hits = np.zeros(3)
    for _ in range(reps):
        y = rng.exponential(size=n)
        ratio = empirical((y - 1.0)[:, None]).value
        wald = (y.mean() - 1.0) ** 2 / (y.var() / n)
        hits += [ratio <= F, ratio <= q, wald <= q]
    coverage, noise = hits / reps, np.sqrt(0.95 * 0.05 / reps)
    assert np.max(np.abs(coverage - [0.936, 0.926, 0.915])) < 4 * noise
    assert coverage[0] > coverage[1] > coverage[2]
    assert coverage[2] < 0.95 - 4 * noise  # negative control


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (
            lambda: ee.estimate(
                ee.mean([1.0, 2.0, 4.0, 5.0]), ee.Clustered(np.array([0, 0, 1, 1]))
            ),
            "`units=`",
        ),
        (
            lambda: ee.estimate(
                quantile(
                    "y ~ x",
                    pd.DataFrame(
                        {"y": np.arange(20.0) ** 1.3 % 7, "x": np.arange(20.0)}
                    ),
                )
            ),
            "jumps",
        ),
    ],
)
def test_fits_without_an_empirical_likelihood_are_refused(build, match):
    with pytest.raises(InferenceError, match=match):
        build().interval(method=EmpiricalLikelihood())


def test_calibrations_and_levels_are_checked():
    with pytest.raises(ValueError, match="`calibration` must be"):
        EmpiricalLikelihood("Bartlett")
    with pytest.raises(ValueError, match="`level` must lie"):
        ee.estimate(ee.mean([1.0, 2.0, 4.0])).interval(0.0, EmpiricalLikelihood())
