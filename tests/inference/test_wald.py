"""Wald tests against clubSandwich, lmtest, closed forms and simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tolerances import EXACT, REFERENCE

import eestim as ee
from eestim.covariance.clustered import Clustered
from eestim.errors import CapabilityError, DataError, InferenceError
from eestim.inference.wald import (
    hotelling_dof,
    independent_restrictions,
    wald_test,
)


def table(seed=0, n=120, groups=15):
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(groups), rng.integers(0, groups, n - groups)])
    X = rng.normal(size=(n, 3)) + 0.5 * rng.normal(size=(groups, 3))[codes]
    y = X @ [0.5, 0.0, 0.2] + rng.normal(size=groups)[codes] + rng.normal(size=n)
    return pd.DataFrame(X, columns=["a", "b", "c"]).assign(y=y, g=codes)


def fitted(rule, seed=0, **options):
    return ee.estimate(ee.ols("y ~ a + b + c", table(seed, **options)), covariance=rule)


SLOPES = np.eye(4)[1:]


@pytest.mark.parametrize(
    ("law", "row"), [("chi2", 0), ("F", 1), ("HTA", 2), ("HTZ", 3)]
)
def test_equal_slopes_of_chick_diets_equal_clubsandwich(refcases, law, row):
    case, data = refcases.case("wald_chick_CR2"), refcases.frame("ChickWeight.csv")
    fit = ee.estimate(
        ee.ols("weight ~ 0 + C(Diet) + C(Diet):Time", data),
        covariance=Clustered("Chick", kind="CR2"),
    )
    contrasts = np.zeros((3, 8))
    contrasts[:, 4] = -1.0
    contrasts[range(3), range(5, 8)] = 1.0
    found = wald_test(fit, contrasts, law=law, dof=49.0)
    tests = case["extra"]["tests"]
    expected = {name: tests[name][row] for name in tests}
    assert found.dof == expected["df_num"]
    value = found.scale * found.quadratic / found.dof
    np.testing.assert_allclose(value, expected["Fstat"], rtol=1e-12)
    np.testing.assert_allclose(found.scale, expected["delta"], rtol=1e-12)
    np.testing.assert_allclose(found.p, expected["p_val"], rtol=1e-11)
    if expected["df_denom"] is not None:
        np.testing.assert_allclose(
            found.dof_denominator, expected["df_denom"], rtol=1e-12
        )
    assert wald_test(fit, contrasts).law == "HTZ"


def test_quadratic_income_equals_lmtest(refcases):
    case = refcases.case("wald_publicschools")["extra"]
    data = refcases.frame("PublicSchools.csv").dropna()
    data = data.assign(square=data["Income"] ** 2)
    equation = ee.ols("Expenditure ~ Income + square", data)
    restrictions = np.eye(3)[1:]
    hc3 = wald_test(ee.estimate(equation, covariance=ee.HC(3)), restrictions)
    assert (hc3.law, hc3.dof, hc3.dof_denominator) == ("F", case["df1"], case["df2"])
    np.testing.assert_allclose(hc3.statistic, case["F_HC3"], rtol=REFERENCE)
    np.testing.assert_allclose(hc3.p, case["p_HC3"], rtol=1e-7)
    hc0 = wald_test(ee.estimate(equation, covariance=ee.HC(0)), restrictions)
    assert hc0.law == "chi2"
    np.testing.assert_allclose(hc0.statistic, case["chisq_HC0"], rtol=REFERENCE)
    np.testing.assert_allclose(hc0.p, case["p_HC0"], rtol=1e-7)


@pytest.mark.parametrize("law", ["HTZ", "HTA"])
def test_hotelling_with_one_contrast_is_the_satterthwaite_t(law):
    fit = fitted(Clustered("g", kind="CR2"))
    found = wald_test(fit, [[0.0, 1.0, -1.0, 0.0]], law=law)
    dof = fit.spread.contrast_dof(np.array([[0.0, 1.0, -1.0, 0.0]]))[0]
    np.testing.assert_allclose(found.dof_denominator, dof, rtol=1e-10)
    assert found.scale == pytest.approx(1.0, rel=EXACT)


@pytest.mark.parametrize("law", ["HTZ", "HTA"])
@pytest.mark.parametrize("q", [1, 2, 4])
def test_hotelling_dof_of_a_wishart_are_its_own(law, q):
    """Closed form: Cov(d_st, d_uv) = (1{su}1{tv} + 1{sv}1{tu}) / nu."""
    one = np.eye(q)
    covariance = np.einsum("su,tv->stuv", one, one) + np.einsum("sv,tu->stuv", one, one)
    mix = np.random.default_rng(q).normal(size=(q, q))
    turned = np.einsum("as,bt,cu,dv,stuv->abcd", mix, mix, mix, mix, covariance / 7.3)
    assert hotelling_dof(mix @ mix.T, turned, law) == pytest.approx(7.3, rel=1e-9)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
@pytest.mark.parametrize("law", ["chi2", "F", "HTZ", "HTA"])
def test_equivalent_restrictions_give_the_same_test(law, seed):
    rng = np.random.default_rng(seed)
    fit = fitted(Clustered("g", kind="CR2"), seed % 7)
    mix = rng.normal(size=(3, 3)) @ np.diag([1.0, 100.0, 0.01])
    values = rng.normal(size=3)
    one = wald_test(fit, SLOPES, values, law=law, dof=10.0)
    two = wald_test(fit, mix @ SLOPES, mix @ values, law=law, dof=10.0)
    np.testing.assert_allclose(two.statistic, one.statistic, rtol=1e-7)
    np.testing.assert_allclose(two.dof_denominator, one.dof_denominator, rtol=1e-7)
    assert two.dof == one.dof == 3


@pytest.mark.parametrize("law", ["chi2", "HTZ"])
def test_redundant_restrictions_are_counted_once(law):
    fit = fitted(Clustered("g", kind="CR2"))
    rows = np.vstack([SLOPES[:2], SLOPES[0] + SLOPES[1], 5.0 * SLOPES[0]])
    found, expected = wald_test(fit, rows, law=law), wald_test(fit, SLOPES[:2], law=law)
    assert found.dof == 2
    np.testing.assert_allclose(found.statistic, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(found.p, expected.p, rtol=1e-9)
    assert [f.status for f in found.findings] == ["pass"]


def test_direction_without_variance_is_reported():
    theta = np.array([1.0, 2.0, 0.0])
    covariance = np.diag([1.0, 4.0, 0.0])
    found = independent_restrictions(theta, covariance, np.eye(3), np.zeros(3))
    assert found.rank == 2
    assert found.quadratic == pytest.approx(2.0, rel=EXACT)


def test_contradictory_restrictions_are_refused():
    fit = fitted(ee.HC(0))
    rows = np.vstack([SLOPES[0], 2.0 * SLOPES[0]])
    assert wald_test(fit, rows, [1.0, 2.0]).dof == 1
    with pytest.raises(InferenceError, match=r"rows \[0, 1\] of `R`.*contradict"):
        wald_test(fit, rows, [1.0, 2.1])


def test_units_of_measure_do_not_change_the_rank():
    data = table()
    scaled = data.assign(a=data["a"] * 1e9, b=data["b"] * 1e-9)
    one = wald_test(fitted(ee.HC(0)), SLOPES)
    fit = ee.estimate(ee.ols("y ~ a + b + c", scaled), covariance=ee.HC(0))
    two = wald_test(fit, SLOPES)
    assert two.dof == 3
    np.testing.assert_allclose(two.statistic, one.statistic, rtol=1e-6)


def test_few_clusters_refuse_many_restrictions():
    fit = fitted(Clustered("g", kind="CR1"), groups=3)
    with pytest.raises(InferenceError, match="3 clusters give a covariance of rank 2"):
        wald_test(fit, SLOPES)
    assert wald_test(fit, SLOPES[:2]).dof_denominator == 2.0


def test_hotelling_without_enough_degrees_of_freedom_is_refused():
    rng = np.random.default_rng(2)
    codes = np.repeat(np.arange(5), 6)
    size = np.where(codes == 0, 1.0, 0.05)  # one cluster carries the slopes
    X = np.column_stack([np.ones(30), rng.normal(size=(30, 3)) * size[:, None]])
    equation = ee.ols(rng.normal(size=30), X)
    fit = ee.estimate(equation, covariance=Clustered(codes, kind="CR2"))
    with pytest.raises(InferenceError, match="do not support 3 restrictions"):
        wald_test(fit, SLOPES)


def test_hotelling_needs_a_working_model():
    with pytest.raises(CapabilityError, match='kind="CR2"'):
        wald_test(fitted(ee.HC(1)), SLOPES, law="HTZ")


def test_indefinite_covariances_are_refused():
    indefinite = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(InferenceError, match="repair_psd"):
        independent_restrictions(np.ones(2), indefinite, np.eye(2), np.zeros(2))
    with pytest.raises(InferenceError, match="no variance at all"):
        independent_restrictions(np.ones(2), np.eye(2), np.zeros((1, 2)), np.zeros(1))


def test_arguments_are_checked():
    fit = fitted(ee.HC(0))
    with pytest.raises(DataError, match="finite rows of 4 coefficients"):
        wald_test(fit, np.ones((1, 3)))
    with pytest.raises(DataError, match="one finite value for each of 3"):
        wald_test(fit, SLOPES, [1.0, 2.0])
    with pytest.raises(ValueError, match="`law` must be one of"):
        wald_test(fit, SLOPES, law="t")
    with pytest.raises(ValueError, match="`dof` must be positive"):
        wald_test(fit, SLOPES, law="F", dof=0.0)


def test_text_names_the_law():
    fit = fitted(Clustered("g", kind="CR2"))
    assert str(wald_test(fit, SLOPES, law="chi2")).startswith("chi2(3) = ")
    assert str(wald_test(fit, SLOPES)).endswith("(HTZ)")


def test_htz_keeps_its_level_with_few_clusters_and_chi2_does_not():
    """Size at 12 clusters of a cluster-level and a row-level null, 250 draws."""
    rng = np.random.default_rng(20180601)
    n_draws, groups = 250, 12
    codes = np.repeat(np.arange(groups), 6)
    X = np.column_stack(
        [np.ones(72), rng.exponential(size=groups)[codes], rng.normal(size=72)]
    )
    level = {"HTZ": 0, "chi2": 0}
    for _ in range(n_draws):
        y = rng.normal(size=groups)[codes] + rng.normal(size=72)
        fit = ee.estimate(ee.ols(y, X), covariance=Clustered(codes, kind="CR2"))
        for law in level:
            level[law] += wald_test(fit, np.eye(3)[1:], law=law).p < 0.05
    error = np.sqrt(0.05 * 0.95 / n_draws)
    assert level["HTZ"] / n_draws <= 0.05 + 4 * error
    assert level["chi2"] / n_draws > 0.05 + 4 * error  # negative control


def test_pvalue_is_the_tail_of_the_named_law():
    found = wald_test(fitted(ee.HC(1)), SLOPES)
    assert found.law == "F"
    assert found.p == pytest.approx(stats.f.sf(found.quadratic / 3, 3, 116), rel=EXACT)
