"""Wald intervals on a transformed scale, against closed forms and another route."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tolerances import EXACT

import eestim as ee
from eestim.errors import InferenceError
from eestim.inference.transformed import TRANSFORMS, Transform, Transformed

Z95 = stats.norm.ppf(0.975)
INSIDE = {"atanh": (-0.9, 0.9), "log": (0.1, 50.0), "sqrt": (0.5, 50.0)}


def ends(frame, row=0):
    return frame.iloc[row][["lower", "upper"]].to_numpy(dtype=float)


def fit_with_mean(value, spread=0.05):
    return ee.estimate(ee.mean(value + spread * np.array([-1.0, 1.0, -2.0, 2.0])))


def test_log_interval_has_its_textbook_form():
    fit = fit_with_mean(3.0, 0.4)
    ratio = np.exp(Z95 * fit.se.iloc[0] / 3.0)
    found = ends(fit.interval(method=Transformed("log")))
    np.testing.assert_allclose(found, [3.0 / ratio, 3.0 * ratio], rtol=1e-10)


def test_logit_interval_of_a_proportion_is_that_of_the_logistic_model():
    """Another route: the intercept of a logistic regression, mapped back."""
    y = np.array([1.0] * 7 + [0.0] * 13)
    share = ee.estimate(ee.mean(y)).interval(method=Transformed("logit"))
    model = ee.estimate(ee.glm(y, np.ones((20, 1)), family="binomial")).interval()
    np.testing.assert_allclose(ends(share), 1 / (1 + np.exp(-ends(model))), rtol=1e-9)


def test_fisher_z_interval_of_a_correlation_under_normality(rng):
    """With the normal-theory variance (1 - r^2)^2 / n, half a width of z / sqrt(n)."""
    r, n = 0.6, 50
    table = rng.normal(size=(n, 1))
    table = (table - table.mean()) / table.std() * (1 - r**2)
    fit = ee.estimate(ee.mean(r + table.ravel()))
    found = ends(fit.interval(method=Transformed("atanh")))
    wanted = np.tanh(np.arctanh(r) + np.array([-1, 1]) * Z95 / np.sqrt(n))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
@given(share=st.floats(0.02, 0.98), level=st.floats(0.5, 0.99))
@settings(deadline=None, max_examples=10)
def test_intervals_equal_the_delta_method_mapped_back(name, share, level):
    low, high = INSIDE.get(name, (0.05, 0.95))
    fit = fit_with_mean(low + share * (high - low), 0.001)
    made = TRANSFORMS[name]
    there = fit.functional(lambda theta: made.forward(theta["mean"]))
    wanted = np.sort(made.inverse(ends(there.interval(level))))
    found = ends(fit.interval(level, Transformed(name)))
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_slopes_equal_differences(name):
    made = TRANSFORMS[name]
    for value in (0.2, 0.5, 0.9):
        seen = (made.forward(value + 1e-6) - made.forward(value - 1e-6)) / 2e-6
        assert float(made.slope(value)) == pytest.approx(seen, rel=1e-6)
        assert made.inverse(made.forward(value)) == pytest.approx(value, rel=1e-12)


def test_degrees_of_freedom_are_those_of_the_rule():
    fit = ee.estimate(ee.mean([1.0, 2.0, 6.0]), ee.HC(1))
    ratio = np.exp(stats.t.ppf(0.975, 2) * fit.se.iloc[0] / 3.0)
    found = ends(fit.interval(method=Transformed("log")))
    np.testing.assert_allclose(found, [3.0 / ratio, 3.0 * ratio], rtol=1e-10)


def test_identity_is_wald_and_a_pair_of_functions_is_a_link():
    fit = fit_with_mean(3.0)
    wald = ends(fit.interval())
    np.testing.assert_allclose(
        ends(fit.interval(method=Transformed("identity"))), wald, rtol=EXACT
    )
    pair = Transformed((lambda t: -1.0 / t, lambda z: -1.0 / z))
    half = Z95 * fit.se.iloc[0] / 9.0
    wanted = [1 / (1 / 3.0 + half), 1 / (1 / 3.0 - half)]
    np.testing.assert_allclose(ends(fit.interval(method=pair)), wanted, rtol=1e-9)
    value = Transform("cube root", np.cbrt, lambda z: z**3)
    lower, upper = ends(fit.interval(method=Transformed(value)))
    assert lower < 3.0 < upper


def test_a_mapping_transforms_some_parameters(rng):
    table = pd.DataFrame({"x": rng.normal(size=50)})
    table["y"] = 3.0 + table["x"] + rng.normal(size=50)
    fit = ee.estimate(ee.ols("y ~ x", table))
    mixed = fit.interval(method=Transformed({"Intercept": "log"}))
    np.testing.assert_allclose(ends(mixed, 1), ends(fit.interval(), 1), rtol=EXACT)
    assert not np.isclose(mixed["lower"].iloc[0], fit.interval()["lower"].iloc[0])


def test_an_overflowing_bound_is_infinite():
    fit = ee.estimate(ee.mean([1e-3, 4000.0, -3999.0, 5e-3]))
    lower, upper = ends(fit.interval(method=Transformed("log")))
    assert lower == 0.0
    assert upper == np.inf


def test_estimates_outside_the_domain_are_refused():
    with pytest.raises(InferenceError, match="needs a value above 0"):
        fit_with_mean(-1.0).interval(method=Transformed("log"))
    with pytest.raises(InferenceError, match="between 0 and 1"):
        fit_with_mean(1.5).interval(method=Transformed("logit"))


@pytest.mark.parametrize(
    ("link", "error", "match"),
    [
        ("logarithm", ValueError, "`link` must be one of"),
        (np.log, TypeError, "a pair of functions"),
        ((np.log, np.sqrt), ValueError, "give .forward, inverse. of the same"),
        ({"other": "log"}, ValueError, r"names \['other'\]"),
    ],
)
def test_links_are_checked(link, error, match):
    with pytest.raises(error, match=match):
        fit_with_mean(3.0).interval(method=Transformed(link))


def test_a_wrong_slope_would_be_seen():
    """Negative control of the comparison with the delta method."""
    wrong = Transform("log", np.log, np.exp, lambda t: 2.0 / t)
    fit = fit_with_mean(3.0, 0.4)
    right = ends(fit.interval(method=Transformed("log")))
    assert np.max(np.abs(ends(fit.interval(method=Transformed(wrong))) - right)) > 0.05
