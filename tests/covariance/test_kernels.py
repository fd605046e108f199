import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.tsa.api import VAR
from statsmodels.tsa.arima.model import ARIMA
from tolerances import EXACT

from eestim.covariance._bandwidth import (
    andrews_bandwidth,
    arma11,
    column_weights,
    newey_west_bandwidth,
    pilot_lags,
)
from eestim.covariance._kernels import (
    canonical_kernel,
    checked_bandwidth,
    checked_lags,
    kernel_weights,
    lag_rule,
    lag_weights,
    lags_to_bandwidth,
    long_run_sum,
    prewhiten,
)
from eestim.covariance._weave import isotonic_autocorrelation, weave_weights
from eestim.covariance.fixed_b import FixedB, fixed_b_critical, fixed_b_pvalue
from eestim.errors import DataError, InferenceError

KERNELS = ("truncated", "bartlett", "parzen", "tukey-hanning", "quadratic-spectral")
POSITIVE = ("bartlett", "parzen", "quadratic-spectral")


def autoregressive(n, rho=0.6, moving=0.0, seed=1):
    noise = np.random.default_rng(seed).normal(size=n + 200)
    x = np.zeros(n + 200)
    for t in range(1, n + 200):
        x[t] = rho * x[t - 1] + noise[t] + moving * noise[t - 1]
    return x[200:]


# ------------------------------------------------------------------------- weights


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_are_one_at_zero_and_even(kernel):
    x = np.linspace(0, 3, 40)
    assert kernel_weights(kernel, np.zeros(1))[0] == 1.0
    np.testing.assert_array_equal(kernel_weights(kernel, -x), kernel_weights(kernel, x))


@pytest.mark.parametrize(
    ("kernel", "order", "constant"),
    [
        ("bartlett", 1, 1.0),
        ("parzen", 2, 6.0),
        ("tukey-hanning", 2, np.pi**2 / 4),
        ("quadratic-spectral", 2, 18 * np.pi**2 / 125),
    ],
)
def test_characteristic_exponents_are_those_of_andrews_table_1(kernel, order, constant):
    x = 1e-4
    slope = (1 - kernel_weights(kernel, np.array([x]))[0]) / x**order
    np.testing.assert_allclose(slope, constant, rtol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "integral"),
    [
        ("truncated", 2.0),
        ("bartlett", 2 / 3),
        ("parzen", 0.539285),
        ("tukey-hanning", 3 / 4),
        ("quadratic-spectral", 1.0),
    ],
)
def test_square_integrals_are_those_of_andrews_table_1(kernel, integral):
    step = 1e-3
    x = np.arange(step / 2, 400, step)
    total = 2 * step * (kernel_weights(kernel, x) ** 2).sum()
    np.testing.assert_allclose(total, integral, rtol=2e-4)


def test_quadratic_spectral_series_joins_the_closed_form():
    z = np.array([0.0999999, 0.1000001])
    near = kernel_weights("qs", z * 5 / (6 * np.pi))
    exact = 1 - z**2 / 10 + z**4 / 280 - z**6 / 15120
    np.testing.assert_allclose(near, exact, rtol=EXACT)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("QS", "quadratic-spectral"),
        ("Quadratic Spectral", "quadratic-spectral"),
        ("quadratic_spectral", "quadratic-spectral"),
        ("Tukey-Hanning", "tukey-hanning"),
        ("newey-west", "bartlett"),
        ("gallant", "parzen"),
    ],
)
def test_spellings(spelling, name):
    assert canonical_kernel(spelling) == name


def test_unknown_kernels_are_refused():
    for bad in ("daniell", None, 3):
        with pytest.raises(
            ValueError, match=r"`kernel` is .*choose one of 'truncated'"
        ):
            canonical_kernel(bad)


