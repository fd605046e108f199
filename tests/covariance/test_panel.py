import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.datasets import grunfeld
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.covariance._kernels import kernel_weights
from eestim.covariance._panel import beck_katz_sum
from eestim.covariance.hac import HAC
from eestim.covariance.panel import BeckKatz, DriscollKraay, PanelHAC
from eestim.errors import CapabilityError, DataError, InferenceError


def deviation(ours, reference):
    theirs = np.array(reference)
    size = np.sqrt(np.diag(theirs))
    return np.abs((np.asarray(ours) - theirs) / np.outer(size, size)).max()


def panel(n_units=6, n_times=9, seed=0, share=1.0):
    rng = np.random.default_rng(seed)
    unit, time = np.divmod(np.arange(n_units * n_times), n_times)
    shock = rng.normal(size=n_times)[time]
    x = rng.normal(size=len(unit)) + 0.5 * shock
    y = 1 + x + shock + rng.normal(size=len(unit)) * (1 + 0.3 * unit)
    data = pd.DataFrame({"unit": unit, "time": 1990 + time, "x": x, "y": y})
    kept = rng.random(len(data)) < share
    return data[kept].sample(frac=1, random_state=seed)  # in no order


def fitted(data, formula="y ~ x"):
    return ee.estimate(ee.ols(formula, data))


def arrays(fit):
    working = fit.equation.working(fit.theta)
    X = working.design
    return X, working.residual, np.linalg.inv(X.T @ X)


# ------------------------------------------------------------------ other packages


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ("ols_petersen_driscoll_kraay", DriscollKraay("year", adjust=True)),
        ("ols_petersen_driscoll_kraay", DriscollKraay("year", lags=1, adjust=True)),
        ("lm_petersen_dk_bartlett_deb0", DriscollKraay(time="year", lags=3)),
        ("ols_petersen_panel_NW", PanelHAC("firm", "year", lags=1, adjust=True)),
        ("ols_petersen_panel_NW", PanelHAC("firm", "year", "NW1987", adjust=True)),
    ],
)
def test_reference_case(refcases, case, rule):
    entry = refcases.case(case)
    fit = ee.estimate(ee.ols("y ~ x", refcases.frame("PetersenCL.csv")), rule)
    np.testing.assert_allclose(fit.theta, entry["estimate"], rtol=REFERENCE)
    assert deviation(fit.covariance, entry["vcov"]) < REFERENCE


def investment():
    data = grunfeld.load_pandas().data
    return data.rename(columns={"invest": "y", "value": "x", "capital": "z"})


@pytest.mark.parametrize("lags", [0, 1, 3, 8])
def test_driscoll_kraay_equals_statsmodels_on_the_grunfeld_panel(lags):
    data = investment().sort_values(["year", "firm"])
    times = pd.factorize(data["year"], sort=True)[0]
    options = {"time": times, "maxlags": lags, "df_correction": False}
    theirs = sm.OLS(data["y"], sm.add_constant(data[["x", "z"]])).fit(
        cov_type="hac-groupsum", cov_kwds=options | {"use_correction": False}
    )
    fit = ee.estimate(ee.ols("y ~ x + z", data), DriscollKraay("year", lags=lags))
    assert deviation(fit.covariance, theirs.cov_params()) < REFERENCE


@pytest.mark.parametrize("lags", [0, 1, 3, 8])
def test_panel_newey_west_equals_statsmodels_on_the_grunfeld_panel(lags):
    data = investment().sort_values(["firm", "year"])
    groups = pd.factorize(data["firm"])[0]
    options = {"groups": groups, "maxlags": lags, "df_correction": False}
    theirs = sm.OLS(data["y"], sm.add_constant(data[["x", "z"]])).fit(
        cov_type="hac-panel", cov_kwds=options | {"use_correction": False}
    )
    fit = ee.estimate(ee.ols("y ~ x + z", data), PanelHAC("firm", "year", lags=lags))
    assert deviation(fit.covariance, theirs.cov_params()) < REFERENCE


# ----------------------------------------------------------------- written-out sums


