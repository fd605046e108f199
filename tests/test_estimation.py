import numpy as np
import pandas as pd
import pytest
from cases import table
from scipy import stats
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.errors import CapabilityError, DataError, InferenceError, InterpolationError


@pytest.fixture(scope="module")
def data():
    return table(150, seed=21)


@pytest.fixture(scope="module")
def fit(data):
    return ee.estimate(ee.glm("b ~ x + z", data, family="binomial"))


def test_intervals_are_estimate_plus_quantile_times_se(data, fit):
    wald = fit.interval(0.9)
    half = stats.norm.ppf(0.95) * fit.se
    np.testing.assert_allclose(wald["upper"] - wald["estimate"], half, rtol=EXACT)
    linear = ee.estimate(ee.ols("y ~ x", data), ee.ModelBased())
    t = linear.interval()
    half = stats.t.ppf(0.975, len(data) - 2) * linear.se
    np.testing.assert_allclose(t["estimate"] - t["lower"], half, rtol=EXACT)
    normal = linear.interval(method="wald")
    assert (normal["upper"] < t["upper"]).all()


def test_table_agrees_with_its_interval(fit):
    made = fit.table(0.95)
    assert list(made.columns) == ["estimate", "se", "statistic", "p", "lower", "upper"]
    np.testing.assert_allclose(made["p"], 2 * stats.norm.sf(abs(made["statistic"])))
    excludes = (made["lower"] > 0) | (made["upper"] < 0)
    assert (excludes == (made["p"] < 0.05)).all()


def test_dof_is_named(data):
    fit = ee.estimate(ee.ols("y ~ x", data), ee.Clustered("g"))
    assert fit.dof_kind == "G-1"
    assert fit.dof.tolist() == [11.0, 11.0]
    assert "12 clusters" in str(fit)


def test_delta_method_against_the_formula_of_a_ratio(fit):
    ratio = fit.functional(lambda theta: theta["x"] / theta["z"], names=["x/z"])
    a, b = fit.params["x"], fit.params["z"]
    gradient = np.array([0.0, 1 / b, -a / b**2])
    variance = gradient @ fit.spread.matrix @ gradient
    assert ratio.params["x/z"] == pytest.approx(a / b, rel=1e-12)
    assert ratio.se["x/z"] ** 2 == pytest.approx(variance, rel=1e-9)
    exact = fit.functional(lambda t: t["x"] / t["z"], jacobian=lambda t: gradient)
    assert exact.se.iloc[0] ** 2 == pytest.approx(variance, rel=1e-12)


def test_functional_influence_gives_its_own_sandwich(fit):
    ratio = fit.functional(lambda theta: [theta["x"] / theta["z"], theta["x"]])
    influence = ratio.influence().to_numpy()
    by_influence = influence.T @ influence / fit.n_units**2
    np.testing.assert_allclose(by_influence, ratio.spread.matrix, rtol=1e-8)
    again = ratio.with_covariance(ee.HC(0))
    np.testing.assert_allclose(again.spread.matrix, ratio.spread.matrix, rtol=1e-8)


def test_a_functional_of_badly_scaled_parameters():
    """The gradient must not depend on units of measurement."""
    data = table(300, seed=2)
    big = data.assign(x=data["x"] * 1e9 + 3e9)
    fit = ee.estimate(ee.glm("b ~ x", big, family="binomial"))
    other = ee.estimate(ee.glm("b ~ x", data, family="binomial"))
    dose = fit.functional(lambda t: -t["Intercept"] / t["x"])
    plain = other.functional(lambda t: -t["Intercept"] / t["x"])
    assert dose.se.iloc[0] / 1e9 == pytest.approx(plain.se.iloc[0], rel=1e-6)


def test_a_constant_functional_is_refused(fit):
    with pytest.raises(InterpolationError, match="would be zero"):
        fit.functional(lambda theta: 3.0)
    with pytest.raises((InferenceError, DataError), match=r"finite|not numeric"):
        fit.functional(lambda theta: np.log(theta["x"] * 0 - 1.0) + theta["x"])


