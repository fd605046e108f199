"""Fitted statsmodels models as estimates, against statsmodels' own figures."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from cases import table

import eestim as ee
from eestim.errors import CapabilityError


def agrees(fit, results):
    np.testing.assert_allclose(fit.theta, results.params, rtol=1e-12)
    np.testing.assert_allclose(fit.se, results.bse, rtol=1e-7)


def test_least_squares_with_every_hc():
    data = table()
    results = smf.ols("y ~ x + z", data).fit()
    fit = ee.from_statsmodels(results, ee.ModelBased())
    agrees(fit, results)
    assert fit.names == ("Intercept", "x", "z")
    assert fit.root.residual < 1e-8
    for kind in range(4):
        robust = results.get_robustcov_results(f"HC{kind}")
        agrees(fit.with_covariance(ee.HC(kind)), robust)


def test_clusters_named_by_column_with_rows_dropped():
    data = table()
    data.loc[3, "x"] = np.nan
    results = smf.ols("y ~ x", data).fit(
        cov_type="cluster", cov_kwds={"groups": data["g"].drop(3)}
    )
    fit = ee.from_statsmodels(results, ee.Clustered("g", kind="CR1S"))
    agrees(fit, results)
    agrees(fit.with_covariance(ee.Clustered(data["g"], kind="CR1S")), results)


@pytest.mark.parametrize("name", ["logit", "probit", "poisson"])
def test_discrete_models(name):
    outcome = "c" if name == "poisson" else "b"
    results = getattr(smf, name)(f"{outcome} ~ x", table()).fit(disp=0, tol=1e-12)
    fit = ee.from_statsmodels(results)
    if name != "probit":  # whose information is observed there, expected here
        agrees(fit.with_covariance(ee.ModelBased()), results)
    robust = getattr(smf, name)(f"{outcome} ~ x", table()).fit(
        disp=0, tol=1e-12, cov_type="HC0"
    )
    agrees(fit, robust)


def test_offsets_and_exposures():
    data = table()
    poisson = smf.poisson(
        "c ~ x", data, exposure=data["e"], offset=0.1 * data["z"]
    ).fit(disp=0, tol=1e-12)
    agrees(ee.from_statsmodels(poisson, ee.ModelBased()), poisson)
    glm = smf.glm("c ~ x", data, family=sm.families.Poisson(), exposure=data["e"])
    results = glm.fit(tol=1e-13)
    agrees(ee.from_statsmodels(results, ee.ModelBased()), results)


def test_generalized_models_with_frequencies():
    data = table()
    results = smf.glm(
        "b ~ x", data, family=sm.families.Binomial(), freq_weights=data["w"]
    ).fit(tol=1e-13)
    fit = ee.from_statsmodels(results, ee.ModelBased())
    agrees(fit, results)
    assert fit.n_units == data["w"].sum()
    gaussian = smf.glm("y ~ x", data).fit()
    agrees(ee.from_statsmodels(gaussian, ee.ModelBased()), gaussian)


def test_arrays_without_a_formula():
    data = table()
    X = sm.add_constant(data[["x", "z"]])
    results = sm.Logit(data["b"], X).fit(disp=0)
    fit = ee.from_statsmodels(results)
    assert fit.names == ("const", "x", "z")
    by_index = fit.with_covariance(
        ee.Clustered(data["g"].sample(frac=1, random_state=1))
    )
    plain = fit.with_covariance(ee.Clustered(data["g"].to_numpy()))
    np.testing.assert_allclose(by_index.se, plain.se, rtol=1e-12)


def test_every_later_use_of_an_estimate(rng):
    fit = ee.from_statsmodels(smf.logit("b ~ x", table()).fit(disp=0))
    assert fit.wald("x").p < 1
    assert fit.interval(method=ee.Profile()).shape == (2, 3)
    assert ee.diagnose(fit, budget=1.0)["root residual"].status == "pass"
    assert fit.with_covariance(ee.Bootstrap(draws=20, rng=1)).se.notna().all()


def test_a_penalised_fit_shows_as_a_root_that_is_none():
    results = smf.ols("y ~ x + z", table()).fit_regularized(alpha=1.0, L1_wt=0.0)
    fit = ee.from_statsmodels(results)
    assert [f.status for f in fit.findings if f.name == "root residual"] == ["fail"]


def test_what_is_not_understood_is_named():
    data = table()
    with pytest.raises(CapabilityError, match="WLS"):
        ee.from_statsmodels(smf.wls("y ~ x", data, weights=data["e"]).fit())
    with pytest.raises(CapabilityError, match="variance weights"):
        ee.from_statsmodels(smf.glm("y ~ x", data, var_weights=data["e"]).fit())
    positive = data.assign(y=np.exp(0.1 * data["y"]))
    family = sm.families.Gamma(sm.families.links.Log())
    gamma = smf.glm("y ~ x", positive, family=family).fit()
    with pytest.raises(CapabilityError, match="gamma"):
        ee.from_statsmodels(gamma)
    trials = pd.DataFrame({"s": [1, 3, 5, 4], "f": [4, 2, 1, 3]})
    model = sm.GLM(trials, sm.add_constant(np.arange(4.0)), sm.families.Binomial())
    with pytest.raises(CapabilityError, match="trials"):
        ee.from_statsmodels(model.fit())
    with pytest.raises(TypeError, match="results"):
        ee.from_statsmodels(smf.ols("y ~ x", data))


def test_statsmodels_is_not_imported_by_the_package():
    code = "import sys, eestim; assert 'statsmodels' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
