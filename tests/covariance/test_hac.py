from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.datasets import macrodata
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.covariance._kernels import kernel_weights, prewhiten
from eestim.covariance.bandwidths import Andrews1991, NeweyWest1994, Weave
from eestim.covariance.fixed_b import FixedB, fixed_b_critical
from eestim.covariance.hac import HAC, hac_meat
from eestim.errors import CapabilityError, DataError, InferenceError

KERNELS = ("truncated", "bartlett", "parzen", "tukey-hanning", "quadratic-spectral")
LINEARMODELS = NeweyWest1994(rounding="ceil", pilot_rounding="ceil")

REFERENCE_RULES = {
    "ols_investment_NW_lag4_adj": HAC("bartlett", lags=4, adjust=True),
    "ols_investment_QS_Andrews_noprewhite": HAC("qs", bandwidth="andrews"),
    "ols_investment_QS_Andrews": HAC("qs", "andrews", prewhiten=1, adjust=True),
    "ols_investment_Trunc_bw2": HAC("truncated", bandwidth=2),
    "ols_investment_Tukey_bw5": HAC("tukey-hanning", bandwidth=5),
    "ols_investment_NW1994_noprewhite": HAC(bandwidth="newey-west"),
    "ols_investment_NW1994": HAC(bandwidth="newey-west", prewhiten=1),
    "ols_investment_Lumley_truncate": HAC("weave"),
    "sm_hac4_investment_uc0": HAC(lags=4),
    "sm_hac4_investment_uc1": HAC(lags=4, adjust=True),
    "lm_hac_investment_bartlett_4": HAC("bartlett", lags=4),
    "lm_hac_investment_parzen_4": HAC("parzen", lags=4),
    "lm_hac_investment_qs_4": HAC("qs", bandwidth=4),
    "lm_hac_investment_qs_auto": HAC("qs", LINEARMODELS),
}


def deviation(ours, reference):
    theirs = np.array(reference)
    size = np.sqrt(np.diag(theirs))
    return np.abs((np.asarray(ours) - theirs) / np.outer(size, size)).max()


def macro():
    data = macrodata.load_pandas().data
    return pd.DataFrame(
        {
            "growth": 400 * np.log(data["realgdp"]).diff(),
            "inflation": data["infl"],
            "rate": data["tbilrate"],
            "quarter": np.arange(len(data)),
        }
    ).dropna()


def regression(n=60, seed=3, rho=0.5):
    rng = np.random.default_rng(seed)
    x, e = rng.normal(size=(2, n))
    for t in range(1, n):
        x[t] += rho * x[t - 1]
        e[t] += rho * e[t - 1]
    return pd.DataFrame({"x": x, "z": rng.normal(size=n), "y": 1 + x + e})


# ------------------------------------------------------------------ other packages


@pytest.mark.parametrize("case", REFERENCE_RULES)
def test_reference_case_by_hand_made_least_squares_and_through_estimate(refcases, case):
    entry = refcases.case(case)
    data = refcases.frame("Investment.csv").dropna()
    rule = REFERENCE_RULES[case]
    fit = ee.estimate(ee.ols("RealInv ~ RealGNP + RealInt", data), covariance=rule)
    np.testing.assert_allclose(fit.theta, entry["estimate"], rtol=REFERENCE)
    assert deviation(fit.covariance, entry["vcov"]) < REFERENCE
    # the same rule on a plain NumPy equation has the same psi and A
    y = data["RealInv"].to_numpy()
    X = np.column_stack([np.ones(len(y)), data["RealGNP"], data["RealInt"]])
    by_hand = np.linalg.lstsq(X, y, rcond=None)[0]
    arrays = ee.estimate(ee.ols(y, X), covariance=rule)
    np.testing.assert_allclose(arrays.theta, by_hand, rtol=REFERENCE)
    assert deviation(arrays.covariance, entry["vcov"]) < REFERENCE


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ("ols_investment_QS_Andrews_noprewhite", HAC("qs", "andrews")),
        ("ols_investment_QS_Andrews", HAC("qs", "andrews", prewhiten=1)),
        ("ols_investment_NW1994", HAC("bartlett", NeweyWest1994("none"), prewhiten=1)),
        ("ols_investment_NW1994_noprewhite", HAC(bandwidth=NeweyWest1994("none"))),
    ],
)
def test_automatic_bandwidth_has_the_digits_of_sandwich(refcases, case, rule):
    told = refcases.case(case)["variance_kind"].split("bw=")[1].split(",")[0]
    data = refcases.frame("Investment.csv").dropna()
    fit = ee.estimate(ee.ols("RealInv ~ RealGNP + RealInt", data), covariance=rule)
    finding = next(f for f in fit.findings if f.name == "bandwidth share")
    ours = finding.value * (19 - rule.prewhiten)
    np.testing.assert_allclose(ours, float(told), rtol=1e-11)