def test_lags_and_bandwidths():
    np.testing.assert_allclose(lag_weights("bartlett", 3.0, 99), [1, 2 / 3, 1 / 3])
    assert lags_to_bandwidth("tukey-hanning", 4) == 5.0
    assert len(lag_weights("truncated", lags_to_bandwidth("truncated", 3), 99)) == 4
    assert len(lag_weights("truncated", lags_to_bandwidth("truncated", 0), 99)) == 1
    assert len(lag_weights("qs", 2.0, 30)) == 30
    with pytest.raises(ValueError, match="`lags` has no meaning"):
        lags_to_bandwidth("qs", 2)


def test_lag_rules_have_the_published_values():
    assert [lag_rule("newey-west-1987", t) for t in (10, 16, 81, 82)] == [1, 2, 3, 3]
    assert [lag_rule("NW1994", t) for t in (10, 100, 400)] == [2, 4, 5]
    assert lag_rule("max", 10) == 9
    with pytest.raises(ValueError, match="'newey-west-1987'"):
        lag_rule("andrews", 10)


@pytest.mark.parametrize("bad", [0, -1.0, np.inf, np.nan, "wide", None, True])
def test_bandwidths_that_are_not_positive_are_refused(bad):
    with pytest.raises(ValueError, match=r"`bandwidth` is .*positive number"):
        checked_bandwidth(bad)


@pytest.mark.parametrize("bad", [10, 11, -1])
def test_lags_beyond_the_series_are_refused(bad):
    with pytest.raises(ValueError, match=r"lags\s+0 to 9"):
        checked_lags(bad, 10)


@pytest.mark.parametrize("bad", [1.5, "two", None])
def test_lags_that_are_not_integers_are_refused(bad):
    with pytest.raises(ValueError, match="an integer was expected"):
        checked_lags(bad, 10)


# -------------------------------------------------------------------- long-run sums


@given(
    st.integers(0, 10_000),
    st.sampled_from(KERNELS),
    st.floats(0.2, 60.0),
    st.integers(2, 90),
)
@settings(deadline=None, max_examples=80)
def test_long_run_sum_equals_the_double_sum_over_pairs(seed, kernel, bandwidth, n):
    psi = np.random.default_rng(seed).normal(size=(n, 3)) * [1.0, 1e3, 1e-3]
    gaps = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    direct = psi.T @ kernel_weights(kernel, gaps / bandwidth) @ psi
    fast = long_run_sum(psi, lag_weights(kernel, bandwidth, n))
    size = np.sqrt((psi**2).sum(axis=0)) * np.sqrt(n)
    assert np.abs((fast - direct) / np.outer(size, size)).max() < EXACT


@given(st.integers(0, 10_000), st.sampled_from(POSITIVE), st.floats(0.1, 80.0))
@settings(deadline=None, max_examples=60)
def test_positive_kernels_give_positive_semidefinite_sums(seed, kernel, bandwidth):
    psi = np.random.default_rng(seed).normal(size=(30, 3))
    values = np.linalg.eigvalsh(long_run_sum(psi, lag_weights(kernel, bandwidth, 30)))
    assert values[0] >= -EXACT * max(values[-1], (psi**2).sum())


def test_truncated_kernel_is_not_positive_a_negative_control():
    psi = np.tile([1.0, -1.0], 10)[:, None]
    assert long_run_sum(psi, lag_weights("truncated", 1.0, 20))[0, 0] < 0


@given(st.integers(0, 10_000), st.sampled_from(KERNELS), st.floats(0.2, 30.0))
@settings(deadline=None, max_examples=40)
def test_long_run_sum_is_the_same_backwards(seed, kernel, bandwidth):
    psi = np.random.default_rng(seed).normal(size=(40, 2))
    weights = lag_weights(kernel, bandwidth, 40)
    forwards, backwards = long_run_sum(psi, weights), long_run_sum(psi[::-1], weights)
    np.testing.assert_allclose(forwards, backwards, atol=EXACT * (psi**2).sum() * 40)


# --------------------------------------------------------------------- prewhitening


