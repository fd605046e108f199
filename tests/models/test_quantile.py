"""Quantiles and quantile regression: statsmodels, closed forms, simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import (
    CapabilityError,
    DataError,
    IdentificationError,
    InferenceError,
    InterpolationError,
)
from eestim.inference.profile import ScoreInverted
from eestim.models.quantiles import bofinger, lad, quantile, weighted_quantile

SETTINGS = settings(deadline=None, max_examples=15)


def stackloss(refcases):
    data = refcases.frame("stackloss.csv")
    X = np.column_stack(
        [np.ones(len(data)), data[["Air.Flow", "Water.Temp", "Acid.Conc."]]]
    )
    return data["stack.loss"].to_numpy(float), X


@pytest.fixture
def sample():
    rng = np.random.default_rng(12)
    X = np.column_stack([np.ones(300), rng.normal(size=(300, 2))])
    y = X @ [1.0, 2.0, 0.0] + (0.5 + np.abs(X[:, 1])) * rng.standard_t(4, 300)
    return y, X


def check_loss(y, X, theta, tau, w=1.0):
    e = y - X @ theta
    return np.sum(w * e * (tau - (e < 0)))


# -------------------------------------------------------------------- statsmodels


def test_common_density_covariance_equals_statsmodels_at_its_estimate(refcases):
    case = refcases.case("sm_quantreg_stackloss")
    y, X = stackloss(refcases)
    fit = ee.estimate(quantile(y, X, 0.5, density="common"), root=case["estimate"])
    V = np.array(case["vcov"])
    errors = np.sqrt(np.diag(V))
    gap = np.abs(fit.spread.matrix - V) / np.outer(errors, errors)
    assert gap.max() < REFERENCE


def test_estimate_and_errors_equal_statsmodels_as_far_as_it_iterates(refcases):
    """It reweights to 1e-6; the linear program is exact, and lower in loss."""
    case = refcases.case("sm_quantreg_stackloss")
    y, X = stackloss(refcases)
    fit = ee.estimate(lad(y, X, density="common"))
    theirs, errors = np.array(case["estimate"]), np.array(case["se"])
    assert np.max(np.abs(fit.theta - theirs) / errors) < 2e-6
    np.testing.assert_allclose(fit.se, errors, rtol=2e-6)
    assert check_loss(y, X, fit.theta, 0.5) <= check_loss(y, X, theirs, 0.5)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.8])
def test_errors_equal_those_of_statsmodels_at_other_quantiles(sample, tau):
    """Up to the units on the plane, whose sign there is that of a rounding error."""
    import statsmodels.api as sm

    y, X = sample
    theirs = sm.QuantReg(y, X).fit(q=tau, p_tol=1e-10, max_iter=5000)
    ours = ee.estimate(quantile(y, X, tau, density="common"))
    assert np.max(np.abs(ours.theta - theirs.params) / theirs.bse) < 1e-4
    width = ours.equation.kernel_width(ours.theta)
    assert width == pytest.approx(theirs.bandwidth, rel=1e-4)
    weight = abs(tau - 0.5) * 2 * 3 / 300 / (tau * (1 - tau))
    np.testing.assert_allclose(ours.se, theirs.bse, rtol=1e-5 + 2 * weight)


# -------------------------------------------------------------------------- solving


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(12, 80),
    p=st.integers(1, 4),
    tau=st.floats(0.05, 0.95),
)
@SETTINGS
def test_solutions_minimise_the_check_loss(seed, n, p, tau):
    """Optimality by the subgradient, and no random neighbour is lower."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    y = X.sum(axis=1) + rng.standard_t(3, n)
    equation = quantile(y, X, tau)
    theta = equation.start
    assert np.max(np.abs(equation.mean_psi(theta))) < 1e-14  # rounding of tau
    lowest = check_loss(y, X, theta, tau)
    for scale in (1e-6, 1e-3, 1.0):
        for step in rng.normal(size=(20, p)) * scale:
            assert check_loss(y, X, theta + step, tau) >= lowest * (1 - 1e-12)