@pytest.mark.parametrize("lags", [0, 1, 4, 12])
@pytest.mark.parametrize("adjust", [False, True])
def test_newey_west_equals_statsmodels_on_macro_data(lags, adjust):
    data = macro()
    X = sm.add_constant(data[["inflation", "rate"]])
    options = {"maxlags": lags, "use_correction": adjust}
    theirs = sm.OLS(data["growth"], X).fit(cov_type="HAC", cov_kwds=options)
    fit = ee.estimate(
        ee.ols("growth ~ inflation + rate", data),
        covariance=HAC(lags=lags, adjust=adjust),
    )
    assert deviation(fit.covariance, theirs.cov_params()) < REFERENCE


def test_logistic_newey_west_equals_statsmodels(rng):
    data = regression(300)
    data["up"] = (data["y"] > 1).astype(float)
    theirs = sm.Logit(data["up"], sm.add_constant(data[["x", "z"]])).fit(
        disp=0, cov_type="HAC", cov_kwds={"maxlags": 5, "use_correction": False}
    )
    equation = ee.glm("up ~ x + z", data, family="binomial")
    fit = ee.estimate(equation, covariance=HAC(lags=5))
    assert deviation(fit.covariance, theirs.cov_params()) < REFERENCE


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("order", [0, 2])
def test_hac_equals_the_double_sum_written_out(kernel, order):
    data = regression(40)
    fit = ee.estimate(ee.ols("y ~ x + z", data))
    psi, n = fit.equation.psi(fit.theta), 40
    white = prewhiten(psi, order)
    rule = HAC(kernel, bandwidth=2.5, prewhiten=order, adjust=True)
    m = n - order
    gaps = np.abs(np.subtract.outer(np.arange(m), np.arange(m))) / 2.5
    S = white.residuals.T @ kernel_weights(kernel, gaps) @ white.residuals
    X = fit.equation.working(fit.theta).design
    B = np.linalg.inv(X.T @ X) @ white.recolour
    expected = B @ S @ B.T * (n / (n - 3))
    got = fit.with_covariance(rule)
    assert deviation(got.covariance, expected) < 1e-10
    assert (got.dof == n - 3).all()
    assert got.dof_kind == "n-k"


# ------------------------------------------------------------------------ properties


@given(st.integers(0, 10_000), st.sampled_from(KERNELS))
@settings(deadline=None, max_examples=40)
def test_tiny_bandwidth_and_no_lags_are_hc0(seed, kernel):
    fit = ee.estimate(ee.ols("y ~ x + z", regression(25, seed)))
    tiny = fit.with_covariance(HAC(kernel, bandwidth=1e-5)).covariance
    assert deviation(tiny, fit.covariance) < 1e-9
    if kernel != "quadratic-spectral":
        none = fit.with_covariance(HAC(kernel, lags=0)).covariance
        assert deviation(none, fit.covariance) < EXACT


@given(
    st.integers(0, 10_000),
    st.sampled_from(["bartlett", "parzen", "quadratic-spectral"]),
    st.floats(0.3, 20),
)
@settings(deadline=None, max_examples=40)
def test_reversing_time_changes_nothing(seed, kernel, bandwidth):
    data = regression(25, seed)
    rule = HAC(kernel, bandwidth=bandwidth)
    forwards = ee.estimate(ee.ols("y ~ x + z", data), covariance=rule)
    backwards = ee.estimate(ee.ols("y ~ x + z", data[::-1]), covariance=rule)
    # a bandwidth near n nearly cancels the sum: compare with HC0
    size = np.sqrt(np.diag(forwards.with_covariance(ee.HC(0)).covariance))
    gap = forwards.covariance.to_numpy() - backwards.covariance.to_numpy()
    assert np.abs(gap / np.outer(size, size)).max() < 1e-9


@given(st.integers(0, 10_000), st.sampled_from([0, 1]))
@settings(deadline=None, max_examples=30)
def test_shuffled_rows_with_their_times_change_nothing(seed, order):
    data = regression(30, seed).assign(when=lambda d: 2000 + 0.25 * np.arange(len(d)))
    shuffled = data.sample(frac=1, random_state=seed)
    rule = HAC("parzen", bandwidth=3.5, prewhiten=order, time="when")
    plain = HAC("parzen", bandwidth=3.5, prewhiten=order)
    expected = ee.estimate(ee.ols("y ~ x + z", data), covariance=plain)
    got = ee.estimate(ee.ols("y ~ x + z", shuffled), covariance=rule)
    assert deviation(got.covariance, expected.covariance) < 1e-9
    wrong = ee.estimate(ee.ols("y ~ x + z", shuffled), covariance=plain)
    assert deviation(wrong.covariance, expected.covariance) > 1e-4  # negative control