def test_influence_has_mean_zero_and_gives_hc0(fit):
    influence = fit.influence().to_numpy()
    assert np.max(np.abs(influence.mean(axis=0))) < 1e-9 * np.abs(influence).max()
    np.testing.assert_allclose(
        influence.T @ influence / fit.n_units**2, fit.spread.matrix, rtol=REFERENCE
    )


def test_with_covariance_does_not_solve_again(data, fit):
    other = fit.with_covariance(ee.HC(3))
    assert other.theta is fit.theta
    direct = ee.estimate(ee.glm("b ~ x + z", data, family="binomial"), ee.HC(3))
    np.testing.assert_allclose(other.spread.matrix, direct.spread.matrix, rtol=EXACT)


def test_wald_by_names_and_by_matrix(fit):
    by_name = fit.wald(["x", "z"])
    by_matrix = fit.wald([[0, 1, 0], [0, 0, 1]])
    V = fit.spread.matrix[1:, 1:]
    by_hand = fit.theta[1:] @ np.linalg.solve(V, fit.theta[1:])
    assert by_name.statistic == pytest.approx(by_hand, rel=1e-9)
    assert by_matrix.statistic == pytest.approx(by_hand, rel=1e-9)
    assert by_name.dof == 2
    with pytest.raises(DataError, match="not parameters"):
        fit.wald(["q"])


@pytest.mark.parametrize("rule", [ee.HC(0), ee.HC(3), ee.Clustered("g", kind="CR1")])
def test_save_and_load_are_lossless(data, tmp_path, rule):
    fit = ee.estimate(ee.glm("b ~ x + z", data, family="binomial"), rule)
    again = ee.load(fit.save(tmp_path / "fit.eestim"))
    assert again.theta.tobytes() == fit.theta.tobytes()
    assert again.spread.matrix.tobytes() == fit.spread.matrix.tobytes()
    assert str(again) == str(fit)
    pd.testing.assert_frame_equal(again.interval(), fit.interval())
    pd.testing.assert_frame_equal(again.influence(), fit.influence(), rtol=1e-12)
    np.testing.assert_allclose(
        again.with_covariance(ee.HC(0)).spread.matrix,
        fit.with_covariance(ee.HC(0)).spread.matrix,
        rtol=REFERENCE,
    )
    with pytest.raises(CapabilityError, match="tabulated"):
        again.equation.psi(again.theta + 1)
    assert [p.name for p in tmp_path.iterdir()] == ["fit.eestim"]


def test_loading_something_else_is_refused(tmp_path):
    bad = tmp_path / "other"
    bad.write_bytes(b"not an archive")
    with pytest.raises(DataError, match="not an eestim estimate"):
        ee.load(bad)
    np.savez(tmp_path / "pickle.npz", meta=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="not an eestim estimate"):
        ee.load(tmp_path / "pickle.npz")


def test_reports_hold_every_number(fit):
    markdown, html, latex = fit.to_markdown(), fit.to_html(), fit.to_latex()
    for name in fit.names:
        assert all(name in text for text in (markdown, html, latex))
    assert "HC0" in markdown
    assert "toprule" in latex
    assert markdown.count("\n| ") == len(fit.names)


def test_a_capability_that_is_missing_is_named(data):
    equation = ee.equation(
        lambda t, d: (np.asarray(d["y"]) - t[0])[:, None], data, [0.0]
    )
    fit = ee.estimate(equation)
    with pytest.raises(CapabilityError, match=r"HC\(3\) needs `working`.*HC\(0\)"):
        fit.with_covariance(ee.HC(3))
    with pytest.raises(CapabilityError, match="predict"):
        fit.predict(data)
    with pytest.raises(CapabilityError, match="ModelBased"):
        fit.with_covariance(ee.ModelBased())


def test_a_covariance_cannot_keep_the_parts_of_another_matrix(fit):
    """A functional of a changed matrix would have the variance of the old one."""
    from dataclasses import replace

    turned = fit.spread.transformed(np.eye(len(fit.names)))
    with pytest.raises(ValueError, match="`coordinates` are not those of `matrix`"):
        replace(turned, matrix=2.0 * turned.matrix)
    changed = replace(turned, matrix=2.0 * turned.matrix, coordinates=None)
    np.testing.assert_allclose(changed.parts()[0], 2.0 * fit.spread.matrix, rtol=EXACT)
