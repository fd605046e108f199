"""Covariance rules against statsmodels on a data set that ships with it."""

from itertools import pairwise

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.sandwich_covariance import cov_nw_groupsum, cov_nw_panel
from tolerances import REFERENCE

import eestim as ee


@pytest.fixture(scope="module")
def grunfeld():
    data = sm.datasets.grunfeld.load_pandas().data
    data = data.sort_values(["firm", "year"]).reset_index(drop=True)
    return data.assign(high=(data["invest"] > 100) * 1.0, late=data["year"] - 1934)


@pytest.fixture(scope="module")
def oracle(grunfeld):
    design = sm.add_constant(grunfeld[["value", "capital"]])
    return sm.OLS(grunfeld["invest"], design)


@pytest.fixture(scope="module")
def fit(grunfeld):
    return ee.estimate(ee.ols("invest ~ value + capital", grunfeld))


def close(ours, theirs):
    V = np.asarray(theirs)
    errors = np.sqrt(np.diag(V))
    assert np.max(np.abs(ours.spread.matrix - V) / np.outer(errors, errors)) < REFERENCE


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_hc(fit, oracle, kind):
    close(
        fit.with_covariance(ee.HC(kind)), oracle.fit(cov_type=f"HC{kind}").cov_params()
    )


def test_model_based(fit, oracle):
    close(fit.with_covariance(ee.ModelBased()), oracle.fit().cov_params())


def test_one_way_clusters(fit, oracle, grunfeld):
    codes = grunfeld["firm"].astype("category").cat.codes
    theirs = oracle.fit(cov_type="cluster", cov_kwds={"groups": codes})
    close(fit.with_covariance(ee.Clustered("firm", kind="CR1S")), theirs.cov_params())
    plain = {"groups": codes, "use_correction": False}
    theirs = oracle.fit(cov_type="cluster", cov_kwds=plain)
    close(fit.with_covariance(ee.Clustered("firm")), theirs.cov_params())


def test_two_way_clusters(fit, oracle, grunfeld):
    codes = grunfeld["firm"].astype("category").cat.codes.to_numpy()
    groups = np.column_stack([codes, grunfeld["year"].astype(int)])
    options = {"groups": groups, "use_correction": False}
    theirs = oracle.fit(cov_type="cluster", cov_kwds=options)
    close(fit.with_covariance(ee.Clustered("firm", "year")), theirs.cov_params())


@pytest.mark.parametrize("lags", [1, 3, 7])
def test_newey_west(fit, oracle, lags):
    theirs = oracle.fit(
        cov_type="HAC", cov_kwds={"maxlags": lags, "use_correction": False}
    )
    close(fit.with_covariance(ee.HAC("bartlett", lags=lags)), theirs.cov_params())


def test_panels(fit, oracle, grunfeld):
    result = oracle.fit()
    edges = np.flatnonzero(np.diff(grunfeld["firm"].astype("category").cat.codes)) + 1
    bounds = [0, *edges.tolist(), len(grunfeld)]
    spans = list(pairwise(bounds))
    theirs = cov_nw_panel(result, 3, spans, use_correction=False)
    close(fit.with_covariance(ee.PanelHAC(unit="firm", time="year", lags=3)), theirs)
    years = (grunfeld["year"] - grunfeld["year"].min()).astype(int).to_numpy()
    order = np.argsort(years, kind="stable")
    design = sm.add_constant(grunfeld[["value", "capital"]]).iloc[order]
    sorted_fit = sm.OLS(grunfeld["invest"].iloc[order], design).fit()
    theirs = cov_nw_groupsum(sorted_fit, 2, years[order], use_correction=0)
    close(fit.with_covariance(ee.DriscollKraay(time="year", lags=2)), theirs)


def test_glm_clusters_and_hc0(grunfeld):
    design = sm.add_constant(grunfeld[["value", "late"]])
    model = sm.GLM(grunfeld["high"], design, family=sm.families.Binomial())
    fit = ee.estimate(ee.glm("high ~ value + late", grunfeld, family="binomial"))
    close(fit, model.fit(cov_type="HC0", tol=1e-14).cov_params())
    codes = grunfeld["firm"].astype("category").cat.codes
    theirs = model.fit(cov_type="cluster", cov_kwds={"groups": codes}, tol=1e-14)
    close(fit.with_covariance(ee.Clustered("firm", kind="CR1S")), theirs.cov_params())