@given(st.integers(0, 10_000), st.floats(0.4, 1.0), st.booleans())
@settings(deadline=None, max_examples=40)
def test_panel_sums_equal_double_sums_over_pairs_of_rows(seed, share, is_parzen):
    data = panel(seed=seed, share=share)
    if data["time"].nunique() < 9 or len(data) < 8:
        return
    fit, kernel = fitted(data), "parzen" if is_parzen else "bartlett"
    X, e, B = arrays(fit)
    psi = X * e[:, None]
    t, u = data["time"].to_numpy(), data["unit"].to_numpy()
    weight = kernel_weights(kernel, np.abs(np.subtract.outer(t, t)) / 4)
    same = np.equal.outer(u, u)
    everyone = B @ psi.T @ weight @ psi @ B
    own = B @ psi.T @ (weight * same) @ psi @ B
    rule = DriscollKraay("time", lags=3, kernel=kernel)
    size = np.sqrt(np.diag(fit.covariance))
    gap = fit.with_covariance(rule).covariance - everyone
    assert np.abs(gap / np.outer(size, size)).max().max() < 1e-9
    rule = PanelHAC("unit", "time", bandwidth=4.0, kernel=kernel)
    gap = fit.with_covariance(rule).covariance - own
    assert np.abs(gap / np.outer(size, size)).max().max() < 1e-9


def kronecker(data, fit, sigma_of):
    """X' Omega X with Omega written out over all pairs of rows of the same time."""
    X, e, B = arrays(fit)
    t, u = data["time"].to_numpy(), data["unit"].to_numpy()
    table = pd.DataFrame({"t": t, "u": u, "e": e}).pivot(
        index="t", columns="u", values="e"
    )
    sigma = sigma_of(table)
    omega = np.equal.outer(t, t) * sigma[np.ix_(u, u)]
    return B @ X.T @ omega @ X @ B


def complete_covariance(table):
    full = table.dropna().to_numpy()
    return full.T @ full / len(full)


def pairwise_covariance(table):
    seen = table.notna().to_numpy().astype(float)
    filled = table.fillna(0.0).to_numpy()
    return filled.T @ filled / np.maximum(seen.T @ seen, 1)


def test_beck_katz_equals_the_kronecker_product_written_out():
    data = panel(seed=4)
    fit = fitted(data)
    expected = kronecker(data, fit, complete_covariance)
    for pairwise in (False, True):
        got = fit.with_covariance(BeckKatz("unit", "time", pairwise)).covariance
        assert deviation(got, expected) < 1e-10


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_unbalanced_beck_katz_by_case_and_by_pair(seed):
    data = panel(seed=seed)
    dropped = np.random.default_rng(seed).choice(len(data), 4, replace=False)
    data = data.drop(data.index[dropped])
    fit = fitted(data)
    if data["time"].value_counts().max() == 6:
        got = fit.with_covariance(BeckKatz("unit", "time")).covariance
        assert deviation(got, kronecker(data, fit, complete_covariance)) < 1e-9
    expected = kronecker(data, fit, pairwise_covariance)
    try:
        got = fit.with_covariance(BeckKatz("unit", "time", pairwise=True)).covariance
    except InferenceError:
        assert np.diag(expected).min() < 0
    else:
        assert deviation(got, expected) < 1e-9


def test_beck_katz_in_blocks_is_the_same(monkeypatch):
    data = panel(seed=5, share=0.8)
    fit = fitted(data)
    X, e, _ = arrays(fit)
    codes = data["unit"].to_numpy(), data["time"].to_numpy() - 1990
    whole = beck_katz_sum(X, e, *codes, pairwise=True)
    monkeypatch.setattr("eestim.covariance._panel._BLOCK", 12)
    blocks = beck_katz_sum(X, e, *codes, pairwise=True)
    np.testing.assert_allclose(blocks, whole, rtol=1e-10, atol=1e-10 * whole.max())


# --------------------------------------------------------------------- special cases


@given(st.integers(0, 10_000), st.sampled_from(["bartlett", "parzen", "truncated"]))
@settings(deadline=None, max_examples=30)
def test_one_unit_is_a_time_series(seed, kernel):
    data = panel(n_units=1, n_times=30, seed=seed).assign(unit="only")
    fit = fitted(data)
    try:
        series = fit.with_covariance(HAC(kernel, lags=3, time="time"))
    except InferenceError:  # the truncated kernel may give negative variances
        assert kernel == "truncated"
        return
    for rule in (
        DriscollKraay("time", lags=3, kernel=kernel),
        PanelHAC("unit", "time", lags=3, kernel=kernel),
    ):
        assert deviation(fit.with_covariance(rule).covariance, series.covariance) < 1e-9


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_no_lags_are_hc0_or_clusters_of_times_and_all_lags_are_clusters_of_units(seed):
    data = panel(seed=seed, share=0.9)
    fit = fitted(data)
    none = fit.with_covariance(PanelHAC("unit", "time", lags=0))
    assert deviation(none.covariance, fit.covariance) < EXACT
    times = fit.with_covariance(ee.Clustered("time", kind="CR0"))
    summed = fit.with_covariance(DriscollKraay("time", lags=0))
    assert deviation(summed.covariance, times.covariance) < 1e-10
    units = fit.with_covariance(ee.Clustered("unit", kind="CR0"))
    every = fit.with_covariance(
        PanelHAC("unit", "time", lags="max", kernel="truncated")
    )
    assert deviation(every.covariance, units.covariance) < 1e-9