@pytest.mark.parametrize("order", [1, 2, 3])
def test_prewhitening_is_the_vector_autoregression_of_statsmodels(order, rng):
    psi = np.column_stack([autoregressive(80, seed=s) for s in range(3)]) * [1, 1e4, 1]
    fit = VAR(psi).fit(order, trend="n")
    white = prewhiten(psi, order)
    np.testing.assert_allclose(white.residuals, fit.resid, rtol=1e-8, atol=1e-9)
    recolour = np.linalg.inv(np.eye(3) - fit.coefs.sum(axis=0))
    np.testing.assert_allclose(white.recolour, recolour, rtol=1e-8)
    np.testing.assert_allclose(white.radius, 1 / np.abs(fit.roots).min(), rtol=1e-6)


def test_prewhitening_does_not_depend_on_units_of_measure():
    psi = np.column_stack([autoregressive(60, seed=s) for s in range(2)])
    scale = np.array([1e-7, 1e9])
    plain, scaled = prewhiten(psi, 2), prewhiten(psi * scale, 2)
    np.testing.assert_allclose(scaled.residuals, plain.residuals * scale, rtol=1e-9)
    expected = plain.recolour * scale[:, None] / scale
    np.testing.assert_allclose(scaled.recolour, expected, rtol=1e-9)
    assert prewhiten(psi, 0).radius == 0.0


def test_prewhitening_refuses_short_series_and_unit_roots():
    with pytest.raises(DataError, match="`prewhiten` is 5"):
        prewhiten(np.ones((12, 2)), 5)
    with pytest.raises(InferenceError, match="unit root"):
        prewhiten(np.ones((12, 1)), 1)


# ----------------------------------------------------------------------- bandwidths


def test_andrews_bandwidth_equals_its_closed_form_for_one_autoregression():
    x = autoregressive(200, 0.5)
    past = np.column_stack([np.ones(199), x[:-1]])
    rho = np.linalg.lstsq(past, x[1:], rcond=None)[0][1]
    alpha1 = 4 * rho**2 / ((1 - rho) ** 2 * (1 + rho) ** 2)
    alpha2 = 4 * rho**2 / (1 - rho) ** 4
    one = np.ones(1)
    for kernel, constant in (
        ("truncated", 0.6611),
        ("parzen", 2.6614),
        ("tukey-hanning", 1.7462),
        ("qs", 1.3221),
    ):
        got = andrews_bandwidth(x[:, None], kernel, one)
        np.testing.assert_allclose(got, constant * (alpha2 * 200) ** 0.2, rtol=EXACT)
    got = andrews_bandwidth(x[:, None], "bartlett", one)
    np.testing.assert_allclose(got, 1.1447 * (alpha1 * 200) ** (1 / 3), rtol=EXACT)


def test_andrews_bandwidth_weighs_columns_by_their_variance():
    small, large = autoregressive(300, 0.2, seed=2), autoregressive(300, 0.8, seed=3)
    both = np.column_stack([1e-4 * small, large])
    alone = andrews_bandwidth(large[:, None], "qs", np.ones(1))
    np.testing.assert_allclose(
        andrews_bandwidth(both, "qs", np.ones(2)), alone, rtol=1e-6
    )


@pytest.mark.parametrize(("rho", "moving"), [(0.6, 0.3), (-0.4, 0.7), (0.9, -0.3)])
def test_arma_maximises_the_likelihood_of_statsmodels(rho, moving):
    x = 3.0 * autoregressive(300, rho, moving, seed=11)
    found = np.array(arma11(x))
    model = ARIMA(x, order=(1, 0, 1), trend="n")
    theirs = model.fit()
    assert model.loglike(found) >= theirs.llf - 1e-9
    np.testing.assert_allclose(found, theirs.params, rtol=2e-3)
    for j in range(3):  # a maximum in every direction
        for sign in (-1, 1):
            other = found.copy()
            other[j] += sign * 1e-3 * found[2] ** (j == 2)
            assert model.loglike(other) < model.loglike(found)


def test_arma_bandwidth_is_the_autoregressive_one_without_a_moving_average():
    x = autoregressive(4000, 0.5)[:, None]
    plain = andrews_bandwidth(x, "qs", np.ones(1))
    mixed = andrews_bandwidth(x, "qs", np.ones(1), "ARMA(1,1)")
    np.testing.assert_allclose(mixed, plain, rtol=0.15)
    with pytest.raises(ValueError, match="`approximation`"):
        andrews_bandwidth(x, "qs", np.ones(1), "MA(1)")