@pytest.mark.parametrize("start", [None, [0, 0, 0], [50.0, -3.0, 7.0]])
def test_any_start_leads_to_the_same_root(sample, start):
    fit = ee.estimate(quantile(*sample, 0.3), start=start)
    wanted = quantile(*sample, 0.3).start
    np.testing.assert_allclose(fit.theta, wanted, rtol=1e-12)
    assert fit.root.residual == 0.0


@given(seed=st.integers(0, 10**6), n=st.integers(4, 40), tau=st.floats(0.05, 0.95))
@SETTINGS
def test_a_single_quantile_is_that_of_numpy(seed, n, tau):
    y = np.random.default_rng(seed).normal(size=n)
    wanted = np.quantile(y, tau, method="averaged_inverted_cdf")
    assert quantile(y, tau=tau).start[0] == wanted


def test_weighted_quantiles_equal_those_of_the_data_written_out(rng):
    y, w = rng.normal(size=30), rng.integers(0, 5, 30)
    for tau in (0.25, 0.5, 0.9):
        wanted = np.quantile(np.repeat(y, w), tau, method="averaged_inverted_cdf")
        assert weighted_quantile(y, w.astype(float), tau) == wanted


def test_regression_on_a_group_indicator_gives_the_quantile_of_each_group(rng):
    y, g = rng.normal(size=101), (np.arange(101) % 2).astype(float)
    X = np.column_stack([1 - g, g])
    theta = quantile(y, X, 0.31).start  # one solution for 51 and for 50
    wanted = [np.quantile(y[g == k], 0.31, method="inverted_cdf") for k in (0, 1)]
    np.testing.assert_allclose(theta, wanted, rtol=1e-12)


def test_ways_of_giving_the_data_agree(sample):
    y, X = sample
    table = pd.DataFrame({"y": y, "x": X[:, 1], "z": X[:, 2]})
    formula, arrays = quantile("y ~ x + z", table, 0.7), quantile(y, X, 0.7)
    np.testing.assert_allclose(formula.start, arrays.start, rtol=1e-12)
    assert formula.names == ("Intercept", "x", "z")
    one, two = quantile("y", table, 0.7), quantile(y, tau=0.7)
    assert one.start == two.start
    assert one.names == two.names == ("quantile",)
    assert "tau 0.7; 300 units" in repr(one)


# --------------------------------------------------------------------- A and errors


def powell(y, X, theta, tau):
    """Powell's matrix by a loop over units, with Hall and Sheather's bandwidth."""
    n, z = len(y), stats.norm.ppf(tau)
    core = 1.5 * stats.norm.pdf(z) ** 2 / (2 * z**2 + 1)
    h = n ** (-1 / 3) * stats.norm.ppf(0.975) ** (2 / 3) * core ** (1 / 3)
    e = y - X @ theta
    iqr = np.percentile(e, 75) - np.percentile(e, 25)
    width = min(y.std(), iqr / 1.34) * (
        stats.norm.ppf(tau + h) - stats.norm.ppf(tau - h)
    )
    total = np.zeros((X.shape[1],) * 2)
    for x, residual in zip(X, e, strict=True):
        if abs(residual) < width:
            total += 0.75 * (1 - (residual / width) ** 2) / width * np.outer(x, x)
    return total / n


@pytest.mark.parametrize("tau", [0.2, 0.5])
def test_sensitivity_equals_powells_matrix_summed_over_units(sample, tau):
    y, X = sample
    equation = quantile(y, X, tau)
    theta = equation.start
    wanted = powell(y, X, theta, tau)
    np.testing.assert_allclose(equation.sensitivity(theta), wanted, rtol=1e-9)
    each = equation.unit_sensitivity(theta)
    np.testing.assert_allclose(each.mean(axis=0), wanted, rtol=1e-9)