def test_quadratic_spectral_takes_a_bandwidth():
    fit = fitted(panel())
    rule = PanelHAC("unit", "time", kernel="qs", bandwidth=1e-5)
    assert deviation(fit.with_covariance(rule).covariance, fit.covariance) < 1e-8


def test_user_equations_are_summed_by_time_before_units():
    data = panel(share=0.9)
    mapping = {name: data[name].to_numpy() for name in data}
    equation = ee.equation(
        lambda theta, d: (
            (d["y"] - theta[0] - theta[1] * d["x"])[:, None]
            * np.column_stack([np.ones(len(d["x"])), d["x"]])
        ),
        mapping,
        [0.0, 0.0],
        units="unit",
    )
    fit = ee.estimate(equation)
    for rule in (DriscollKraay("time", lags=2), PanelHAC("unit", "time", lags=2)):
        got = fit.with_covariance(rule).covariance
        expected = fitted(data).with_covariance(rule).covariance
        assert deviation(got, expected) < 1e-7


def test_degrees_of_freedom_and_findings():
    fit = fitted(panel(n_times=9)).with_covariance(DriscollKraay("time", lags=2))
    assert (fit.dof == 8).all()
    assert fit.dof_kind == "T-1"
    names = {f.name: f.status for f in fit.findings}
    assert names["number of times"] == "warn"
    assert names["bandwidth share"] == "warn"
    long = fitted(panel(n_times=60)).with_covariance(DriscollKraay("time", lags=2))
    assert {f.status for f in long.findings} == {"pass"}
    gap = panel(n_times=30).query("time < 2000 or time > 2005")
    holes = fitted(gap).with_covariance(PanelHAC("unit", "time", lags=1))
    assert [f.name for f in holes.findings] == ["even spacing"]


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "rule", [DriscollKraay, lambda time, **o: PanelHAC("u", time, **o)]
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "flat"}, "`kernel` is 'flat'"),
        ({"lags": "NW1900"}, "`lags` is 'NW1900'"),
        ({"lags": 1, "bandwidth": 2.0}, "not both"),
        ({"bandwidth": 0.0}, "`bandwidth` is 0.0"),
        ({"kernel": "qs"}, "`lags` has no meaning"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(rule, options, message):
    with pytest.raises(ValueError, match=message):
        rule("time", **options)


def test_lags_beyond_the_times_are_refused():
    fit = fitted(panel())
    with pytest.raises(ValueError, match="`lags` is 9, but the series has 9"):
        fit.with_covariance(DriscollKraay("time", lags=9))
    with pytest.raises(ValueError, match="`lags` is 9, but the series has 9"):
        fit.with_covariance(PanelHAC("unit", "time", lags=9))


@pytest.mark.parametrize("rule", [PanelHAC("unit", "time"), BeckKatz("unit", "time")])
def test_a_unit_with_two_rows_at_a_time_is_refused(rule):
    data = panel()
    data = pd.concat([data, data.iloc[[3]]], ignore_index=True)
    with pytest.raises(DataError, match=r"`time` is repeated in rows 3, 54"):
        fitted(data).with_covariance(rule)


def test_labels_must_be_complete():
    data = panel().reset_index(drop=True)
    data.loc[7, "time"] = np.nan
    for rule in (DriscollKraay("time"), PanelHAC("unit", "time")):
        with pytest.raises(DataError, match="`time` has missing labels in row 7"):
            fitted(data).with_covariance(rule)
    with pytest.raises(DataError, match="one label for each of 54 rows"):
        fitted(data).with_covariance(DriscollKraay(np.arange(5)))
    with pytest.raises(DataError, match="no column 'firm'"):
        fitted(data).with_covariance(PanelHAC("firm", "time"))


def test_one_time_and_no_complete_time_are_refused():
    with pytest.raises(InferenceError, match="`time` has one label"):
        fitted(panel().assign(time=1)).with_covariance(DriscollKraay("time"))
    data = panel(n_units=4, n_times=4)
    ragged = data[data["unit"] != data["time"] - 1990]
    with pytest.raises(DataError, match="`pairwise=True`"):
        fitted(ragged).with_covariance(BeckKatz("unit", "time"))


def test_beck_katz_needs_a_regression():
    data = {"y": np.arange(6.0), "unit": np.arange(6) % 2, "time": np.arange(6) // 2}
    equation = ee.equation(lambda t, d: (d["y"] - t[0])[:, None], data, [0.0])
    with pytest.raises(CapabilityError, match="BeckKatz needs `working`"):
        ee.estimate(equation, covariance=BeckKatz("unit", "time"))