@pytest.mark.parametrize(
    ("kernel", "power", "constant", "root", "pilot"),
    [
        ("bartlett", 1, 1.1447, 1 / 3, 5),
        ("parzen", 2, 2.6614, 1 / 5, 4),
        ("quadratic-spectral", 2, 1.3221, 1 / 5, 4),
    ],
)
def test_newey_west_bandwidth_equals_its_table(kernel, power, constant, root, pilot):
    psi = np.column_stack([autoregressive(300, 0.5, seed=s) for s in (4, 5)])
    series = psi @ [0.0, 2.0]
    assert pilot_lags(kernel, 300) == pilot
    sigma = [np.mean(series[j:] * series[: 300 - j]) * (1 - j / 300) for j in range(9)]
    flat = sigma[0] + 2 * sum(sigma[1 : pilot + 1])
    slope = 2 * sum(j**power * sigma[j] for j in range(1, pilot + 1))
    expected = constant * ((slope / flat) ** 2 * 300) ** root
    got = newey_west_bandwidth(psi, kernel, np.array([0.0, 2.0]))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_pilot_lags_grow_at_the_published_rates():
    sizes = [pilot_lags(k, 10**6) for k in ("bartlett", "parzen", "qs")]
    # 4 * 10^4 to the powers 2/9, 4/25, 2/25
    assert sizes == [30, 17, 8]
    whitened = [pilot_lags(k, 10**6, is_prewhitened=True) for k in ("bartlett", "qs")]
    assert whitened == [23, 6]


def test_newey_west_is_refused_where_it_is_not_defined():
    with pytest.raises(ValueError, match="not defined for the truncated kernel"):
        pilot_lags("truncated", 100)
    with pytest.raises(InferenceError, match="give `bandwidth` or `lags`"):
        newey_west_bandwidth(np.zeros((20, 1)), "bartlett", np.ones(1))


def test_andrews_refuses_what_has_no_bandwidth():
    with pytest.raises(DataError, match="3 time points"):
        andrews_bandwidth(np.ones((3, 1)), "qs", np.ones(1))
    with pytest.raises(InferenceError, match="constant over time"):
        andrews_bandwidth(np.ones((30, 1)), "qs", np.ones(1))
    with pytest.raises(InferenceError, match="unit root"):
        andrews_bandwidth(np.arange(30.0)[:, None], "qs", np.ones(1))


def test_intercepts_have_no_weight_by_name_or_by_design():
    assert column_weights(["(Intercept)", "x"], None).tolist() == [0, 1]
    assert column_weights(["Intercept"], None).tolist() == [1]
    design = np.column_stack([np.arange(4.0), np.full(4, 2.0)])
    assert column_weights(["x0", "x1"], None, design).tolist() == [1, 0]
    assert column_weights(["x0", "x1"], [0.5, 2], design).tolist() == [0.5, 2]
    for bad in ([1.0], [-1.0, 1.0], [0.0, 0.0]):
        with pytest.raises(DataError, match="`weights` of the bandwidth"):
            column_weights(["a", "b"], bad)


# ---------------------------------------------------------------------------- weave


@given(st.integers(0, 10_000), st.integers(3, 60))
@settings(deadline=None, max_examples=50)
def test_isotonic_autocorrelation_is_the_projection_on_decreasing_sequences(seed, n):
    x = np.random.default_rng(seed).normal(size=n)
    centred = x - x.mean()
    raw = np.correlate(centred, centred, "full")[n - 1 :] / (centred @ centred)
    fitted = isotonic_autocorrelation(x)
    assert (np.diff(fitted) <= EXACT).all()
    # optimality: the gap is orthogonal to the fit and makes an acute angle with none
    gap = raw - fitted
    assert abs(gap @ fitted) < 1e-10
    steps = np.tri(n).T  # generators of the cone: ones up to a lag, and a constant
    assert (steps.T @ gap <= 1e-10).all()
    assert abs(gap.sum()) < 1e-10