@given(
    st.integers(0, 10_000),
    st.sampled_from(["andrews", "newey-west"]),
    st.sampled_from(["bartlett", "parzen", "quadratic-spectral"]),
    st.sampled_from([0, 1]),
)
@settings(deadline=None, max_examples=40)
def test_units_of_the_response_scale_the_covariance(seed, bandwidth, kernel, order):
    data = regression(40, seed)
    rule = HAC(kernel, bandwidth, prewhiten=order)
    fit = ee.estimate(ee.ols("y ~ x + z", data), covariance=rule)
    scaled = ee.estimate(
        ee.ols("y ~ x + z", data.assign(y=1e6 * data["y"])), covariance=rule
    )
    assert deviation(scaled.covariance, 1e12 * fit.covariance) < REFERENCE


def test_prewhitened_meat_recolours_by_the_long_run_filter():
    psi = regression(50)[["x", "z"]].to_numpy()
    white = prewhiten(psi, 1)
    inner = white.residuals.T @ white.residuals
    np.testing.assert_allclose(
        hac_meat(white, np.ones(1)),
        white.recolour @ inner @ white.recolour.T,
        rtol=1e-10,
    )


def test_prewhitening_finds_the_long_run_variance_of_an_autoregression(rng):
    # of a mean with AR(1) errors: sigma^2 / (1 - rho)^2 / n = 25 / n for rho = .8
    replications, n = 200, 400
    values, plain = [], []
    for _ in range(replications):
        e = rng.normal(size=n + 50)
        for t in range(1, n + 50):
            e[t] += 0.8 * e[t - 1]
        fit = ee.estimate(ee.mean(e[50:]), covariance=HAC(prewhiten=1))
        values.append(n * fit.covariance.iloc[0, 0])
        plain.append(n * fit.with_covariance(ee.HC(0)).covariance.iloc[0, 0])
    error = np.std(values) / np.sqrt(replications)
    # the bias of a least-squares slope in n = 400 is worth about 7%
    assert abs(np.mean(values) - 25) < 4 * error + 0.07 * 25
    assert np.mean(plain) < 0.2 * 25  # negative control


# -------------------------------------------------------------- what the rule tells


def test_default_bandwidth_is_newey_west_where_it_is_defined():
    fit = ee.estimate(ee.ols("y ~ x + z", regression()))
    for kernel in ("bartlett", "parzen", "qs"):
        default = fit.with_covariance(HAC(kernel))
        named = fit.with_covariance(HAC(kernel, bandwidth="newey-west"))
        assert default.covariance.equals(named.covariance)
        assert "by Newey-West" in default.rule
    for kernel in ("truncated", "tukey-hanning"):
        rule = fit.equation, fit.root
        assert "by Andrews" in HAC(kernel, "andrews")(*rule).rule
        assert "by Andrews" in HAC(kernel)(*rule).rule


def test_column_weights_and_approximation_reach_the_bandwidth():
    fit = ee.estimate(ee.ols("y ~ x + z", regression()))
    default = fit.with_covariance(HAC("qs", Andrews1991()))
    spelled = fit.with_covariance(HAC("qs", Andrews1991(weights=(0, 1, 1))))
    other = fit.with_covariance(HAC("qs", Andrews1991(weights=(1, 0, 0))))
    mixed = fit.with_covariance(HAC("qs", Andrews1991("ARMA(1,1)")))
    assert default.covariance.equals(spelled.covariance)
    assert not default.covariance.equals(other.covariance)
    assert not default.covariance.equals(mixed.covariance)


def test_weave_reads_residuals_and_needs_a_regression():
    data = regression(200, rho=0.9)
    fit = ee.estimate(ee.ols("y ~ x", data), covariance=HAC("weave"))
    assert fit.rule.startswith("WEAVE (truncate)")
    smooth = fit.with_covariance(HAC(Weave("smooth", 0.25)))
    assert smooth.covariance.equals(
        fit.with_covariance(HAC(Weave("smooth", 0.25))).covariance
    )
    assert not smooth.covariance.equals(fit.covariance)
    equation = ee.equation(
        lambda theta, d: (d["y"] - theta[0])[:, None],
        {"y": data["y"].to_numpy()},
        [0.0],
    )
    with pytest.raises(CapabilityError, match="HAC with empirical"):
        ee.estimate(equation, covariance=HAC("weave"))