def test_the_error_of_a_median_is_that_of_the_density():
    """Normal data, n = 40,000: se = sqrt(pi / 2n), within the noise of a kernel."""
    y = np.random.default_rng(1).normal(size=40_000)
    for kernel in ("epanechnikov", "uniform", "gaussian"):
        fit = ee.estimate(quantile(y, kernel=kernel))
        assert fit.se.iloc[0] == pytest.approx(np.sqrt(np.pi / 2 / 40_000), rel=0.05)


def test_coverage_under_heteroskedasticity_needs_powells_density():
    rng = np.random.default_rng(2)
    reps, n, hits = 250, 300, np.zeros(2)
    for _ in range(reps):
        x = rng.uniform(0, 2, n)
        X = np.column_stack([np.ones(n), x])
        y = x + (0.1 + x**2) * rng.normal(size=n)
        for k, density in enumerate(("powell", "common")):
            fit = ee.estimate(lad(y, X, density=density))
            hits[k] += abs(fit.theta[1] - 1.0) <= 1.96 * fit.se.iloc[1]
    coverage, noise = hits / reps, np.sqrt(0.95 * 0.05 / reps)
    assert abs(coverage[0] - 0.95) < 4 * noise
    assert coverage[1] < 0.95 - 4 * noise  # negative control


def test_errors_are_equivariant_to_location_scale_and_units_of_covariates(sample):
    y, X = sample
    fit = ee.estimate(quantile(y, X, 0.4))
    moved = ee.estimate(quantile(3.0 - 100.0 * y, X, 0.6))  # reflection: tau -> 1 - tau
    np.testing.assert_allclose(moved.theta[1:], -100 * fit.theta[1:], rtol=1e-9)
    np.testing.assert_allclose(moved.se, 100 * fit.se, rtol=1e-7)
    scaled = ee.estimate(quantile(y, X * [1.0, 1e6, 1e-6], 0.4))
    np.testing.assert_allclose(scaled.se * [1.0, 1e6, 1e-6], fit.se, rtol=1e-8)


def test_frequencies_equal_the_data_written_out(sample):
    y, X = sample
    w = np.random.default_rng(3).integers(1, 4, len(y))
    counted = ee.estimate(quantile(y, X, 0.5, weights=ee.Frequency(w)))
    whole = ee.estimate(quantile(np.repeat(y, w), np.repeat(X, w, axis=0), 0.5))
    np.testing.assert_allclose(counted.theta, whole.theta, rtol=1e-9)
    np.testing.assert_allclose(counted.se, whole.se, rtol=1e-8)


def test_sampling_weights_have_no_scale(sample):
    y, X = sample
    w = np.random.default_rng(3).uniform(0.5, 2.0, len(y))
    one = ee.estimate(quantile(y, X, 0.5, weights=ee.Sampling(w)))
    two = ee.estimate(quantile(y, X, 0.5, weights=ee.Sampling(7 * w)))
    np.testing.assert_allclose(one.theta, two.theta, rtol=1e-9)
    np.testing.assert_allclose(one.se, two.se, rtol=1e-9)


def test_clusters_and_bootstraps_take_quantile_regressions(sample):
    y, X = sample
    groups = np.arange(len(y)) // 5
    fit = ee.estimate(quantile(y, X, 0.5), ee.Clustered(groups))
    psi = fit.equation.psi(fit.theta)
    sums = np.add.reduceat(psi, np.arange(0, len(y), 5))
    A = fit.equation.sensitivity(fit.theta)
    V = np.linalg.solve(A, np.linalg.solve(A, sums.T @ sums).T).T / len(y) ** 2
    np.testing.assert_allclose(fit.spread.matrix, V, rtol=1e-9)
    drawn = fit.with_covariance(ee.Bootstrap("pairs", draws=199, rng=1))
    plain = fit.with_covariance(ee.HC(0))
    assert np.max(np.abs(drawn.se / plain.se - 1)) < 0.35


def test_prediction_is_the_fitted_plane(sample):
    y, X = sample
    fit = ee.estimate(quantile(y, X, 0.5))
    rows = fit.predict(X[:3])
    np.testing.assert_allclose(rows["estimate"], X[:3] @ fit.theta, rtol=EXACT)