def test_weave_weights_are_the_published_functions_of_the_autocorrelations():
    x = autoregressive(100, 0.7, seed=5)
    strength = 100 * isotonic_autocorrelation(x) ** 2
    smooth = weave_weights(x, "smooth", 0.1)
    expected = np.minimum(1, 0.1 * strength)
    np.testing.assert_allclose(smooth[1:], expected[1 : len(smooth)], rtol=EXACT)
    hard = weave_weights(x)
    assert set(hard) <= {0.0, 1.0}
    assert hard.sum() == max((strength > 4).sum(), 1)
    assert hard.sum() > 2  # the series is autocorrelated
    with pytest.raises(ValueError, match="`method`"):
        weave_weights(x, "hard")
    with pytest.raises(ValueError, match="`cutoff`"):
        weave_weights(x, "smooth", 0.0)
    with pytest.raises(InferenceError, match="residuals are constant"):
        weave_weights(np.ones(9))


# -------------------------------------------------------------------------- fixed b


@pytest.mark.parametrize(
    ("level", "random_scaling"), [(0.8, 3.875), (0.9, 5.323), (0.95, 6.747)]
)
def test_full_bartlett_bandwidth_is_random_scaling_of_abadir_and_paruolo(
    level, random_scaling
):
    # the Bartlett variance with b = 1 is twice the integral of the squared bridge
    got = fixed_b_critical("bartlett", 1.0, level)
    np.testing.assert_allclose(got, random_scaling / np.sqrt(2), atol=7e-4)


def test_critical_values_lie_near_the_cubic_of_kiefer_and_vogelsang():
    for b in (0.02, 0.1, 0.3, 0.5, 0.7, 1.0):
        cubic = 1.96 + 2.9694 * b + 0.4160 * b**2 - 0.5324 * b**3
        assert abs(fixed_b_critical("bartlett", b) - cubic) < 0.06


@pytest.mark.parametrize("kernel", POSITIVE)
def test_small_bandwidths_give_the_normal_law_and_large_ones_wider_intervals(kernel):
    values = [fixed_b_critical(kernel, b) for b in (0.002, 0.05, 0.2, 0.6)]
    np.testing.assert_allclose(values[0], 1.959964, atol=0.01)
    assert (np.diff(values) > 0.05).all()


@pytest.mark.parametrize("kernel", POSITIVE)
def test_fixed_b_tail_by_simulation_and_the_normal_tail_fails(kernel, rng):
    n, b, replications = 300, 0.3, 4000
    noise = rng.normal(size=(replications, n))
    centred = noise - noise.mean(axis=1, keepdims=True)
    gaps = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    table = kernel_weights(kernel, gaps / (b * n))
    variance = np.einsum("ri,ri->r", centred @ table, centred)
    t = np.abs(noise.sum(axis=1)) / np.sqrt(variance)
    error = np.sqrt(0.05 * 0.95 / replications)
    assert abs((t > fixed_b_critical(kernel, b)).mean() - 0.05) < 4 * error
    assert (t > 1.96).mean() > 0.05 + 8 * error


def test_pvalues_invert_critical_values():
    for kernel in POSITIVE:
        critical = fixed_b_critical(kernel, 0.15, 0.9)
        np.testing.assert_allclose(fixed_b_pvalue(kernel, 0.15, critical), 0.1)
    values = fixed_b_pvalue("bartlett", 0.1, [[0.0, -2.0], [2.0, 9.0]])
    assert values.shape == (2, 2)
    assert values[0, 0] == 1.0
    assert values[0, 1] == values[1, 0]


def test_fixed_b_refuses_what_has_no_law():
    for bad in (0.0, -0.1, 1.01, np.nan):
        with pytest.raises(ValueError, match="`b` is"):
            fixed_b_critical("bartlett", bad)
    with pytest.raises(ValueError, match="negative variances"):
        FixedB("truncated", 0.1)
    with pytest.raises(ValueError, match="`level`"):
        fixed_b_critical("bartlett", 0.1, 1.0)