def test_a_psi_of_any_kind_has_a_hac_covariance():
    data = {"y": regression(80)["y"].to_numpy()}
    equation = ee.equation(
        lambda theta, d: (d["y"] - theta[0])[:, None], data, [0.0], names=["mean"]
    )
    rule = HAC("parzen", bandwidth="andrews", prewhiten=1)
    ours = ee.estimate(equation, covariance=rule)
    model = ee.estimate(ee.mean(data["y"]), covariance=rule)
    assert deviation(ours.covariance, model.covariance) < REFERENCE


def test_findings_name_wide_bandwidths_and_explosive_prewhitening():
    fit = ee.estimate(ee.ols("y ~ x + z", regression(30)), covariance=HAC(lags=9))
    finding = next(f for f in fit.findings if f.name == "bandwidth share")
    assert finding.status == "warn"
    assert "FixedB('bartlett', 0.3333)" in finding.advice
    trend = pd.DataFrame({"y": 1.1 ** np.arange(40) + np.sin(np.arange(40))})
    explosive = ee.estimate(ee.mean(trend["y"]), covariance=HAC(lags=0, prewhiten=1))
    status = {f.name: f.status for f in explosive.findings}
    assert status["prewhitening"] == "fail"


def test_fixed_b_intervals_are_wider_by_the_ratio_of_critical_values():
    fit = ee.estimate(ee.ols("y ~ x + z", regression(50)), covariance=HAC(lags=9))
    normal = fit.interval()
    wide = fit.interval(method=FixedB("bartlett", 10 / 50))
    ratio = (wide["upper"] - wide["lower"]) / (normal["upper"] - normal["lower"])
    expected = fixed_b_critical("bartlett", 0.2) / 1.959963984540054
    np.testing.assert_allclose(ratio, expected, rtol=1e-9)
    assert list(wide.columns) == list(normal.columns)


def test_irregular_times_are_reported():
    data = regression(30).assign(when=[*range(20), *range(30, 40)])
    fit = ee.estimate(ee.ols("y ~ x", data), covariance=HAC(lags=2, time="when"))
    assert "even spacing" in [f.name for f in fit.findings]
    months = pd.date_range("2020-01-31", periods=30, freq="ME")
    regular = fit.with_covariance(HAC(lags=2, time=months))
    assert "even spacing" not in [f.name for f in regular.findings]


def test_rules_say_whether_they_are_equivariant():
    assert HAC(lags=3).is_equivariant
    assert HAC("weave").is_equivariant
    assert not HAC().is_equivariant
    assert not HAC("qs", "andrews").is_equivariant