def test_contributions_have_their_expected_size_on_the_plane(sample):
    y, X = sample
    tau = 0.2
    equation = quantile(y, X, tau)
    theta = equation.start
    psi = equation.psi(theta)
    on = np.abs(y - X @ theta) < 1e-9
    assert on.sum() == 3
    np.testing.assert_allclose(np.abs(psi[on, 0]), np.sqrt(tau * (1 - tau)), rtol=1e-12)
    assert np.abs(psi.sum(axis=0)).max() <= 3 * np.abs(X).max()


# ------------------------------------------------------------------------ refusals


def test_a_saturated_plane_is_refused(rng):
    X = rng.normal(size=(3, 3))
    with pytest.raises(InterpolationError, match="passes through all 3 outcomes"):
        ee.estimate(quantile(rng.normal(size=3), X))


def test_collinear_covariates_are_refused(sample):
    y, X = sample
    with pytest.raises(IdentificationError, match="rank 3"):
        ee.estimate(quantile(y, np.column_stack([X, X[:, 1]])))


def test_tails_beyond_the_data_are_refused_with_the_cure():
    y = np.random.default_rng(0).normal(size=30)
    fit = None
    with pytest.raises(InferenceError, match="too few units beyond it"):
        fit = ee.estimate(quantile(y, tau=0.98))
    assert fit is None
    given_width = ee.estimate(quantile(y, tau=0.98, bandwidth=1.0))
    assert given_width.se.iloc[0] > 0


def test_ties_are_refused_with_a_cure_that_works():
    y = np.array([1.0] * 40 + [0.0] * 10 + [2.0] * 15)
    with pytest.raises(InferenceError, match="half of the residuals are equal"):
        ee.estimate(quantile(y))
    smoothed = ee.estimate(quantile(y, bandwidth=1.5))
    bounds = smoothed.interval(method=ScoreInverted()).iloc[0]
    assert bounds["lower"] <= 1.0 <= bounds["upper"]


def test_too_few_units_near_the_plane_are_refused():
    y = np.array([-9.0, -8.0, -7.5, 0.0, 7.0, 8.0, 9.0, 9.5])
    with pytest.raises(InferenceError, match="lie within the bandwidth"):
        ee.estimate(quantile(y, bandwidth=0.1))


def test_rules_that_need_a_working_model_are_refused(sample):
    with pytest.raises(CapabilityError, match="needs `working`"):
        ee.estimate(quantile(*sample), ee.HC(3))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"tau": 1.0}, ValueError, "`tau` must lie between 0 and 1"),
        ({"density": "kernel"}, ValueError, "`density` must be one of"),
        ({"kernel": "cosine"}, ValueError, "`kernel` must be one of"),
        ({"bandwidth": "silverman"}, ValueError, "`bandwidth` must be one of"),
        ({"bandwidth": -1.0}, ValueError, "or a positive number"),
        ({"weights": [1.0]}, TypeError, "must say what they mean"),
    ],
)
def test_options_are_checked(options, error, match):
    with pytest.raises(error, match=match):
        quantile([1.0, 2.0, 4.0], **options)


def test_missing_values_are_refused():
    with pytest.raises(DataError, match="missing values in row 1"):
        quantile([1.0, np.nan, 3.0])


def test_bofingers_window_has_the_formula_of_koenker_and_quantreg():
    """Statsmodels 0.15 has the density at twice the quantile, a slip."""
    from statsmodels.regression.quantile_regression import bofinger as theirs

    z = stats.norm.ppf(0.2)
    inside = 4.5 * stats.norm.pdf(z) ** 4 / (2 * z**2 + 1) ** 2
    assert bofinger(1000, 0.2) == pytest.approx((inside / 1000) ** 0.2, rel=EXACT)
    assert bofinger(1000, 0.5) == pytest.approx(theirs(1000, 0.5), rel=EXACT)
    assert theirs(1000, 0.2) < 0.7 * bofinger(1000, 0.2)