@pytest.mark.parametrize("bandwidth", ["andrews", "newey-west"])
@pytest.mark.parametrize("order", [0, 1])
def test_a_bandwidth_chosen_once_serves_other_coordinates(bandwidth, order):
    fit = ee.estimate(ee.ols("y ~ x + z", regression()))
    rule = HAC("qs", bandwidth, prewhiten=order, adjust=True)
    fixed = rule.fixed_at(fit.equation, fit.root)
    assert fixed.is_equivariant
    ours, direct = fit.with_covariance(fixed), fit.with_covariance(rule)
    assert ours.covariance.equals(direct.covariance)
    assert ours.rule == direct.rule
    data = regression().assign(when=np.arange(60)).sample(frac=1, random_state=1)
    shuffled = ee.estimate(ee.ols("y ~ x + z", data))
    timed = HAC("qs", bandwidth, prewhiten=order, adjust=True, time="when")
    timed = timed.fixed_at(shuffled.equation, shuffled.root)
    again = shuffled.with_covariance(timed).covariance
    assert deviation(again, direct.covariance) < REFERENCE
    # in the coordinates L of another design the covariance is that of L^-1 theta
    X = fit.equation.working(fit.theta).design
    L = np.array([[1.0, 2.0, 0.0], [0.0, 3.0, 1.0], [0.5, 0.0, 1.0]])
    other = ee.ols(fit.equation.response, X @ L, names=["a", "b", "c"])
    there = ee.estimate(other, covariance=fixed)
    assert deviation(L @ there.covariance @ L.T, direct.covariance) < REFERENCE
    free = ee.estimate(other, covariance=rule)
    assert deviation(L @ free.covariance @ L.T, direct.covariance) > 1e-4  # control


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "daniell"}, "`kernel` is 'daniell'"),
        ({"bandwidth": 0.0}, "`bandwidth` is 0.0"),
        ({"bandwidth": -2}, "`bandwidth` is -2"),
        ({"bandwidth": "stock-watson"}, "`bandwidth` is 'stock-watson'"),
        ({"bandwidth": 3.0, "lags": 2}, "not both"),
        ({"kernel": "qs", "lags": 2}, "`lags` has no meaning"),
        ({"kernel": "weave", "lags": 2}, "no meaning for empirical"),
        ({"prewhiten": -1}, "`prewhiten` is -1"),
        ({"prewhiten": 1.5}, "`prewhiten` is 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        HAC(**options)


def test_values_refuse_unknown_options():
    with pytest.raises(ValueError, match="`rounding`"):
        NeweyWest1994(rounding="up")
    with pytest.raises(ValueError, match="`pilot_rounding`"):
        NeweyWest1994(pilot_rounding="none")
    with pytest.raises(ValueError, match="`approximation`"):
        Andrews1991("MA(1)")
    with pytest.raises(ValueError, match="`cutoff`"):
        Weave(cutoff=-1)


def test_lags_beyond_the_series_are_refused():
    fit = ee.estimate(ee.ols("y ~ x", regression(20)))
    with pytest.raises(ValueError, match="`lags` is 20, but the series has 20"):
        fit.with_covariance(HAC(lags=20))
    with pytest.raises(ValueError, match="the series has 18"):
        fit.with_covariance(HAC(lags=18, prewhiten=2))


def test_newey_west_is_refused_for_kernels_without_it():
    fit = ee.estimate(ee.ols("y ~ x", regression(20)))
    with pytest.raises(ValueError, match="use bandwidth='andrews'"):
        fit.with_covariance(HAC("tukey-hanning", "newey-west"))


def test_times_must_be_complete_single_and_ordered():
    data = regression(20).assign(when=np.arange(20.0))
    fit = ee.estimate(ee.ols("y ~ x", data))
    twice = np.arange(20) // 2
    with pytest.raises(
        DataError, match=r"`time` is repeated in rows 0, 1.*DriscollKraay"
    ):
        fit.with_covariance(HAC(lags=2, time=twice))
    missing = np.where(np.arange(20) == 3, np.nan, np.arange(20))
    with pytest.raises(DataError, match="`time` has missing labels in row 3"):
        fit.with_covariance(HAC(lags=2, time=missing))
    mixed = np.array([*range(19), "x"], dtype=object)
    with pytest.raises(DataError, match="no common order"):
        fit.with_covariance(HAC(lags=2, time=mixed))
    with pytest.raises(DataError, match="no column 'date'"):
        fit.with_covariance(HAC(lags=2, time="date"))


def test_negative_variances_are_refused_with_a_cure():
    y = np.tile([1.0, -1.0], 10) + np.arange(20) * 1e-3
    with pytest.raises(InferenceError, match=r"negative variance.*'bartlett'"):
        ee.estimate(ee.mean(y), covariance=HAC("truncated", bandwidth=1))


def test_adjusting_needs_more_rows_than_parameters():
    rng = np.random.default_rng(0)
    psi = rng.normal(size=(3, 3))
    equation = ee.equations.Evaluated(("a", "b", "c"), psi, np.eye(3), np.zeros(3))
    root = ee.estimate(ee.mean([1.0, 2.0, 4.0])).root
    with pytest.raises(InferenceError, match="n - k = 3 - 3"):
        HAC(lags=1, adjust=True)(equation, replace(root, theta=np.zeros(3)))


def test_automatic_bandwidth_is_read_in_the_users_coordinates():
    """A design solved in internal coordinates has the bandwidth of the plain one."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=120).cumsum() / 4
    y = 1 + 0.5 * x + rng.normal(size=120)
    plain = ee.ols(y, np.column_stack([np.ones(120), x]), names=["Intercept", "x"])
    fit = ee.estimate(plain, ee.HAC("qs", "andrews"))
    far = ee.ols(y, np.column_stack([np.ones(120), 1e7 + x]), names=["Intercept", "x"])
    moved = ee.estimate(far)
    assert moved.root.working is not None
    rule = ee.HAC("qs", "andrews")
    own, inner = rule.fixed_at(far, moved.root), moved.root.working[0]
    there = rule.fixed_at(inner, ee.estimate(inner).root)
    assert own != there  # else this test checks nothing
    given = ee.estimate(far, own, root=moved.theta)
    chosen = moved.with_covariance(rule)
    np.testing.assert_allclose(chosen.se, given.se, rtol=1e-6)
    assert fit.se["x"] > 0
